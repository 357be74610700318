"""Attention over packed rows: the public face, which picks an implementation by the rows' length."""

import jax

from pplx_jax.kernels.attention import blockwise, reference

# Longest row whose scores are held at once. Up to here one product of whole rows is the faster way.
WHOLE_ROWS = 1024


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *, causal: bool = False
) -> jax.Array:
    """Softmax attention within each text of packed rows; arguments and result as of `reference.attention`."""
    implementation = reference if query.shape[1] <= WHOLE_ROWS else blockwise
    return implementation.attention(query, key, value, segment_ids, causal=causal)
