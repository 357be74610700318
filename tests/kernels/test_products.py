"""Products of float32 are exact on every device; of bfloat16 they are what the device makes of them."""

import jax
import jax.numpy as jnp
import pytest

from pplx_jax.kernels.attention import blockwise, reference
from pplx_jax.kernels.segment_pool.reference import mean_pool
from pplx_jax.kernels.vocab_cross_entropy import chunked

IDS = jnp.ones((1, 8), jnp.int32)


def attend(attention):
    return lambda x: attention(*(x.reshape(1, 8, 1, 16),) * 3, IDS)


OPERATIONS = {
    "attention": attend(reference.attention),
    "attention, blockwise": attend(blockwise.attention),
    "segment_pool": lambda x: mean_pool(x[None], IDS, 2),
    "vocab_cross_entropy": lambda x: chunked.losses(x, x, IDS[0], jnp.ones(8), with_gradient=True),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_xla_multiplies_float32_exactly_on_a_gpu_too(name):
    def precisions(dtype):
        lowered = jax.jit(OPERATIONS[name]).trace(jnp.ones((8, 16), dtype)).lower(lowering_platforms=("cuda",))
        lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        return {"HIGHEST, HIGHEST" in line for line in lines}

    assert precisions(jnp.float32) == {True}
    assert precisions(jnp.bfloat16) == {False}
