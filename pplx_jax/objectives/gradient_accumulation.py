"""The exact gradient of a loss that is a sum over sequences, at the memory of a microbatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pplx_jax.objectives.gradient_cache import in_microbatches


def sum_in_microbatches(
    terms: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, batch: Any, microbatches: int
) -> tuple[jax.Array, Any]:
    """Adds up `terms(params, microbatch)` over the microbatches of a batch, one after another.

    For losses whose terms are normalised by counts of the whole batch: the sum is the loss of the whole batch. Unlike
    `encode_in_microbatches` it needs no second forward pass. The gradient of each microbatch is added to a float32 sum,
    which takes as much memory as the parameters. Nothing else of a microbatch stays in memory.

    Args:
      terms: (params, microbatch) -> (loss, metrics), a scalar and a tree of arrays; it may use other arrays that do not
        depend on the parameters.
      params: tree of arrays.
      batch: tree of arrays [B, ...].
      microbatches: M; 1 takes the batch at once.

    Returns:
      The sum of the losses, differentiable in `params`, and the sums of the metrics, without a gradient.

    Raises:
      BadInput: M is less than 1 or does not divide B.
    """
    if microbatches == 1:
        return terms(params, batch)

    def summed(function: Callable[[Any, Any], Any], params: Any, parts: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, params, first))
        return jax.lax.scan(
            lambda sums, part: (jax.tree.map(jnp.add, sums, function(params, part)), None), zeros, parts
        )[0]

    @jax.custom_vjp
    def total(params, parts):
        return summed(terms, params, parts)

    def forward(params, parts):
        return summed(jax.value_and_grad(terms, has_aux=True), params, parts)

    def backward(gradient, cotangents):
        return jax.tree.map(lambda part: part * cotangents[0].astype(part.dtype), gradient), None

    total.defvjp(forward, backward)
    return total(params, in_microbatches(batch, microbatches))
