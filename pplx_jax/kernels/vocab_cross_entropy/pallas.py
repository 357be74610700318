"""A block of positions by two Pallas kernels for TPUs: scores leave the core once, rounded, and are read once.

The first kernel makes a tile of scores and its exponentials below the tile's own maximum, so that nothing overflows and
the maximum of the row need not be known yet. XLA joins the tiles' sums into the row's, and the second kernel turns
exponentials into probabilities by one factor a tile, and those into both gradients. Scores are not made twice.

What is kept is rounded as the probabilities would be before they enter a product. The difference to the target costs
no digits: where the target's probability is over a half, its score is its tile's maximum and its exponential exactly 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pplx_jax.kernels.products import dot_general
from pplx_jax.kernels.vocab_cross_entropy.live_blocks import Block, Loss, over_live_blocks
from pplx_jax.kernels.vocab_cross_entropy.tiles import LANES, Tiles, best

_CONTRACT_LAST = (((1,), (1,)), ((), ()))
_CONTRACT = (((1,), (0,)), ((), ()))
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))
_BELOW = -1e30  # the score of a row of the table that is only there to fill a tile


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
    """What `chunked.losses` returns; any number of positions and classes, any width.

    Args:
      hidden, table, targets, weights, with_gradient: as of `chunked.losses`.
      tiles: sizes; the best known where None.
      device_kind: as JAX names it, where known.
      interpret: run without a TPU, slowly.

    Raises:
      BadInput: tiles that do not fit the core's memory.
    """
    vocabulary, width = table.shape
    padded_width, itemsize = -(-width // LANES) * LANES, hidden.dtype.itemsize
    tiles = tiles or best(targets.shape[0], padded_width, itemsize, device_kind)
    tiles.require(padded_width, itemsize)
    wide = (0, padded_width - width)
    hidden, table = (jnp.pad(x, ((0, 0), wide)) for x in (hidden, table))
    one_block = functools.partial(_one_block, table=table, tiles=tiles, interpret=interpret)
    shape = (vocabulary, padded_width) if with_gradient else None
    found = over_live_blocks(one_block, hidden, targets, weights, block=tiles.block, table_shape=shape)
    return jax.tree.map(lambda x: x[:, :width] if x.ndim == 2 else x, found)


def _one_block(part: Block, of_table, *, table, tiles: Tiles, interpret: bool):
    common = {"tiles": tiles, "interpret": interpret}
    found = scores(part.hidden, table, part.live, keep=of_table is not None, **common)
    most = found.most.max(axis=(0, 1))
    log_normalizer = most + jnp.log(jnp.sum(found.total * jnp.exp(found.most - most), axis=(0, 1)))
    chosen = table.at[part.targets].get(mode="fill", fill_value=jnp.nan)
    picked = jnp.sum(part.hidden.astype(jnp.float32) * chosen.astype(jnp.float32), axis=1)
    cross_entropy = log_normalizer - picked
    if of_table is None or found.exponentials is None:
        return cross_entropy, None, None
    factor = jnp.exp(found.most - log_normalizer) * part.weights
    of_hidden, of_table = gradients(part, table, found.exponentials, factor, of_table, **common)
    return cross_entropy, of_hidden, of_table


class Scores(NamedTuple):
    """What the first kernel leaves of a block, the vocabulary first.

    Attributes:
      exponentials: [padded V, block], e^(score - the piece's maximum), in the dtype of the hidden states; None where
        no gradient is wanted.
      most: [tiles, pieces, block] float32, the maximum of each piece of the vocabulary.
      total: [tiles, pieces, block] float32, the sum of its exponentials before they are rounded.
    """

    exponentials: jax.Array | None
    most: jax.Array
    total: jax.Array


def scores(
    hidden: jax.Array, table: jax.Array, live: jax.Array, *, tiles: Tiles, keep: bool, interpret: bool
) -> Scores:
    """Scores of a block of positions.

    Args:
      hidden: [block, D].
      table: [V, D] in the dtype of `hidden`.
      live: int32 scalar; positions from there on may be left out.
      tiles: sizes.
      keep: whether the exponentials are wanted.
      interpret: run without a TPU, slowly.
    """
    (block, width), vocabulary = hidden.shape, table.shape[0]
    count = pl.cdiv(vocabulary, tiles.vocabulary)
    pieces = tiles.vocabulary // tiles.piece
    statistic = pl.BlockSpec((None, pieces, tiles.positions), lambda v, t, live: (v, 0, t))
    kept = pl.BlockSpec((tiles.vocabulary, tiles.positions), lambda v, t, live: (v, t))
    statistic_shape = jax.ShapeDtypeStruct((count, pieces, block), jnp.float32)
    outputs = pl.pallas_call(
        functools.partial(_scores_body, vocabulary=vocabulary, keep=keep),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(count, block // tiles.positions),
            in_specs=[
                pl.BlockSpec((block, width), lambda v, t, live: (0, 0)),
                pl.BlockSpec((tiles.vocabulary, width), lambda v, t, live: (v, 0)),
            ],
            out_specs=[statistic, statistic, *([kept] if keep else [])],
        ),
        out_shape=[
            statistic_shape,
            statistic_shape,
            *([jax.ShapeDtypeStruct((count * tiles.vocabulary, block), hidden.dtype)] if keep else []),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="vocab_scores",
    )(live[None], hidden, table)
    return Scores(outputs[2] if keep else None, outputs[0], outputs[1])


def _scores_body(live_ref, hidden_ref, table_ref, most_ref, total_ref, *kept, vocabulary: int, keep: bool):
    rows, positions = table_ref.shape[0], most_ref.shape[1]
    first = pl.multiple_of(pl.program_id(1) * positions, positions)
    remaining = vocabulary - pl.program_id(0) * rows

    @pl.when(first < live_ref[0])
    def _():
        hidden, pieces = hidden_ref[pl.ds(first, positions), :], most_ref.shape[0]
        for piece in range(pieces):
            part = slice(piece * rows // pieces, (piece + 1) * rows // pieces)
            values = dot_general(table_ref[part, :], hidden, _CONTRACT_LAST)
            if vocabulary % rows:
                row = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0) + part.start
                values = jnp.where(row < remaining, values, _BELOW)
            most = values.max(axis=0, keepdims=True)
            exponentials = jnp.exp(values - most)
            most_ref[piece : piece + 1, :] = most
            total_ref[piece : piece + 1, :] = exponentials.sum(axis=0, keepdims=True)
            if keep:
                kept[0][part, :] = exponentials.astype(kept[0].dtype)


def gradients(
    part: Block,
    table: jax.Array,
    exponentials: jax.Array,
    factor: jax.Array,
    of_table: jax.Array,
    *,
    tiles: Tiles,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of sum of weights * cross-entropy over a block.

    Args:
      part: the block.
      table, tiles, interpret: as of `scores`.
      exponentials: as `scores` left them.
      factor: [tiles, pieces, block], by which an exponential of a piece becomes weight * probability.
      of_table: [V, D] float32, added to in place.

    Returns:
      The gradient of the block's hidden states as float32, and `of_table` with the block's added.
    """
    (block, width), vocabulary = part.hidden.shape, table.shape[0]
    part_width = tiles.part(width)
    row = pl.BlockSpec((1, tiles.positions), lambda d, v, t, live: (0, t))
    wide = pl.BlockSpec((block, part_width), lambda d, v, t, live: (0, d))
    tile = pl.BlockSpec((tiles.vocabulary, part_width), lambda d, v, t, live: (v, d))
    return pl.pallas_call(
        functools.partial(_gradients_body, vocabulary=vocabulary),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(width // part_width, pl.cdiv(vocabulary, tiles.vocabulary), block // tiles.positions),
            in_specs=[
                wide,
                tile,
                pl.BlockSpec((tiles.vocabulary, tiles.positions), lambda d, v, t, live: (v, t)),
                pl.BlockSpec((None, factor.shape[1], tiles.positions), lambda d, v, t, live: (v, 0, t)),
                row,
                row,
                tile,
            ],
            out_specs=[wide, tile],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((block, width), jnp.float32),
            jax.ShapeDtypeStruct(of_table.shape, jnp.float32),
        ],
        input_output_aliases={7: 1},  # counted with the prefetched scalar
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiles.vmem_limit_bytes
        ),
        interpret=interpret,
        name="vocab_gradients",
    )(part.live[None], part.hidden, table, exponentials, factor, part.targets[None], part.weights[None], of_table)


def _gradients_body(
    live_ref,
    hidden_ref,
    table_ref,
    kept_ref,
    factor_ref,
    targets_ref,
    weights_ref,
    before_ref,
    of_hidden_ref,
    of_table_ref,
    *,
    vocabulary: int,
):
    rows, positions = kept_ref.shape
    v, t = pl.program_id(1), pl.program_id(2)
    first = pl.multiple_of(t * positions, positions)
    here = pl.ds(first, positions)
    beyond = vocabulary % rows  # of the last tile, classes from there on are not of the table: what is read is anything

    if beyond:

        @pl.when((v == vocabulary // rows) & (t == 0))
        def _():
            row = jax.lax.broadcasted_iota(jnp.int32, table_ref.shape, 0)
            table_ref[...] = jnp.where(row < beyond, table_ref[...].astype(jnp.float32), 0.0).astype(table_ref.dtype)

    @pl.when(t == 0)
    def _():
        of_table_ref[...] = before_ref[...]

    @pl.when(v == 0)
    def _():
        of_hidden_ref[here, :] = jnp.zeros((positions, of_hidden_ref.shape[1]), jnp.float32)

    @pl.when(first < live_ref[0])
    def _():
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, positions), 0) + v * rows
        kept = kept_ref[...].astype(jnp.float32).reshape(factor_ref.shape[0], -1, positions)
        expected = (kept * factor_ref[...][:, None]).reshape(rows, positions)
        of_scores = expected - jnp.where(row == targets_ref[...], weights_ref[...], 0.0)
        of_scores = of_scores.astype(hidden_ref.dtype)
        of_table_ref[...] += dot_general(of_scores, hidden_ref[here, :], _CONTRACT)
        of_hidden_ref[here, :] += dot_general(of_scores, table_ref[...], _CONTRACT_FIRST)
