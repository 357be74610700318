"""The attention kernels through the TPU's own compilers, at the shapes of both models."""

import functools

import pytest
from helpers import tpu_compile

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from pplx_jax.kernels import attention as face
topology, heads, length, batch = sys.argv[1], *map(int, sys.argv[2:])
device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
mesh = jax.sharding.Mesh([device], ("data",))
sharding = jax.NamedSharding(mesh, jax.P())
def array(count):
    return jax.ShapeDtypeStruct((batch, length, count, 128), jnp.bfloat16, sharding=sharding)
ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=sharding)
def loss(query, key, value, ids):
    return face.attention(query, key, value, ids).astype(jnp.float32).sum()
with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array(heads), array(8), array(8), ids).compile()
print(compiled.as_text().count("tpu_custom_call"), compiled.memory_analysis().temp_size_in_bytes)
"""


@functools.cache
def compiled(topology: str, heads: int, length: int, batch: int) -> tuple[int, int]:
    """Kernels of both passes, and bytes of temporaries."""
    calls, temporaries = tpu_compile.run(PROGRAM, topology, str(heads), str(length), str(batch)).split()
    return int(calls), int(temporaries)


@tpu_compile.needs_libtpu
@pytest.mark.parametrize("topology", tpu_compile.TOPOLOGIES)
@pytest.mark.parametrize("heads", [16, 32])
def test_both_passes_compile_for_both_models(topology, heads):
    calls, _ = compiled(topology, heads, 4096, 2)
    assert calls >= 2


@tpu_compile.needs_libtpu
def test_both_passes_compile_for_the_smallest_vmem():
    calls, _ = compiled("v4:2x2x1", 16, 4096, 1)
    assert calls >= 2


@tpu_compile.needs_libtpu
def test_memory_is_linear_up_to_the_longest_text():
    smallest = "v5p:2x2x1"  # of the cores' memories, so the row goes in the most stretches
    (_, short), (_, long) = compiled(smallest, 16, 4096, 2), compiled(smallest, 16, 32768, 1)
    assert long < 4.4 * short  # of four times the tokens, and rows eight times as long
