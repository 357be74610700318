"""The exact gradient of a loss over a whole batch at the memory of a microbatch (GradCache, arXiv 2101.06983)."""

from collections.abc import Callable
from typing import Any

import jax

from pplx_jax.core.errors import BadInput


def encode_in_microbatches(encode: Callable[[Any, Any], Any], params: Any, batch: Any, microbatches: int) -> Any:
    """Computes `encode(params, batch)` one microbatch at a time, and saves only embeddings for the backward pass.

    A contrastive loss couples all examples, so the gradients of separate microbatches cannot be added up. But the loss
    depends on the embeddings only. Once the gradient of each embedding is known, each microbatch is encoded again to
    propagate it to the parameters. Reverse differentiation of a scan of rematerialized steps does exactly that: it
    recomputes one microbatch after another and sums their gradients in its carry.

    Memory for activations is that of one microbatch at any batch size. The tokens, the embeddings and the arrays of the
    loss still grow with the batch. The cost is a second forward pass.

    Args:
      encode: (params, microbatch) -> embeddings, trees of arrays; entry i of the output belongs to entry i of the
        input.
      params: passed to every call.
      batch: tree of arrays [B, ...].
      microbatches: M, number of microbatches; 1 encodes the batch at once, without recomputation.

    Returns:
      Embeddings of the whole batch, [B, ...], in its order.

    Raises:
      BadInput: M is less than 1 or does not divide B.

    Example:
      `jax.grad(lambda params: loss(encode_in_microbatches(encode, params, batch, 8)))(params)`
    """
    if microbatches == 1:
        return encode(params, batch)
    parts = in_microbatches(batch, microbatches)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    # The scan puts the forward and the backward pass into separate loops, so CSE cannot undo the recomputation.
    rematerialized = jax.checkpoint(encode, prevent_cse=False)
    _, embeddings = jax.lax.scan(lambda _, microbatch: (None, rematerialized(params, microbatch)), None, parts)
    return jax.tree.map(join, embeddings)


def in_microbatches(batch: Any, microbatches: int) -> Any:
    """Returns the batch with its first axis split, [M, B / M, ...]. Microbatch m takes the sequences m, M + m, ...

    If the devices hold equal blocks of the batch, each has an equal part of every microbatch, and no sequence moves to
    another device.

    Raises:
      BadInput: as `encode_in_microbatches`.
    """
    sequences = jax.tree.leaves(batch)[0].shape[0]
    if microbatches < 1 or sequences % microbatches:
        raise BadInput(
            f"{sequences} sequences cannot be encoded in {microbatches} equal microbatches; set microbatches to a "
            "divisor of the sequences"
        )
    return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
