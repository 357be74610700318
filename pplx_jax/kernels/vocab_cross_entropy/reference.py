"""Cross-entropy over a vocabulary with the logits in memory: the definition."""

import jax
import jax.numpy as jnp


def vocab_cross_entropy(
    hidden: jax.Array, embedding: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See `pplx_jax.kernels.vocab_cross_entropy`; holds [T, V] logits, for tests."""
    logits = jnp.einsum("td,vd->tv", hidden, embedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    cross_entropy = jax.nn.logsumexp(logits, axis=-1) - picked
    cross_entropy = jnp.where(weights != 0, cross_entropy, 0.0)
    return jnp.sum(cross_entropy * weights), jax.lax.stop_gradient(cross_entropy)
