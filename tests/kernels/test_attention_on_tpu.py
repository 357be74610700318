"""The attention kernels through the TPU's own compilers, at the shapes of both models."""

import pytest
import tpu_compile

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from pplx_jax.kernels import attention as face
topology, heads, length, batch = sys.argv[1], *map(int, sys.argv[2:])
device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
sharding = jax.sharding.SingleDeviceSharding(device)
def array(count):
    return jax.ShapeDtypeStruct((batch, length, count, 128), jnp.bfloat16, sharding=sharding)
ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=sharding)
def loss(query, key, value, ids):
    return face.attention(query, key, value, ids).astype(jnp.float32).sum()
compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array(heads), array(8), array(8), ids).compile()
print(compiled.as_text().count("tpu_custom_call"), compiled.memory_analysis().temp_size_in_bytes)
"""


@tpu_compile.needs_libtpu
@pytest.mark.parametrize("topology", tpu_compile.TOPOLOGIES)
@pytest.mark.parametrize("heads", [16, 32])
def test_both_passes_compile_for_both_models(topology, heads):
    calls, _ = tpu_compile.run(PROGRAM, topology, str(heads), "4096", "2").split()
    assert int(calls) >= 2


@tpu_compile.needs_libtpu
def test_memory_is_linear_up_to_the_longest_text():
    smallest = "v5p:2x2x1"  # of the cores' memories, so the row goes in the most stretches
    half, whole = (
        int(tpu_compile.run(PROGRAM, smallest, "16", length, "1").split()[1]) for length in ("16384", "32768")
    )
    assert whole < 2.2 * half
