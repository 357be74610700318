"""Attention over packed rows: every implementation is the reference, and long rows never hold L x L scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.kernels import attention as face
from pplx_jax.kernels.attention import blockwise, reference


def inputs(rows, length, heads=4, kv_heads=2, head_dim=8):
    generator = np.random.default_rng(length)

    def normal(count):
        return jnp.asarray(generator.normal(size=(rows, length, count, head_dim)), jnp.float32)

    cuts = np.sort(generator.integers(1, length, (rows, 3)), axis=1)
    segment_ids = (np.arange(length)[None, :, None] >= cuts[:, None, :]).sum(-1) + 1
    segment_ids[:, cuts.max() :] = 0
    return normal(heads), normal(kv_heads), normal(kv_heads), jnp.asarray(segment_ids, jnp.int32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [33, 64, 100])
def test_blockwise_is_the_reference_and_so_are_its_gradients(length, causal):
    query, key, value, segment_ids = inputs(2, length)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=query.shape), jnp.float32)

    def result(attention, query, key, value):
        return jnp.sum(weights * attention(query, key, value, segment_ids, causal=causal))

    block = functools.partial(blockwise.attention, query_block=16)
    np.testing.assert_allclose(
        block(query, key, value, segment_ids, causal=causal),
        reference.attention(query, key, value, segment_ids, causal=causal),
        rtol=0,
        atol=1e-6,
    )
    for found, expected in zip(
        *(
            jax.grad(functools.partial(result, one), argnums=(0, 1, 2))(query, key, value)
            for one in (block, reference.attention)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [face.WHOLE_ROWS, face.WHOLE_ROWS + 1])
def test_the_face_gives_the_same_on_both_sides_of_its_choice(length):
    arguments = inputs(1, length, heads=2, kv_heads=1)
    np.testing.assert_allclose(face.attention(*arguments), reference.attention(*arguments), rtol=0, atol=1e-6)


def test_memory_is_linear_in_length_both_ways():
    def temporaries(attention, length):
        def loss(query, key, value, segment_ids):
            return attention(query, key, value, segment_ids).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*inputs(1, length, 2, 1)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = (temporaries(face.attention, length) for length in (4096, 8192))
    assert long < 2.2 * short
    # Control: the reference takes four times as much.
    assert temporaries(reference.attention, 4096) > 3.5 * temporaries(reference.attention, 2048)


def test_padding_past_the_row_stays_finite():
    query, key, value, _ = inputs(1, 20)
    segment_ids = jnp.ones((1, 20), jnp.int32)
    assert np.isfinite(blockwise.attention(query, key, value, segment_ids, query_block=16)).all()
