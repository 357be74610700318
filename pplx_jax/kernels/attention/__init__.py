"""Attention over packed sequences: the public function, which chooses an implementation."""

import functools
from typing import Literal, get_args

import jax
from jax.sharding import PartitionSpec

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.attention import blockwise, pallas, reference, splash, triton
from pplx_jax.kernels.platform import by_platform, platform
from pplx_jax.parallel.rules import spec

Implementation = Literal["reference", "blockwise", "pallas", "splash", "tokamax", "triton"]
Preferred = Literal["auto", Implementation]
_NEEDS = dict.fromkeys(("pallas", "splash", "tokamax"), "tpu") | {"triton": "cuda"}
_IN_WORDS = {"tpu": "a TPU", "cuda": "an NVIDIA GPU"}
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
    if implementation is None:
        by_xla = _reference if query.shape[1] <= MAX_REFERENCE_LENGTH else _blockwise
        xla, tpu, cuda = (functools.partial(_on_mesh, run, causal=causal) for run in (by_xla, _pallas, _triton))
        return by_platform(query, key, value, segment_ids, tpu=tpu, cuda=cuda, default=xla)
    require_implementation(implementation, platform())
    return _on_mesh(_RUN[implementation], query, key, value, segment_ids, causal=causal)


def preferred(implementation: Preferred) -> Implementation | None:
    """Returns the implementation that a model asks for, or None if it has no preference or this platform has none.

    A model that was trained on a TPU can so be read on any machine.
    """
    if implementation == "auto" or _NEEDS.get(implementation, platform()) != platform():
        return None
    return implementation


def require_implementation(implementation: Preferred, platform: str) -> None:
    """Checks that an implementation can run.

    Args:
      implementation: its name, or "auto".
      platform: "tpu", "cuda" or "cpu".

    Raises:
      BadInput: it is unknown, it needs another platform, or its package is not installed.
    """
    if implementation not in ("auto", *get_args(Implementation)):
        raise BadInput(
            f"attention: implementation {implementation!r} is not one of {', '.join(get_args(Implementation))}"
        )
    needed = _NEEDS.get(implementation, platform)
    if needed != platform:
        raise BadInput(
            f"attention: implementation {implementation!r} needs {_IN_WORDS[needed]}, this is {platform}; leave it "
            "out, or try it with `interpret=True` of its module in pplx_jax.kernels.attention"
        )
    if implementation == "tokamax":
        splash.require_tokamax()


def _on_mesh(run, query, key, value, segment_ids, *, causal: bool) -> jax.Array:
    """Runs an implementation on each device's part of the arrays: no compiler can partition a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(query, key, value, segment_ids, segment_ids, query_offset=0, causal=causal)
    queries = spec(("rows", "tokens", "kv_heads", None), key.shape, mesh)
    token_axes = queries[1]
    if causal and token_axes and run in (_pallas, _splash, _tokamax):
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


def _splash(
    query, key, value, ids, key_ids, *, query_offset, causal: bool, library: splash.Library = "jax"
) -> jax.Array:
    del query_offset
    others = None if key_ids is ids else key_ids
    return splash.attention(query, key, value, ids, key_segment_ids=others, causal=causal, library=library)


def _tokamax(*arrays, **options) -> jax.Array:
    return _splash(*arrays, **options, library="tokamax")


def _triton(query, key, value, ids, key_ids, *, interpret: bool = False, **options) -> jax.Array:
    return triton.attention(query, key, value, ids, key_segment_ids=key_ids, interpret=interpret, **options)


def _reference(query, key, value, ids, key_ids, *, query_offset, causal: bool) -> jax.Array:
    return reference.block_attention(query, key, value, ids, key_ids, query_offset=query_offset, causal=causal)


def _blockwise(query, key, value, ids, key_ids, *, query_offset, causal: bool) -> jax.Array:
    return blockwise.attention(
        query, key, value, ids, key_segment_ids=key_ids, query_offset=query_offset, causal=causal
    )


_RUN = {
    "reference": _reference,
    "blockwise": _blockwise,
    "pallas": _pallas,
    "splash": _splash,
    "tokamax": _tokamax,
    "triton": _triton,
}
