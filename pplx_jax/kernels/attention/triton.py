"""Attention over packed rows as Pallas kernels for NVIDIA GPUs, by way of Triton, forward and backward.

The algorithm is FlashAttention-2 (arXiv 2307.08691). A program works a block of queries, or of keys, against the
stretch of blocks that its texts can meet, read from a small table: a packed row costs what its texts cost. Arrays stay
[B, L, heads, E]; query heads of a group read the same keys and values, which are not repeated.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pplx_jax.core.errors import require
from pplx_jax.kernels.attention.forward_kernel import UNSEEN
from pplx_jax.kernels.attention.visits import stretches
from pplx_jax.kernels.products import product

_LEAST = 16  # rows and columns of a product


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one pass.

    Attributes:
      query: queries of a block.
      key: keys of a block.
      warps: of a program.
      stages: blocks that are on their way at once.

    Raises:
      BadInput: a size is no power of 2 from 16.
    """

    query: int
    key: int
    warps: int
    stages: int

    def __post_init__(self):
        for name in ("query", "key"):
            size = getattr(self, name)
            require(size >= _LEAST and size & (size - 1) == 0, self, name, f"a power of 2 from {_LEAST}")


def best(columns: int, itemsize: int) -> tuple[Blocks, Blocks]:
    """Blocks of the forward and of the backward pass that fit the shared memory of every GPU from compute capability
    8.0 on, and whose registers do not spill on an H100 at 128 columns of bfloat16; no GPU has timed them.

    Args:
      columns: of a head.
      itemsize: bytes of an element of queries, keys and values.
    """
    if columns * itemsize > 256:
        return Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)
    return Blocks(128, 64, 8, 2), Blocks(64, 64, 4, 2)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    first: jax.Array | int = 0,
    causal: bool = False,
    blocks: tuple[Blocks, Blocks] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `reference.attention` returns, in memory linear in L; blocks whose texts do not meet cost nothing.

    Args:
      query: [B, Q, H, E]; any length, any head_dim.
      key: [B, L, K, E].
      value: [B, L, K, E].
      segment_ids: [B, Q].
      key_segment_ids: [B, L], where the queries are a part of the row (context parallelism); else those of the queries.
      first: place of the first query among the keys.
      causal: as of `reference.attention`.
      blocks: of the forward and of the backward pass; `best` where None.
      interpret: run without a GPU, slowly.

    Returns:
      [B, Q, H, E] in the dtype of `query`.
    """
    length, head_dim = query.shape[1], query.shape[3]
    ids = segment_ids.astype(jnp.int32)
    key_ids = ids if key_segment_ids is None else key_segment_ids.astype(jnp.int32)
    columns = max(_LEAST, pl.next_power_of_2(head_dim))
    blocks = blocks or best(columns, query.dtype.itemsize)
    query_multiple, key_multiple = (math.lcm(*sizes) for sizes in zip(*((b.query, b.key) for b in blocks), strict=True))

    def padded(x: jax.Array, multiple: int) -> jax.Array:
        more = -x.shape[1] % multiple
        return jnp.pad(x, ((0, 0), (0, more)) + ((0, 0), (0, columns - head_dim)) * (x.ndim == 4))

    arrays = (padded(query, query_multiple), *(padded(x, key_multiple) for x in (key, value)))
    ids, key_ids = padded(ids, query_multiple), padded(key_ids, key_multiple)
    first = jnp.asarray(first, jnp.int32).reshape(1)
    mixed = _attention(*arrays, ids, key_ids, first, head_dim**-0.5, causal, blocks, interpret)
    return mixed[:, :length, :, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9))
def _attention(query, key, value, ids, key_ids, first, scale, causal, blocks, interpret):
    return _forward(query, key, value, ids, key_ids, first, scale, causal, blocks, interpret)[0]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A pass over blocks: shapes, and which part of each array a program sees. A program is of block, row and head."""

    query: jax.Array
    key: jax.Array
    blocks: Blocks
    by_key: bool = False

    @property
    def group(self) -> int:
        return self.query.shape[2] // self.key.shape[2]

    @property
    def grid(self) -> tuple[int, int, int]:
        array, size = (self.key, self.blocks.key) if self.by_key else (self.query, self.blocks.query)
        return array.shape[1] // size, array.shape[0], array.shape[2]

    def bounds(self) -> list[pl.BlockSpec]:
        """Of what says which blocks a program meets: [1], and twice [B, blocks]."""
        each = pl.BlockSpec((None, 1), lambda block, row, head: (row, block))
        return [pl.BlockSpec((1,), lambda block, row, head: (0,)), each, each]

    def ids(self, array: jax.Array, size: int | None) -> pl.BlockSpec:
        """Of [B, L]: a block of `size`, all where None."""
        if size is None:
            return pl.BlockSpec((None, array.shape[1]), lambda block, row, head: (row, 0))
        return pl.BlockSpec((None, size), lambda block, row, head: (row, block))

    def own(self, array: jax.Array, size: int) -> pl.BlockSpec:
        """Of [B, L, heads, E]: a program's block."""
        return pl.BlockSpec((None, size, None, array.shape[3]), lambda block, row, head: (row, block, head, 0))

    def own_sums(self, size: int) -> pl.BlockSpec:
        """Of [B, H, L]."""
        return pl.BlockSpec((None, None, size), lambda block, row, head: (row, head, block))

    def keys(self) -> pl.BlockSpec:
        """Of [B, L, K, E]: all that a query head meets."""
        _, length, _, columns = self.key.shape
        group = self.group
        return pl.BlockSpec((None, length, None, columns), lambda block, row, head: (row, 0, head // group, 0))

    def queries(self) -> pl.BlockSpec:
        """Of [B, L, H, E]: all that a key head meets."""
        _, length, _, columns = self.query.shape
        return pl.BlockSpec((None, length, self.group, columns), lambda block, row, head: (row, 0, head, 0))

    def sums(self) -> pl.BlockSpec:
        """Of [B, H, L]: all of a key head's group."""
        return pl.BlockSpec((None, self.group, self.query.shape[1]), lambda block, row, head: (row, head, 0))

    def run(self, body: Any, name: str, interpret: bool, **specs: Any) -> Any:
        return pl.pallas_call(
            body,
            grid=self.grid,
            compiler_params=triton.CompilerParams(num_warps=self.blocks.warps, num_stages=self.blocks.stages),
            interpret=interpret,
            name=name,
            **specs,
        )


def _of_queries(ids: jax.Array) -> jax.Array:
    """[B, Q]: padding sees no key, padding or not."""
    return jnp.where(ids == 0, -1, ids)


def _visible(query_ids, key_ids, first_query, first_key, causal: bool, *, transposed: bool = False) -> jax.Array:
    """[queries, keys]: which pairs meet; or [keys, queries]."""

    def pairs(of_queries, of_keys):
        return (of_queries[None], of_keys[:, None]) if transposed else (of_queries[:, None], of_keys[None])

    of_queries, of_keys = pairs(query_ids, key_ids)
    visible = of_queries == of_keys
    if causal:
        places = first_query + jnp.arange(query_ids.shape[0]), first_key + jnp.arange(key_ids.shape[0])
        of_queries, of_keys = pairs(*places)
        visible &= of_queries >= of_keys
    return visible


def _forward(query, key, value, ids, key_ids, first, scale, causal, blocks, interpret):
    call = _Call(query, key, blocks[0])
    size, step = call.blocks.query, call.blocks.key
    start, stop = stretches(ids, key_ids, size, step, causal=causal, offset=first[0])

    def body(first_ref, start_ref, stop_ref, query_ref, key_ref, value_ref, ids_ref, key_ids_ref, out_ref, lse_ref):
        query, own_ids, place = query_ref[...], ids_ref[...], first_ref[0] + pl.program_id(0) * size

        def work(block, carried):
            mixed, most, total = carried
            part = pl.ds(block * step, step)
            scores = product(query, key_ref[part, :], transposed=True) * (scale * math.log2(math.e))
            visible = _visible(own_ids, key_ids_ref[part], place, block * step, causal)
            scores = jnp.where(visible, scores, UNSEEN)
            now = jnp.maximum(most, scores.max(axis=1))
            weights = jnp.where(visible, jnp.exp2(scores - now[:, None]), 0.0)
            decay = jnp.exp2(most - now)
            value = value_ref[part, :]
            mixed = mixed * decay[:, None] + product(weights.astype(value.dtype), value)
            return mixed, now, total * decay + weights.sum(axis=1)

        carried = jnp.zeros(query.shape, jnp.float32), jnp.full((size,), UNSEEN), jnp.zeros((size,), jnp.float32)
        mixed, most, total = jax.lax.fori_loop(start_ref[0], stop_ref[0], work, carried)
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        out_ref[...] = (mixed / total[:, None]).astype(out_ref.dtype)
        lse_ref[...] = jnp.where(seen, most + jnp.log2(total), 0.0)

    rows, length, heads, _ = query.shape
    mixed, lse = call.run(
        body,
        "attention_forward",
        interpret,
        in_specs=[
            *call.bounds(),
            call.own(query, size),
            call.keys(),
            call.keys(),
            call.ids(ids, size),
            call.ids(key_ids, None),
        ],
        out_specs=[call.own(query, size), call.own_sums(size)],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
    )(first, start, stop, query, key, value, _of_queries(ids), key_ids)
    mixed, lse = checkpoint_name(mixed, "attention"), checkpoint_name(lse, "attention")
    return mixed, (query, key, value, ids, key_ids, first, mixed, lse)


class _BackwardRefs(NamedTuple):
    """What both passes of the gradient read: all of an array, or a program's own block of it."""

    first: Any
    start: Any
    stop: Any
    query: Any
    key: Any
    value: Any
    ids: Any
    key_ids: Any
    gradient: Any
    lse: Any
    delta: Any


def _backward(scale, causal, blocks, interpret, saved, gradient):
    query, key, value, ids, key_ids, first, mixed, lse = saved
    delta = jnp.einsum("blhe,blhe->bhl", mixed, gradient, preferred_element_type=jnp.float32)
    gradient = gradient.astype(query.dtype)
    size, step = blocks[1].query, blocks[1].key

    def softmax(scores, lse, visible):
        return jnp.where(visible, jnp.exp2(scores * (scale * math.log2(math.e)) - lse), 0.0)

    def of_queries(*refs):
        at, of_query_ref = _BackwardRefs(*refs[:-1]), refs[-1]
        query, gradient, own_ids = at.query[...], at.gradient[...], at.ids[...]
        place = at.first[0] + pl.program_id(0) * size
        lse, delta = at.lse[...][:, None], at.delta[...][:, None]

        def work(block, of_query):
            part = pl.ds(block * step, step)
            key, visible = at.key[part, :], _visible(own_ids, at.key_ids[part], place, block * step, causal)
            weights = softmax(product(query, key, transposed=True), lse, visible)
            scores_gradient = weights * (product(gradient, at.value[part, :], transposed=True) - delta)
            return of_query + product(scores_gradient.astype(key.dtype), key)

        of_query = jax.lax.fori_loop(at.start[0], at.stop[0], work, jnp.zeros(query.shape, jnp.float32))
        of_query_ref[...] = (of_query * scale).astype(of_query_ref.dtype)

    def of_keys(*refs):
        at, of_key_ref, of_value_ref = _BackwardRefs(*refs[:-2]), *refs[-2:]
        key, value, own_ids, place = at.key[...], at.value[...], at.key_ids[...], pl.program_id(0) * step

        def work(block, carried, head):
            of_key, of_value = carried
            part = pl.ds(block * size, size)
            query, gradient = at.query[part, head, :], at.gradient[part, head, :]
            visible = _visible(at.ids[part], own_ids, at.first[0] + block * size, place, causal, transposed=True)
            weights = softmax(product(key, query, transposed=True), at.lse[head, part][None], visible)
            of_value += product(weights.astype(value.dtype), gradient)
            scores_gradient = weights * (product(value, gradient, transposed=True) - at.delta[head, part][None])
            return of_key + product(scores_gradient.astype(key.dtype), query), of_value

        carried = (jnp.zeros(key.shape, jnp.float32),) * 2
        for head in range(at.query.shape[1]):
            carried = jax.lax.fori_loop(at.start[0], at.stop[0], functools.partial(work, head=head), carried)
        of_key_ref[...] = (carried[0] * scale).astype(of_key_ref.dtype)
        of_value_ref[...] = carried[1].astype(of_value_ref.dtype)

    bounds = functools.partial(stretches, ids, key_ids, size, step, causal=causal, offset=first[0])
    arrays = (query, key, value, _of_queries(ids), key_ids, gradient, lse, delta)
    call = _Call(query, key, blocks[1])
    of_query = call.run(
        of_queries,
        "attention_backward_queries",
        interpret,
        in_specs=[
            *call.bounds(),
            call.own(query, size),
            call.keys(),
            call.keys(),
            call.ids(ids, size),
            call.ids(key_ids, None),
            call.own(query, size),
            call.own_sums(size),
            call.own_sums(size),
        ],
        out_specs=call.own(query, size),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
    )(first, *bounds(), *arrays)
    call = _Call(query, key, blocks[1], by_key=True)
    of_key, of_value = call.run(
        of_keys,
        "attention_backward_keys",
        interpret,
        in_specs=[
            *call.bounds(),
            call.queries(),
            call.own(key, step),
            call.own(key, step),
            call.ids(ids, None),
            call.ids(key_ids, step),
            call.queries(),
            call.sums(),
            call.sums(),
        ],
        out_specs=[call.own(key, step), call.own(key, step)],
        out_shape=[jax.ShapeDtypeStruct(key.shape, key.dtype), jax.ShapeDtypeStruct(value.shape, value.dtype)],
    )(first, *bounds(by_key=True), *arrays)
    return of_query, of_key, of_value, None, None, None


_attention.defvjp(_forward, _backward)
