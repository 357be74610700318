"""The attention kernels through the TPU's own compilers, at the shapes of both models."""

import itertools

import pytest
from helpers import tpu_compile

pytestmark = pytest.mark.long

# Kernels of both passes, and bytes of temporaries.
MEASURE = """
from pplx_jax.kernels.attention import attention

def loss(query, key, value, ids):
    return attention(query, key, value, ids).astype(jnp.float32).sum()

def measure(topology, heads, length, batch):
    mesh, array = on(topology)
    shapes = [array(batch, length, count, 128, dtype=jnp.bfloat16) for count in (heads, 8, 8)]
    ids = array(batch, length, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, ids).compile()
    return compiled.as_text().count("tpu_custom_call"), compiled.memory_analysis().temp_size_in_bytes
"""
HEADS = (16, 32)
SMALLEST_VMEM = ("v4:2x2x1", 16, 4096, 1)
LONG = ("v5p:2x2x1", 16, 32768, 1)  # of the cores' memories the smallest, so the row goes in the most stretches


@pytest.fixture(scope="module")
def found():
    models = [(topology, heads, 4096, 2) for topology, heads in itertools.product(tpu_compile.TOPOLOGIES, HEADS)]
    return tpu_compile.compile_all(MEASURE, [*models, SMALLEST_VMEM, LONG])


@tpu_compile.needs_libtpu
@pytest.mark.parametrize("topology", tpu_compile.TOPOLOGIES)
@pytest.mark.parametrize("heads", HEADS)
def test_both_passes_compile_for_both_models(found, topology, heads):
    calls, _ = found(topology, heads, 4096, 2)
    assert calls >= 2


@tpu_compile.needs_libtpu
def test_both_passes_compile_for_the_smallest_vmem(found):
    calls, _ = found(*SMALLEST_VMEM)
    assert calls >= 2


@tpu_compile.needs_libtpu
def test_memory_is_linear_up_to_the_longest_text(found):
    (_, short), (_, long) = found(*LONG[:2], 4096, 2), found(*LONG)
    assert long < 4.4 * short  # of four times the tokens, and rows eight times as long
