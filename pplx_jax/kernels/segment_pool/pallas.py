"""Mean, tanh and INT8 in one pass over the hidden states, as a Pallas kernel for TPUs, and its gradient."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.products import dot_general
from pplx_jax.kernels.quantization import LEVELS, Rounding, tanh_int8
from pplx_jax.kernels.segment_pool.tiles import LANES, Tiles, choose_tiles

Output = Literal["mean", "tanh_int8", "int8"]
MAX_SLOTS = 1024  # per sequence; the sums of all of them stay in VMEM
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))
_CONTRACT = (((1,), (0,)), ((), ()))


def segment_pool(
    hidden: jax.Array,
    chunk_ids: jax.Array,
    slots: int,
    *,
    output: Output = "mean",
    rounding: Rounding = "half_even",
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns what `reference.segment_pool` returns, for any length, any width, and up to `MAX_SLOTS` slots.

    Args:
      hidden, chunk_ids, slots, output, rounding: as for `segment_pool.segment_pool`.
      tiles: block sizes; `choose_tiles` if None.
      interpret: run without a TPU, slowly.

    Raises:
      BadInput: too many slots, or tiles that do not fit in VMEM.
    """
    if slots > MAX_SLOTS:
        raise BadInput(
            f"segment_pool: {slots} slots per sequence, the kernel has at most {MAX_SLOTS}; pack fewer texts"
        )
    _, length, width = hidden.shape
    padded_slots = -(-slots // LANES) * LANES
    tiles = tiles or choose_tiles(length, width, padded_slots, hidden.dtype.itemsize)
    tiles.require(padded_slots, hidden.dtype.itemsize)
    padded = jnp.pad(hidden, ((0, 0), (0, -length % tiles.block_length), (0, -width % tiles.block_width)))
    ids = jnp.pad(chunk_ids.astype(jnp.int32), ((0, 0), (0, -length % tiles.block_length)))[:, None]
    vectors, counts = _pool(padded, ids, padded_slots, output, rounding, tiles, interpret)
    return vectors[:, :slots, :width], counts[:, :slots, 0]


def _members(ids_ref, slots: int) -> jax.Array:
    """Returns bool [S, L], whether a token belongs to a slot."""
    slot = jax.lax.broadcasted_iota(jnp.int32, (slots, ids_ref.shape[-1]), 0) + 1
    return slot == ids_ref[...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _pool(hidden, ids, slots, output, rounding, tiles, interpret):
    batch, length, width = hidden.shape
    return pl.pallas_call(
        functools.partial(_pool_kernel, output=output, rounding=rounding),
        grid=(batch, width // tiles.block_width, length // tiles.block_length),
        in_specs=[
            pl.BlockSpec((None, tiles.block_length, tiles.block_width), lambda b, d, t: (b, t, d)),
            pl.BlockSpec((None, 1, tiles.block_length), lambda b, d, t: (b, 0, t)),
        ],
        out_specs=[
            pl.BlockSpec((None, slots, tiles.block_width), lambda b, d, t: (b, 0, d)),
            pl.BlockSpec((None, slots, LANES), lambda b, d, t: (b, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((batch, slots, width), jnp.int8 if output == "int8" else jnp.float32),
            jax.ShapeDtypeStruct((batch, slots, LANES), jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((slots, tiles.block_width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="segment_pool",
    )(hidden, ids)


def _forward(hidden, ids, slots, output, rounding, tiles, interpret):
    if output == "int8":
        raise TypeError("segment_pool: output 'int8' is not differentiable; train with 'tanh_int8'")
    mean, counts = _pool(hidden, ids, slots, "mean", rounding, tiles, interpret)
    vectors = mean if output == "mean" else tanh_int8(mean, rounding)
    return (vectors, counts), (ids, mean, counts, jnp.zeros((0,), hidden.dtype))


def _pool_kernel(hidden_ref, ids_ref, out_ref, counts_ref, sum_scratch, *, output: Output, rounding: Rounding):
    slots = sum_scratch.shape[0]
    first = (pl.program_id(1) == 0) & (pl.program_id(2) == 0)

    @pl.when(pl.program_id(2) == 0)
    def _():
        sum_scratch[...] = jnp.zeros_like(sum_scratch)

    @pl.when(first)
    def _():
        counts_ref[...] = jnp.zeros_like(counts_ref)

    members = _members(ids_ref, slots)

    @pl.when(pl.program_id(1) == 0)
    def _():
        total = members.astype(jnp.float32).sum(axis=1, keepdims=True)
        counts_ref[...] += jnp.broadcast_to(total, counts_ref.shape)

    # A token outside every slot would enter the product as 0 * h, which is NaN if h is not finite.
    inside = jnp.broadcast_to(ids_ref[...], (LANES, ids_ref.shape[-1])).T[:, :1] > 0
    hidden = jnp.where(inside, hidden_ref[...], 0)
    sum_scratch[...] += dot_general(members.astype(hidden.dtype), hidden, _CONTRACT)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        mean = sum_scratch[...] / jnp.maximum(counts_ref[:, :1], 1.0)
        out_ref[...] = (mean if output == "mean" else tanh_int8(mean, rounding)).astype(out_ref.dtype)


def _backward(slots, output, rounding, tiles, interpret, saved, gradients):
    ids, mean, counts, hidden = saved
    gradient = gradients[0]
    if output == "tanh_int8":  # the straight-through estimator ignores the rounding
        gradient = gradient * LEVELS * (1.0 - jnp.square(jnp.tanh(mean)))
    token_gradient = gradient / jnp.maximum(counts[..., :1], 1.0)
    (batch, _, width), length = mean.shape, ids.shape[2]
    hidden_gradient = pl.pallas_call(
        functools.partial(_gradient_kernel, slots=slots),
        grid=(batch, width // tiles.block_width, length // tiles.block_length),
        in_specs=[
            pl.BlockSpec((None, slots, tiles.block_width), lambda b, d, t: (b, 0, d)),
            pl.BlockSpec((None, 1, tiles.block_length), lambda b, d, t: (b, 0, t)),
        ],
        out_specs=pl.BlockSpec((None, tiles.block_length, tiles.block_width), lambda b, d, t: (b, t, d)),
        out_shape=jax.ShapeDtypeStruct((batch, length, width), hidden.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="segment_pool_gradient",
    )(token_gradient.astype(hidden.dtype), ids)
    return hidden_gradient, None


def _gradient_kernel(gradient_ref, ids_ref, out_ref, *, slots: int):
    members = _members(ids_ref, slots).astype(gradient_ref.dtype)
    out_ref[...] = dot_general(members, gradient_ref[...], _CONTRACT_FIRST).astype(out_ref.dtype)


_pool.defvjp(_forward, _backward)
