"""Attention over packed sequences: the public function, which chooses an implementation."""

import functools
from typing import Literal, get_args

import jax
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.attention import blockwise, pallas, reference, triton
from pplx_jax.kernels.platform import by_platform, platform
from pplx_jax.parallel.rules import spec

Implementation = Literal["reference", "blockwise", "pallas", "triton"]
# Longest sequence for which XLA holds all scores at once. Up to here one product of whole sequences is faster.
MAX_REFERENCE_LENGTH = 1024


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention within each segment of packed sequences.

    If no implementation is given, TPUs and NVIDIA GPUs use their kernels. Other devices use XLA: `reference` for short
    sequences, `blockwise` for longer ones. Within `jax.set_mesh`, each device works on its own sequences, heads and
    queries; if several devices share a sequence, they gather its keys and values.

    Args:
      query, key, value, segment_ids, causal: as for `reference.attention`.
      implementation: the implementation to use.

    Returns:
      [B, L, H, E] in the dtype of `query`.

    Raises:
      BadInput: the implementation is unknown or cannot run here; a causal mask for sequences that several TPUs share.
    """
    by_xla = _reference if query.shape[1] <= MAX_REFERENCE_LENGTH else _blockwise
    xla, tpu, cuda = (functools.partial(_on_mesh, run, causal=causal) for run in (by_xla, _pallas, _triton))
    if implementation is None:
        return by_platform(query, key, value, segment_ids, tpu=tpu, cuda=cuda, default=xla)
    kernels = {"pallas": ("tpu", "a TPU", tpu), "triton": ("cuda", "an NVIDIA GPU", cuda)}
    if implementation in kernels:
        needed, words, run = kernels[implementation]
        if platform() != needed:
            raise BadInput(
                f"attention: implementation {implementation!r} needs {words}, this is {jax.default_backend()}; "
                f"leave it out, or call {implementation}.attention(interpret=True) to try it"
            )
        return run(query, key, value, segment_ids)
    if implementation not in get_args(Implementation):
        raise BadInput(
            f"attention: implementation {implementation!r} is not one of {', '.join(get_args(Implementation))}"
        )
    chosen = {"reference": _reference, "blockwise": _blockwise}[implementation]
    return _on_mesh(chosen, query, key, value, segment_ids, causal=causal)


def _on_mesh(run, query, key, value, segment_ids, *, causal: bool) -> jax.Array:
    """Runs an implementation on each device's part of the arrays: no compiler can partition a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(query, key, value, segment_ids, segment_ids, query_offset=0, causal=causal)
    queries = spec(("rows", "tokens", "kv_heads", None), key.shape, mesh)
    token_axes = queries[1]
    if causal and token_axes and run is _pallas:
        raise BadInput(
            f"attention: the TPU kernels have no causal mask for sequences shared along {token_axes}; set it to 1"
        )

    def local(query, key, value, segment_ids):
        query_offset, key_ids = 0, segment_ids
        if token_axes:
            query_offset = jax.lax.axis_index(token_axes) * query.shape[1]
            key, value, key_ids = (jax.lax.all_gather(x, token_axes, axis=1, tiled=True) for x in (key, value, key_ids))
        return run(query, key, value, segment_ids, key_ids, query_offset=query_offset, causal=causal)

    specs = (queries, queries, queries, PartitionSpec(*queries[:2]))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(query, key, value, segment_ids)


def _pallas(query, key, value, ids, key_ids, *, query_offset, causal: bool, interpret: bool = False) -> jax.Array:
    del query_offset  # only a causal mask needs it
    others = None if key_ids is ids else key_ids
    return pallas.attention(query, key, value, ids, key_segment_ids=others, causal=causal, interpret=interpret)


def _triton(query, key, value, ids, key_ids, *, interpret: bool = False, **options) -> jax.Array:
    return triton.attention(query, key, value, ids, key_segment_ids=key_ids, interpret=interpret, **options)


def _reference(query, key, value, ids, key_ids, *, query_offset, causal: bool) -> jax.Array:
    return reference.block_attention(query, key, value, ids, key_ids, query_offset=query_offset, causal=causal)


def _blockwise(query, key, value, ids, key_ids, *, query_offset, causal: bool) -> jax.Array:
    return blockwise.attention(
        query, key, value, ids, key_segment_ids=key_ids, query_offset=query_offset, causal=causal
    )
