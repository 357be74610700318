"""Attention over packed rows: the public face, which picks an implementation."""

import functools
from typing import Literal, get_args

import jax
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.attention import blockwise, pallas, reference, triton
from pplx_jax.kernels.platform import by_platform, platform
from pplx_jax.parallel.rules import spec

Implementation = Literal["reference", "blockwise", "pallas", "triton"]
# Longest row whose scores XLA holds at once. Up to here one product of whole rows is the faster way.
WHOLE_ROWS = 1024


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention within each text of packed rows; arguments and result as of `reference.attention`.

    Where None is given: on a TPU and on an NVIDIA GPU their kernels, elsewhere whole rows in XLA where they are short,
    else a block of queries at a time. Within `jax.set_mesh`, each device works on its own rows, heads and queries;
    where tokens of a row are on several devices, keys and values are gathered.

    Raises:
      BadInput: the forced implementation cannot run here, or is unknown; a causal mask over rows that several TPUs
        share.
    """
    xla = functools.partial(_on_mesh, _whole if query.shape[1] <= WHOLE_ROWS else _blocks, causal=causal)
    tpu, cuda = (functools.partial(_on_mesh, run, causal=causal) for run in (_pallas, _triton))
    if implementation is None:
        return by_platform(query, key, value, segment_ids, tpu=tpu, cuda=cuda, default=xla)
    kernels = {"pallas": ("tpu", "a TPU", tpu), "triton": ("cuda", "an NVIDIA GPU", cuda)}
    if implementation in kernels:
        wanted, words, run = kernels[implementation]
        if platform() != wanted:
            raise BadInput(
                f"attention: implementation {implementation!r} wants {words}, this is {jax.default_backend()}; "
                f"leave it out, or call {implementation}.attention(interpret=True) to try it"
            )
        return run(query, key, value, segment_ids)
    if implementation not in get_args(Implementation):
        raise BadInput(
            f"attention: implementation {implementation!r} is not one of {', '.join(get_args(Implementation))}"
        )
    chosen = {"reference": _whole, "blockwise": _blocks}[implementation]
    return _on_mesh(chosen, query, key, value, segment_ids, causal=causal)


def _on_mesh(run, query, key, value, segment_ids, *, causal: bool) -> jax.Array:
    """`run` on each device's share: no compiler can split a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(query, key, value, segment_ids, segment_ids, first=0, causal=causal)
    queries = spec(("rows", "tokens", "kv_heads", None), key.shape, mesh)
    sharing = queries[1]
    if causal and sharing and run is _pallas:
        raise BadInput(f"attention: TPU kernels have no causal mask over rows shared along {sharing}; set it to 1")

    def local(query, key, value, segment_ids):
        first, key_ids = 0, segment_ids
        if sharing:
            first = jax.lax.axis_index(sharing) * query.shape[1]
            key, value, key_ids = (jax.lax.all_gather(x, sharing, axis=1, tiled=True) for x in (key, value, key_ids))
        return run(query, key, value, segment_ids, key_ids, first=first, causal=causal)

    specs = (queries, queries, queries, PartitionSpec(*queries[:2]))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(query, key, value, segment_ids)


def _pallas(query, key, value, ids, key_ids, *, first, causal: bool, interpret: bool = False) -> jax.Array:
    del first
    others = None if key_ids is ids else key_ids
    return pallas.attention(query, key, value, ids, key_segment_ids=others, causal=causal, interpret=interpret)


def _triton(query, key, value, ids, key_ids, *, interpret: bool = False, **options) -> jax.Array:
    return triton.attention(query, key, value, ids, key_segment_ids=key_ids, interpret=interpret, **options)


def _whole(query, key, value, ids, key_ids, *, first, causal: bool) -> jax.Array:
    return reference.block_attention(query, key, value, ids, key_ids, first=first, causal=causal)


def _blocks(query, key, value, ids, key_ids, *, first, causal: bool) -> jax.Array:
    return blockwise.attention(query, key, value, ids, key_segment_ids=key_ids, first=first, causal=causal)
