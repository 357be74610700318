"""The exact gradient of a loss over a whole batch at the memory of a microbatch (GradCache, arXiv 2101.06983)."""

from collections.abc import Callable
from typing import Any

import jax

from pplx_jax.core.errors import BadInput


def encode_in_microbatches(encode: Callable[[Any, Any], Any], params: Any, batch: Any, microbatches: int) -> Any:
    """`encode(params, batch)`, one microbatch at a time; only embeddings are kept for the backward pass.

    A contrastive loss couples all examples, so gradients of microbatches cannot simply be added up. But it reads the
    embeddings alone: the gradient of every embedding is known once all are, and each microbatch is then encoded once
    more to carry it to the parameters. That is what reverse differentiation makes of a scan of rematerialised
    steps: a scan that recomputes one microbatch after another and sums their gradients in its carry.

    Activations are those of one microbatch at any batch size; what still grows with the batch are its tokens, its
    embeddings, and what the loss itself makes of them (a similarity matrix grows with its square). The price is one
    more forward pass.

    Args:
      encode: (params, microbatch) -> embeddings, trees of arrays; row i of the output belongs to row i of the input.
      params: passed to every call.
      batch: tree of arrays [B, ...].
      microbatches: M, how many parts; 1 encodes the batch as it is, without recomputation.

    Returns:
      Embeddings of the whole batch, [B, ...], in the order of its rows.

    Raises:
      BadInput: M is less than 1 or does not divide B.

    Example:
      `jax.grad(lambda params: loss(encode_in_microbatches(encode, params, batch, 8)))(params)`
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if microbatches < 1 or rows % microbatches:
        raise BadInput(
            f"gradient cache: {rows} rows cannot be encoded in {microbatches} equal microbatches; "
            "set microbatches to a divisor of the rows"
        )
    if microbatches == 1:
        return encode(params, batch)

    # Microbatch m takes rows m, M + m, ...: a batch whose rows are spread over devices in blocks gives every device
    # its equal share of each microbatch, and no row leaves its device.
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(rows, *x.shape[2:])

    # A scan keeps the forward and the backward pass in loops of their own, across which nothing is shared.
    rematerialised = jax.checkpoint(encode, prevent_cse=False)
    _, embeddings = jax.lax.scan(
        lambda _, microbatch: (None, rematerialised(params, microbatch)), None, jax.tree.map(split, batch)
    )
    return jax.tree.map(join, embeddings)
