"""Pooling of packed sequences, one vector per text or per chunk (late chunking): the public function, which chooses an
implementation."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.platform import by_platform, platform
from pplx_jax.kernels.quantization import Rounding, tanh_int8
from pplx_jax.kernels.segment_pool import pallas, reference
from pplx_jax.kernels.segment_pool.pallas import Output
from pplx_jax.parallel.rules import spec

Implementation = Literal["reference", "pallas"]


def segment_pool(
    hidden: jax.Array,
    chunk_ids: jax.Array,
    slots: int,
    *,
    output: Output = "mean",
    rounding: Rounding = "half_even",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the means of the hidden states of each slot's tokens, quantized if requested.

    If no implementation is given, TPUs use the Pallas kernel, which reads the hidden states once and writes the vectors
    once; other devices use XLA. Within `jax.set_mesh` it runs on each device's tokens; if several devices share a
    sequence, their sums are added up.

    Args:
      hidden: [B, L, D].
      chunk_ids: [B, L]; s + 1 for a token of slot s, 0 for padding and separators.
      slots: S. Larger ids would be dropped, so the packer fills at most S slots per sequence.
      output: "mean", the pooled vector v; "tanh_int8", `tanh_int8(v)`, differentiable by the straight-through
        estimator; "int8", the same as an int8 array, not differentiable.
      rounding: of the quantized outputs.
      implementation: the implementation to use.

    Returns:
      [B, S, D], float32 or int8, zero for an empty slot; and the number of tokens of each slot, [B, S] float32.

    Raises:
      BadInput: the output is unknown, or the implementation is unknown or cannot run here.
    """
    if output not in get_args(Output):
        raise BadInput(f"segment_pool: output {output!r} is not one of {', '.join(get_args(Output))}")
    if implementation not in (None, *get_args(Implementation)):
        raise BadInput(
            f"segment_pool: implementation {implementation!r} is not one of {', '.join(get_args(Implementation))}"
        )
    options = {"slots": slots, "output": output, "rounding": rounding}
    xla = functools.partial(reference.segment_pool, **options)
    kernel = functools.partial(_on_mesh, **options)
    if implementation == "pallas":
        if platform() != "tpu":
            raise BadInput(
                f"segment_pool: implementation 'pallas' needs a TPU, this is {jax.default_backend()}; leave it out"
            )
        return kernel(hidden, chunk_ids)
    if implementation == "reference" or slots > pallas.MAX_SLOTS:
        return xla(hidden, chunk_ids)
    return by_platform(hidden, chunk_ids, tpu=kernel, default=xla)


def _on_mesh(
    hidden: jax.Array,
    chunk_ids: jax.Array,
    *,
    output: Output,
    rounding: Rounding,
    interpret: bool = False,
    **options,
):
    """Runs the kernel on each device's tokens."""
    run = functools.partial(pallas.segment_pool, rounding=rounding, interpret=interpret, **options)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(hidden, chunk_ids, output=output)
    tokens = spec(("rows", "tokens"), chunk_ids.shape, mesh)
    sequence_axes, token_axes = tokens

    def local(hidden, chunk_ids):
        if not token_axes:
            return run(hidden, chunk_ids, output=output)
        mean, counts = run(hidden, chunk_ids, output="mean")
        total, counts = jax.lax.psum((mean * counts[..., None], counts), token_axes)
        mean = total / jnp.maximum(counts, 1.0)[..., None]
        if output == "mean":
            return mean, counts
        quantized = tanh_int8(mean, rounding)
        return quantized.astype(jnp.int8) if output == "int8" else quantized, counts

    out = PartitionSpec(sequence_axes)
    return jax.shard_map(local, in_specs=(tokens, tokens), out_specs=out, check_vma=False)(hidden, chunk_ids)
