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
_RUN = {
    "reference": reference.attention,
    "blockwise": blockwise.attention,
    "pallas": pallas.attention,
    "splash": splash.attention,
    "tokamax": functools.partial(splash.attention, library="tokamax"),
    "triton": triton.attention,
}
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
    """Returns softmax attention within each segment of packed sequences.

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
        by_xla = "reference" if query.shape[1] <= MAX_REFERENCE_LENGTH else "blockwise"
        xla, tpu, cuda = (functools.partial(_on_mesh, name, causal=causal) for name in (by_xla, "pallas", "triton"))
        return by_platform(query, key, value, segment_ids, tpu=tpu, cuda=cuda, default=xla)
    require_implementation(implementation, platform())
    return _on_mesh(implementation, query, key, value, segment_ids, causal=causal)


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


def _on_mesh(implementation: Implementation, query, key, value, segment_ids, *, causal: bool, **options) -> jax.Array:
    """Runs an implementation on each device's part of the arrays: no compiler can partition a kernel by itself."""
    run = functools.partial(_RUN[implementation], causal=causal, **options)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(query, key, value, segment_ids)
    queries = spec(("rows", "tokens", "kv_heads", None), key.shape, mesh)
    token_axes = queries[1]
    if causal and token_axes and _NEEDS.get(implementation) == "tpu":
        raise BadInput(
            f"attention: the TPU kernels have no causal mask for sequences shared along {token_axes}; set it to 1"
        )

    def local(query, key, value, segment_ids):
        if not token_axes:
            return run(query, key, value, segment_ids)
        offset = {"query_offset": jax.lax.axis_index(token_axes) * query.shape[1]} if causal else {}
        everything = (key, value, segment_ids)
        key, value, key_ids = (jax.lax.all_gather(x, token_axes, axis=1, tiled=True) for x in everything)
        return run(query, key, value, segment_ids, key_segment_ids=key_ids, **offset)

    specs = (queries, queries, queries, PartitionSpec(*queries[:2]))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(query, key, value, segment_ids)
