"""Qwen3 as a bidirectional encoder (NNX, scanned layers). By configuration it is also Llama or Qwen2.5.

The architecture: RMSNorm before attention and before the MLP, grouped-query attention with RMSNorm per head on q and k
*before* rotate-half RoPE, SwiGLU, no biases, and a head_dim that is not width / heads. Llama (SmolLM2) has no RMSNorm
on q and k. Qwen2.5 has none either, and it has biases of q, k and v. Sources: Qwen3 technical report (arXiv
2505.09388), Llama (arXiv 2302.13971), Qwen2 (arXiv 2407.10671); arXiv 2602.11151 section 2 for the bidirectional mask.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pplx_jax.core.errors import BadInput, require
from pplx_jax.kernels.attention import Preferred, attention, preferred
from pplx_jax.kernels.products import precision
from pplx_jax.models.linear import project
from pplx_jax.models.lookup import lookup
from pplx_jax.parallel.rules import constrain

# Activations that `Qwen3Config.remat_policy` can save, with their bytes per token and layer in bfloat16: queries, keys
# and values (2 (H + 2 K) E); attention's output and logsumexp (2 H E); the gate and up products of the MLP (4 F).
SAVEABLE = ("projections", "attention", "mlp")
# Fields that embeddings do not depend on: those that only training reads, and the implementation, as the device.
_NOT_COMPUTING = (
    *("tied", "embedding_init_std", "residual_init_scale", "remat", "remat_policy", "unroll"),
    "attention_implementation",
)
# Fields that the published models do not need, and their values there. `computing` has them only where they differ, so
# that fingerprints of other models do not depend on them.
_USUAL = {"qk_norm": True, "qkv_bias": False, "pooling": "mean"}
Pooling = Literal["mean", "last"]
_SIZES = ("vocab_size", "width", "mlp_width", "layers", "query_heads", "kv_heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """Sizes and numerics of one encoder.

    Attributes:
      vocab_size: V, rows of the embedding table.
      width: D, the residual width and the dimensions of an embedding.
      mlp_width: F, the width of the SwiGLU MLP.
      layers: number of blocks.
      query_heads: H; a multiple of kv_heads.
      kv_heads: K.
      head_dim: E; even, independent of width / heads.
      rms_norm_eps: epsilon of every RMSNorm.
      rope_theta: base of the rotary frequencies.
      max_length: longest text, in tokens.
      tied: whether diffusion predicts tokens with the embedding table; otherwise with a second table, `head`.
      causal: whether later tokens are masked, for ablations. The paper and every recipe here use no causal mask.
      embedding_init_std: standard deviation of the random embedding table.
      residual_init_scale: factor of the random kernels that write to the residual (attention's o, MLP's down); with 0
        every block starts as the identity, and a model from scratch starts as a bag of words.
      dtype: precision of activations, "float32", "bfloat16", or "auto": the faster one here (`fast_dtype`), which a
        recipe chooses when it starts and writes to its models. Parameters stay float32.
      remat: recompute each block in the backward pass instead of saving its activations.
      remat_policy: activations that are saved even so, any of `SAVEABLE`.
      unroll: number of blocks that one iteration of the loop over blocks computes (`jax.lax.scan`); encoding without a
        gradient always has 1. More takes longer to compile. XLA on CPU converts what a loop stores in bfloat16 to
        float32 and back, so a training step there takes a fifth less time if no loop is left.
      qk_norm: whether queries and keys have an RMSNorm per head (Qwen3); Llama and Qwen2.5 have none.
      qkv_bias: whether queries, keys and values have a bias (Qwen2.5).
      pooling: what a text's or chunk's vector is: the "mean" of the hidden states of its tokens, or that of its "last"
        token, as in causal embedding models.
      attention_implementation: of `kernels.attention`, "auto" for the fastest known one. On a TPU, "splash" and
        "tokamax" take the place of our kernels. It has no effect on devices that do not have it.
    """

    vocab_size: int
    width: int
    mlp_width: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_length: int = 32768
    tied: bool = True
    causal: bool = False
    embedding_init_std: float = 0.02
    residual_init_scale: float = 1.0
    dtype: str = "bfloat16"
    remat: bool = True
    remat_policy: tuple[str, ...] = ()
    unroll: int = 1
    qk_norm: bool = True
    qkv_bias: bool = False
    pooling: Pooling = "mean"
    attention_implementation: Preferred = "auto"

    def __post_init__(self):
        for name in (*_SIZES, "max_length", "unroll"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        if self.query_heads % self.kv_heads:
            raise BadInput(
                f"Qwen3Config: query_heads={self.query_heads} is not a multiple of kv_heads={self.kv_heads}; "
                "each key head serves an equal group of query heads"
            )
        if self.head_dim % 2:
            raise BadInput(f"Qwen3Config: head_dim={self.head_dim} is odd; RoPE rotates pairs of dimensions")
        if unknown := [name for name in self.remat_policy if name not in SAVEABLE]:
            raise BadInput(f"Qwen3Config: remat_policy={unknown[0]!r} is not one of {', '.join(SAVEABLE)}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise BadInput(f"Qwen3Config: dtype={self.dtype!r} is not one of auto, float32, bfloat16")
        require(self.pooling in get_args(Pooling), self, "pooling", " or ".join(get_args(Pooling)))
        known = get_args(Preferred)
        require(self.attention_implementation in known, self, "attention_implementation", "one of " + ", ".join(known))

    def build(self, rngs: nnx.Rngs) -> "Qwen3":
        """Returns the model with random weights. A subclass with another `build` is another model family.

        Such a model has Qwen3's `__call__` and `output_table`. Parameters with other names than Qwen3's are added to
        `Mesh.parameter_axes`.
        """
        return Qwen3(self, rngs)

    @property
    def computing(self) -> dict[str, float | str]:
        """The fields that embeddings depend on, numbers as floats, so that 1000000 and 1e6 are equal."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_COMPUTING}
        for name, usual in _USUAL.items():
            if fields[name] == usual:
                del fields[name]
        return {name: value if isinstance(value, str) else float(value) for name, value in fields.items()}

    @property
    def parameters(self) -> int:
        """Number of parameters, without an untied head."""
        attention_width = 2 * (self.query_heads + self.kv_heads) * self.head_dim * self.width
        layer = attention_width + 3 * self.width * self.mlp_width + 2 * self.width
        layer += self.qk_norm * 2 * self.head_dim
        layer += self.qkv_bias * (self.query_heads + 2 * self.kv_heads) * self.head_dim
        return self.vocab_size * self.width + self.layers * layer + self.width


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 over the last axis."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
    """A product; kernel [in, out], the transpose of PyTorch's weight. A bias [out] starts at zero."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, scale: float = 1.0, *, bias: bool = False):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)) * scale * inputs**-0.5)
        if bias:
            self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.has_bias = bias

    def __call__(self, x: jax.Array) -> jax.Array:
        y = project(x, self.kernel[...])
        # In float32, so that the gradient of the bias is summed in float32.
        return (y.astype(jnp.float32) + self.bias[...]).astype(x.dtype) if self.has_bias else y


class Embedding(nnx.Module):
    """Token table [V, D]."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape) * config.embedding_init_std)

    def __call__(self, tokens: jax.Array, dtype: str) -> jax.Array:
        return lookup(self.embedding[...], tokens, dtype)


def rotary_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Returns the radians per position of each pair of dimensions, [E / 2] float32."""
    # Rounded to float32 in the steps of transformers, whose models are trained with these frequencies: the last bit of
    # a frequency is an angle of 1e-4 at position 2,048.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.float32(1) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and sines [B, L, 1, E / 2] of RoPE at `positions` [B, L]."""
    frequencies = rotary_frequencies(head_dim, theta)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotate-half RoPE to x [B, L, heads, E]: dimension i is paired with i + E / 2."""
    return _rotate(x, *angles)


@jax.custom_vjp
def _rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    # A product with a signed permutation swaps the halves of a head exactly. Slicing a head in two would cost a TPU as
    # much as the projection before it.
    half = x.shape[-1] // 2
    swap = jnp.eye(x.shape[-1], k=half) - jnp.eye(x.shape[-1], k=-half)
    swap = swap.astype(x.dtype)
    other = jnp.matmul(x, swap, precision=precision(x.dtype), preferred_element_type=jnp.float32)
    cosine, sine = (jnp.concatenate([part, part], axis=-1) for part in (cosine, sine))
    return (x.astype(jnp.float32) * cosine + other * sine).astype(x.dtype)


def _rotate_forward(x, cosine, sine):
    return _rotate(x, cosine, sine), (cosine, sine)


def _rotate_backward(angles, cotangent):
    cosine, sine = angles
    return _rotate(cotangent, cosine, -sine), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


class Attention(nnx.Module):
    """Grouped-query attention, with RMSNorm per head before RoPE if configured; x [B, L, D] to [B, L, D]."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        query_width, kv_width = config.query_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear(config.width, query_width, rngs, bias=config.qkv_bias)
        self.k = Linear(config.width, kv_width, rngs, bias=config.qkv_bias)
        self.v = Linear(config.width, kv_width, rngs, bias=config.qkv_bias)
        self.o = Linear(query_width, config.width, rngs, config.residual_init_scale)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm
        self.head_dim = config.head_dim
        self.causal = config.causal
        self.implementation = config.attention_implementation

    def __call__(self, x: jax.Array, segment_ids: jax.Array, angles) -> jax.Array:
        def heads(projected, name):
            return constrain(projected.reshape(*x.shape[:2], -1, self.head_dim), "rows", "tokens", name, None)

        query, key = heads(self.q(x), "heads"), heads(self.k(x), "kv_heads")
        value = heads(self.v(x), "kv_heads")
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, angles), rotate(key, angles)
        query, key, value = (checkpoint_name(part, "projections") for part in (query, key, value))
        implementation = preferred(self.implementation)
        out = attention(query, key, value, segment_ids, causal=self.causal, implementation=implementation)
        return self.o(constrain(out.reshape(*x.shape[:2], -1), "rows", "tokens", "heads"))


class MLP(nnx.Module):
    """SwiGLU; x [B, L, D] to [B, L, D]."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.gate = Linear(config.width, config.mlp_width, rngs)
        self.up = Linear(config.width, config.mlp_width, rngs)
        self.down = Linear(config.mlp_width, config.width, rngs, config.residual_init_scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = checkpoint_name(self.gate(x), "mlp"), checkpoint_name(self.up(x), "mlp")
        return self.down(constrain(jax.nn.silu(gate) * up, "rows", "tokens", "mlp"))


class Layer(nnx.Module):
    """One block: attention and MLP, each after a norm and added to the residual."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(config.width, config.rms_norm_eps)
        self.attention = Attention(config, rngs)
        self.post_attention_norm = RMSNorm(config.width, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, segment_ids: jax.Array, angles) -> jax.Array:
        x = x + self.attention(self.input_norm(x), segment_ids, angles)
        x = x + self.mlp(self.post_attention_norm(x))
        return constrain(x, "rows", "tokens", None)


class Qwen3(nnx.Module):
    """The encoder. Parameters of the blocks are stacked on a leading axis of size `layers` and scanned."""

    def __init__(self, config: Qwen3Config, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs)
        stack = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda rngs: Layer(config, rngs)))
        self.layers = stack(rngs)
        self.final_norm = RMSNorm(config.width, config.rms_norm_eps)
        if not config.tied:
            self.head = Embedding(config, rngs)

    @property
    def output_table(self) -> jax.Array:
        """[V, D], the table that turns hidden states into logits."""
        return (self.embed if self.config.tied else self.head).embedding[...]

    def __call__(self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the hidden states of packed sequences.

        Args:
          tokens: [B, L] ids; no text attends to padding.
          segment_ids: [B, L]; the texts of a sequence are numbered from 1, 0 is padding.
          positions: [B, L]; they restart in each text.

        Returns:
          [B, L, D] after the final RMSNorm, in `config.dtype`.
        """
        config = self.config
        tokens, segment_ids, positions = (constrain(x, "rows", "tokens") for x in (tokens, segment_ids, positions))
        graph, weights = nnx.split(self.layers)
        angles = rotary_angles(positions, config.head_dim, config.rope_theta)

        def block(x, layer_weights):
            return nnx.merge(graph, layer_weights)(x, segment_ids, angles), None

        if config.remat:
            block = jax.checkpoint(block, policy=jax.checkpoint_policies.save_only_these_names(*config.remat_policy))
        x = self.embed(tokens, config.dtype)
        x, _ = jax.lax.scan(block, x, weights, unroll=min(config.unroll, config.layers))
        return self.final_norm(x)
