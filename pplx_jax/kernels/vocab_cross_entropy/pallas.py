"""One chunk of positions at a time by two Pallas kernels for TPUs: scores go to HBM once, rounded, and are read once.

The first kernel computes a block of scores and their exponentials relative to the block's own maximum, so that nothing
overflows and the maximum of the whole vocabulary is not needed yet. XLA joins the sums of the blocks. The second kernel
turns exponentials into probabilities with one factor per block, and probabilities into both gradients. No score is
computed twice.

The exponentials are rounded as the probabilities would be before they enter a product. The difference to the target
loses no digits: if the probability of the target is over a half, its score is the maximum of its block and its
exponential is exactly 1.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.products import dot_general
from pplx_jax.kernels.vocab_cross_entropy.compaction import Chunk, Loss, loss_over_chunks
from pplx_jax.kernels.vocab_cross_entropy.tiles import LANES, Tiles, choose_tiles

_CONTRACT_LAST = (((1,), (1,)), ((), ()))
_CONTRACT = (((1,), (0,)), ((), ()))
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))
_MASK_VALUE = -1e30  # score of a class that only fills up a block


def losses(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    with_gradient: bool,
    tiles: Tiles | None = None,
    device_kind: str = "",
    interpret: bool = False,
) -> Loss:
    """Returns what `chunked.losses` returns, for any number of positions and classes and any width.

    Args:
      hidden, table, targets, weights, with_gradient: as for `chunked.losses`.
      tiles: block sizes; `choose_tiles` if None.
      device_kind: as JAX names it, if known.
      interpret: run without a TPU, slowly.

    Raises:
      BadInput: tiles that do not fit in VMEM.
    """
    vocabulary, width = table.shape
    padded_width, itemsize = -(-width // LANES) * LANES, hidden.dtype.itemsize
    tiles = tiles or choose_tiles(targets.shape[0], padded_width, itemsize, device_kind)
    tiles.require(padded_width, itemsize)
    wide = (0, padded_width - width)
    hidden, table = (jnp.pad(x, ((0, 0), wide)) for x in (hidden, table))
    chunk_loss = functools.partial(_chunk_loss, table=table, tiles=tiles, interpret=interpret)
    shape = (vocabulary, padded_width) if with_gradient else None
    found = loss_over_chunks(chunk_loss, hidden, targets, weights, chunk=tiles.chunk, table_shape=shape)
    return jax.tree.map(lambda x: x[:, :width] if x.ndim == 2 else x, found)


def _chunk_loss(part: Chunk, table_gradient, *, table, tiles: Tiles, interpret: bool):
    common = {"tiles": tiles, "interpret": interpret}
    found = scores(part.hidden, table, part.live, with_exponentials=table_gradient is not None, **common)
    maximum = found.maximum.max(axis=(0, 1))
    logsumexp = maximum + jnp.log(jnp.sum(found.total * jnp.exp(found.maximum - maximum), axis=(0, 1)))
    target_rows = table.at[part.targets].get(mode="fill", fill_value=jnp.nan)
    target_scores = jnp.sum(part.hidden.astype(jnp.float32) * target_rows.astype(jnp.float32), axis=1)
    cross_entropy = logsumexp - target_scores
    if table_gradient is None or found.exponentials is None:
        return cross_entropy, None, None
    factor = jnp.exp(found.maximum - logsumexp) * part.weights
    hidden_gradient, table_gradient = gradients(part, table, found.exponentials, factor, table_gradient, **common)
    return cross_entropy, hidden_gradient, table_gradient


class Scores(NamedTuple):
    """Result of the first kernel for a chunk. "Group" means `block_v_max` classes, which share a maximum.

    Attributes:
      exponentials: [padded V, chunk], e^(score - maximum of its group), in the dtype of the hidden states; None without
        gradients.
      maximum: [V / block_v, groups, chunk] float32, the maximum of each group.
      total: [V / block_v, groups, chunk] float32, the sum of its exponentials before rounding.
    """

    exponentials: jax.Array | None
    maximum: jax.Array
    total: jax.Array


def scores(
    hidden: jax.Array, table: jax.Array, live: jax.Array, *, tiles: Tiles, with_exponentials: bool, interpret: bool
) -> Scores:
    """Returns the scores of a chunk of positions.

    Args:
      hidden: [chunk, D].
      table: [V, D] in the dtype of `hidden`.
      live: int32 scalar; positions from there on may be skipped.
      tiles: block sizes.
      with_exponentials: whether to return the exponentials.
      interpret: run without a TPU, slowly.
    """
    (chunk, width), vocabulary = hidden.shape, table.shape[0]
    count = pl.cdiv(vocabulary, tiles.block_v)
    groups = tiles.block_v // tiles.block_v_max
    statistic = pl.BlockSpec((None, groups, tiles.block_t), lambda v, t, live: (v, 0, t))
    exponentials = pl.BlockSpec((tiles.block_v, tiles.block_t), lambda v, t, live: (v, t))
    statistic_shape = jax.ShapeDtypeStruct((count, groups, chunk), jnp.float32)
    outputs = pl.pallas_call(
        functools.partial(_scores_kernel, vocabulary=vocabulary),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(count, chunk // tiles.block_t),
            in_specs=[
                pl.BlockSpec((chunk, width), lambda v, t, live: (0, 0)),
                pl.BlockSpec((tiles.block_v, width), lambda v, t, live: (v, 0)),
            ],
            out_specs=[statistic, statistic, *([exponentials] if with_exponentials else [])],
        ),
        out_shape=[
            statistic_shape,
            statistic_shape,
            *([jax.ShapeDtypeStruct((count * tiles.block_v, chunk), hidden.dtype)] if with_exponentials else []),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="vocab_scores",
    )(live[None], hidden, table)
    return Scores(outputs[2] if with_exponentials else None, outputs[0], outputs[1])


def _scores_kernel(live_ref, hidden_ref, table_ref, max_ref, total_ref, *exponentials_ref, vocabulary: int):
    block_v, block_t = table_ref.shape[0], max_ref.shape[1]
    first = pl.multiple_of(pl.program_id(1) * block_t, block_t)
    remaining = vocabulary - pl.program_id(0) * block_v

    @pl.when(first < live_ref[0])
    def _():
        hidden, groups = hidden_ref[pl.ds(first, block_t), :], max_ref.shape[0]
        for group in range(groups):
            classes = slice(group * block_v // groups, (group + 1) * block_v // groups)
            values = dot_general(table_ref[classes, :], hidden, _CONTRACT_LAST)
            if vocabulary % block_v:
                number = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0) + classes.start
                values = jnp.where(number < remaining, values, _MASK_VALUE)
            maximum = values.max(axis=0, keepdims=True)
            exponentials = jnp.exp(values - maximum)
            max_ref[group : group + 1, :] = maximum
            total_ref[group : group + 1, :] = exponentials.sum(axis=0, keepdims=True)
            for ref in exponentials_ref:
                ref[classes, :] = exponentials.astype(ref.dtype)


def gradients(
    part: Chunk,
    table: jax.Array,
    exponentials: jax.Array,
    factor: jax.Array,
    table_gradient: jax.Array,
    *,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the sum of weights * cross-entropy over a chunk.

    Args:
      part: the chunk.
      table, tiles, interpret: as for `scores`.
      exponentials: of `scores`.
      factor: [V / block_v, groups, chunk]; times an exponential of the group it is weight * probability.
      table_gradient: [V, D] float32, added to in place.

    Returns:
      The gradient of the chunk's hidden states in float32, and `table_gradient` with the chunk's added.
    """
    (chunk, width), vocabulary = part.hidden.shape, table.shape[0]
    block_d = tiles.block_d(width)
    positions = pl.BlockSpec((1, tiles.block_t), lambda d, v, t, live: (0, t))
    hidden = pl.BlockSpec((chunk, block_d), lambda d, v, t, live: (0, d))
    classes = pl.BlockSpec((tiles.block_v, block_d), lambda d, v, t, live: (v, d))
    return pl.pallas_call(
        functools.partial(_gradients_kernel, vocabulary=vocabulary),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(width // block_d, pl.cdiv(vocabulary, tiles.block_v), chunk // tiles.block_t),
            in_specs=[
                hidden,
                classes,
                pl.BlockSpec((tiles.block_v, tiles.block_t), lambda d, v, t, live: (v, t)),
                pl.BlockSpec((None, factor.shape[1], tiles.block_t), lambda d, v, t, live: (v, 0, t)),
                positions,
                positions,
                classes,
            ],
            out_specs=[hidden, classes],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((chunk, width), jnp.float32),
            jax.ShapeDtypeStruct(table_gradient.shape, jnp.float32),
        ],
        input_output_aliases={7: 1},  # inputs include the prefetched scalar
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="vocab_gradients",
    )(part.live[None], part.hidden, table, exponentials, factor, part.targets[None], part.weights[None], table_gradient)


class _GradientRefs(NamedTuple):
    """Blocks of the arrays of `gradients`; `hidden` and `hidden_gradient` are of the whole chunk."""

    live: Any
    hidden: Any
    table: Any
    exponentials: Any
    factor: Any
    targets: Any
    weights: Any
    previous: Any
    hidden_gradient: Any
    table_gradient: Any


def _gradients_kernel(*all_refs, vocabulary: int):
    refs = _GradientRefs(*all_refs)
    block_v, block_t = refs.exponentials.shape
    v, t = pl.program_id(1), pl.program_id(2)
    first = pl.multiple_of(t * block_t, block_t)
    positions = pl.ds(first, block_t)
    excess = vocabulary % block_v  # the last block of classes ends there; the rest of it is undefined

    if excess:

        @pl.when((v == vocabulary // block_v) & (t == 0))
        def _():
            number = jax.lax.broadcasted_iota(jnp.int32, refs.table.shape, 0)
            masked = jnp.where(number < excess, refs.table[...].astype(jnp.float32), 0.0)
            refs.table[...] = masked.astype(refs.table.dtype)

    @pl.when(t == 0)
    def _():
        refs.table_gradient[...] = refs.previous[...]

    @pl.when(v == 0)
    def _():
        refs.hidden_gradient[positions, :] = jnp.zeros((block_t, refs.hidden_gradient.shape[1]), jnp.float32)

    @pl.when(first < refs.live[0])
    def _():
        number = jax.lax.broadcasted_iota(jnp.int32, (block_v, block_t), 0) + v * block_v
        exponentials = refs.exponentials[...].astype(jnp.float32).reshape(refs.factor.shape[0], -1, block_t)
        expected = (exponentials * refs.factor[...][:, None]).reshape(block_v, block_t)
        gradient = expected - jnp.where(number == refs.targets[...], refs.weights[...], 0.0)
        gradient = gradient.astype(refs.hidden.dtype)
        refs.table_gradient[...] += dot_general(gradient, refs.hidden[positions, :], _CONTRACT)
        refs.hidden_gradient[positions, :] += dot_general(gradient, refs.table[...], _CONTRACT_FIRST)
