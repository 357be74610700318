"""The attention kernels through the TPU's own compilers, at the shapes of both models."""

import importlib.util
import itertools

import pytest
from helpers import tpu_compile

pytestmark = pytest.mark.long

# Kernels of both passes, bytes of temporaries, and whether the kernels are those of splash.
MEASURE = """
from pplx_jax.kernels.attention import attention

def measure(topology, heads, length, batch, implementation=None, dtype="bfloat16"):
    def loss(query, key, value, ids):
        return attention(query, key, value, ids, implementation=implementation).astype(jnp.float32).sum()

    mesh, array = on(topology)
    shapes = [array(batch, length, count, 128, dtype=dtype) for count in (heads, 8, 8)]
    ids = array(batch, length, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes, ids).compile()
    text = compiled.as_text()
    splash = "splash_mha_fwd" in text and "splash_mha_dkv" in text
    return text.count("tpu_custom_call"), compiled.memory_analysis().temp_size_in_bytes, splash
"""
HEADS = (16, 32)
SMALLEST_VMEM = ("v4:2x2x1", 16, 4096, 1)
LONG = ("v5p:2x2x1", 16, 32768, 1)  # of the cores' memories the smallest, so the row goes in the most stretches


OTHERS = ["splash", *(["tokamax"] if importlib.util.find_spec("tokamax") else [])]
# A packed sequence, the longest text, and float32 on the chip with the least memory.
OTHER_SHAPES = (("v6e:2x2", 32, 4224, 2), ("v5p:2x2x1", 16, 32768, 1))
FLOAT32 = ("v5e:2x2", 16, 4096, 1)


@pytest.fixture(scope="module")
def found():
    models = [(topology, heads, 4096, 2) for topology, heads in itertools.product(tpu_compile.TOPOLOGIES, HEADS)]
    others = [(*shape, name) for shape, name in itertools.product(OTHER_SHAPES, OTHERS)]
    others += [(*FLOAT32, name, "float32") for name in OTHERS]
    return tpu_compile.compile_all(MEASURE, [*models, SMALLEST_VMEM, LONG, *others])


@tpu_compile.needs_libtpu
@pytest.mark.parametrize("topology", tpu_compile.TOPOLOGIES)
@pytest.mark.parametrize("heads", HEADS)
def test_both_passes_compile_for_both_models(found, topology, heads):
    calls, _, splash = found(topology, heads, 4096, 2)
    assert calls >= 2 and not splash


@tpu_compile.needs_libtpu
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", [*OTHER_SHAPES, (*FLOAT32, "float32")])
def test_the_kernels_of_other_libraries_compile_in_place_of_ours(found, case, name):
    calls, _, splash = found(*case[:4], name, *case[4:])
    assert calls >= 2 and splash


@tpu_compile.needs_libtpu
def test_both_passes_compile_for_the_smallest_vmem(found):
    calls, _, _ = found(*SMALLEST_VMEM)
    assert calls >= 2


@tpu_compile.needs_libtpu
def test_memory_is_linear_up_to_the_longest_text(found):
    (_, short, _), (_, long, _) = found(*LONG[:2], 4096, 2), found(*LONG)
    assert long < 4.4 * short  # of four times the tokens, and rows eight times as long
