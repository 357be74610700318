"""Attention by the splash kernels of JAX or of tokamax, for TPUs: an alternative if the kernels here fail on a device.

They skip no block for segments, so a packed sequence costs as much as one text of its length.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pplx_jax.core.errors import BadInput

Library = Literal["jax", "tokamax"]
_LANES = 128
# The fused backward pass of JAX is faster. It holds a gradient of the queries for each block of keys, so longer
# sequences take the pass without fusion.
_MAX_FUSED_LENGTH = 8192
# Most queries and keys of a grid step, and keys of a product, in bfloat16. The best of benchmarks/results/kernels.json.
_FORWARD, _BACKWARD = (512, 2048, 512), (1024, 1024, 512)
_SAVED = "attention"  # the name of output and logsumexp for `Qwen3Config.remat_policy`


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    key_segment_ids: jax.Array | None = None,
    causal: bool = False,
    library: Library = "jax",
    interpret: bool = False,
) -> jax.Array:
    """Returns what `reference.attention` returns.

    Args:
      query: [B, Q, H, E]; any length, any head_dim.
      key: [B, L, K, E].
      value: [B, L, K, E].
      segment_ids: [B, Q].
      key_segment_ids: [B, L] if the queries are a part of the sequence (context parallelism); `segment_ids` if None.
      causal: as for `reference.attention`.
      library: whose kernels. tokamax has a later version of JAX's.
      interpret: run without a TPU, slowly.

    Returns:
      [B, Q, H, E] in the dtype of `query`.

    Raises:
      BadInput: tokamax is not installed or has no such kernel; a causal mask for queries that are a part of the
        sequence, whose position is unknown here.
    """
    if causal and key_segment_ids is not None:
        raise BadInput(
            "attention: splash has no causal mask here for queries that are a part of the sequence; give them all"
        )
    length, heads, head_dim = query.shape[1:]
    ids = segment_ids.astype(jnp.int32)
    key_ids = ids if key_segment_ids is None else key_segment_ids.astype(jnp.int32)
    queries = _padded_length(length)
    # Queries of padding attend to the padding of the keys. A query that attends to nothing would have no softmax.
    keys = queries if key_segment_ids is None else _padded_length(key.shape[1] + 1)

    def padded(x: jax.Array, size: int) -> jax.Array:
        """Returns x [B, L, heads, E], padded, as [B, heads, L, E]."""
        x = jnp.pad(x, ((0, 0), (0, size - x.shape[1]), (0, 0), (0, -head_dim % _LANES)))
        return x.transpose(0, 2, 1, 3)

    scaled = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    small = query.dtype.itemsize > 2  # VMEM holds half as many numbers
    blocks = [
        tuple(
            _block(size, most // 2 if small else most) for size, most in zip((queries, keys, keys), sizes, strict=True)
        )
        for sizes in (_FORWARD, _BACKWARD)
    ]
    run = _KERNELS[library]((queries, keys), heads, *blocks, causal=causal, interpret=interpret)
    out = jax.vmap(run)(
        padded(scaled, queries),
        padded(key, keys),
        padded(value, keys),
        jnp.pad(ids, ((0, 0), (0, queries - length))),
        jnp.pad(key_ids, ((0, 0), (0, keys - key_ids.shape[1]))),
    )
    out = out.transpose(0, 2, 1, 3)[:, :length, :, :head_dim]
    return jnp.where((ids > 0)[:, :, None, None], out, 0)


def require_tokamax() -> None:
    """Raises BadInput if tokamax is not installed."""
    if importlib.util.find_spec("tokamax") is None:
        raise BadInput("attention_implementation 'tokamax' needs tokamax, which is not installed; pip install tokamax")


def _jax_kernel(shape, heads, forward, backward, *, causal: bool, interpret: bool) -> Callable[..., Any]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    fused = max(shape) <= _MAX_FUSED_LENGTH
    mask = (splash.CausalMask if causal else splash.FullMask)(shape)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            **_block_sizes(forward, backward),
            use_fused_bwd_kernel=fused,
            **({} if fused else {"block_q_dq": backward[0], "block_kv_dq": backward[1]}),
        ),
        residual_checkpoint_name=_SAVED,
        interpret=interpret,
    )
    return lambda query, key, value, ids, key_ids: kernel(query, key, value, splash.SegmentIds(ids, key_ids))


def _tokamax_kernel(shape, heads, forward, backward, *, causal: bool, interpret: bool) -> Callable[..., Any]:
    require_tokamax()
    del heads  # they share the mask
    try:  # tokamax's public function has no segments
        from tokamax._src.ops.experimental.tpu.splash_attention import (  # pyrefly: ignore[missing-import]
            base,
            splash_attention_kernel,
            splash_attention_mask,
        )
    except ImportError as error:
        raise BadInput(f"this tokamax has no splash attention ({error}); install tokamax 0.0.12") from error
    # Not its `dq_reduction_steps`, which takes less memory: in interpret mode the gradients are then wrong.
    mask = (splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask)(shape)
    config = splash_attention_kernel.SplashConfig(
        **_block_sizes(forward, backward),
        residual_checkpoint_name=_SAVED,
        interpret=interpret,
    )
    kernel = splash_attention_kernel.make_splash_mha_single_device(mask, config=config)
    return lambda query, key, value, ids, key_ids: kernel(query, key, value, base.SegmentIds(ids, key_ids))


_KERNELS = {"jax": _jax_kernel, "tokamax": _tokamax_kernel}


def _block_sizes(forward: tuple[int, int, int], backward: tuple[int, int, int]) -> dict[str, Any]:
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    return dict(zip(names, forward + backward, strict=True))


def _padded_length(length: int) -> int:
    unit = 512 if length > 256 else _LANES
    return -(-length // unit) * unit


def _block(length: int, most: int) -> int:
    """Returns the largest power of 2 up to `most` that divides a padded length."""
    return min(most, length & -length)
