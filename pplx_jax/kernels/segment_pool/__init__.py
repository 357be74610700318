"""One vector a text, or a chunk (late chunking), from packed rows: the public face, which picks an implementation."""

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
    """Mean of the hidden states of each slot's own tokens, quantized on the way out where asked.

    Where no implementation is given: on a TPU the Pallas kernel, which reads the hidden states once and writes the
    vectors once, elsewhere XLA. Within `jax.set_mesh` it runs on each device's tokens, and sums are added up where
    tokens of a row are on several.

    Args:
      hidden: [B, L, D].
      chunk_ids: [B, L]; a token of slot s carries s + 1, padding and separators carry 0.
      slots: S; ids above it would be dropped, so the packer holds rows to it.
      output: "mean", the pooled vector v; "tanh_int8", `tanh_int8(v)`, differentiable by straight-through; "int8",
        the same as real int8, not differentiable.
      rounding: of the quantized outputs.
      implementation: forced, where given.

    Returns:
      [B, S, D], float32 or int8, zero for an empty slot; and the tokens of each slot, [B, S] float32.

    Raises:
      BadInput: an unknown output, or a forced implementation that is unknown or cannot run here.
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
                f"segment_pool: implementation 'pallas' wants a TPU, this is {jax.default_backend()}; leave it out"
            )
        return kernel(hidden, chunk_ids)
    if implementation == "reference" or slots > pallas.MOST_SLOTS:
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
    run = functools.partial(pallas.segment_pool, rounding=rounding, interpret=interpret, **options)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(hidden, chunk_ids, output=output)
    tokens = spec(("rows", "tokens"), chunk_ids.shape, mesh)
    rows, sharing = tokens

    def local(hidden, chunk_ids):
        if not sharing:
            return run(hidden, chunk_ids, output=output)
        mean, counts = run(hidden, chunk_ids, output="mean")
        total, counts = jax.lax.psum((mean * counts[..., None], counts), sharing)
        mean = total / jnp.maximum(counts, 1.0)[..., None]
        if output == "mean":
            return mean, counts
        quantized = tanh_int8(mean, rounding)
        return quantized.astype(jnp.int8) if output == "int8" else quantized, counts

    out = PartitionSpec(rows)
    return jax.shard_map(local, in_specs=(tokens, tokens), out_specs=out, check_vma=False)(hidden, chunk_ids)
