"""Reads GGUF files of llama.cpp: the metadata first, each tensor only when it is used, dequantized to float32.

llama.cpp pairs neighbouring dimensions in RoPE for the architecture `llama`, and files of it have the rows of q and k
in that order. They are put back in the order of the published weights, where dimension i is paired with i + E / 2.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from pplx_jax.checkpoints.huggingface.config import Source
from pplx_jax.checkpoints.huggingface.families import FAMILIES, Family
from pplx_jax.checkpoints.huggingface.gguf_tokenizer import token_names, tokenizer_json
from pplx_jax.core.errors import BadInput
from pplx_jax.core.packages import require_packages
from pplx_jax.models.transformer import Qwen3Config

SUFFIX = ".gguf"
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_SIZES = {
    "width": "embedding_length",
    "mlp_width": "feed_forward_length",
    "layers": "block_count",
    "query_heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_length": "context_length",
}
_EPSILON, _THETA, _CAUSAL = "attention.layer_norm_rms_epsilon", "rope.freq_base", "attention.causal"
_OTHER_KEYS = (
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "pooling_type",
    _EPSILON,
    _THETA,
    _CAUSAL,
)
_NEUTRAL = {"rope.scaling.type": "none", "expert_count": 0, "expert_used_count": 0}  # what such keys may say
_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file. `numpy.asarray` reads and dequantizes it.

    Attributes:
      path: the file.
      shape: of the tensor, in PyTorch's order.
      kind: `gguf.GGMLQuantizationType` of the stored values.
      offset: position in the file, in bytes.
      size: stored bytes.
      heads: number of heads whose rows llama.cpp has reordered; 0 for none.
    """

    path: pathlib.Path
    shape: tuple[int, ...]
    kind: Any
    offset: int
    size: int
    heads: int = 0

    @property
    def dtype(self) -> np.dtype:
        """bfloat16 for values that are stored so, float32 for all others."""
        return np.dtype(ml_dtypes.bfloat16 if self.kind.name == "BF16" else np.float32)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        import gguf

        stored = self._bytes().reshape(math.prod(self.shape[:-1]), -1)
        values = gguf.dequantize(stored, self.kind).reshape(self.shape)
        if self.heads:
            pairs = values.reshape(self.heads, self.shape[0] // self.heads // 2, 2, -1)
            values = pairs.swapaxes(1, 2).reshape(self.shape)
        return values.astype(dtype or self.dtype, copy=False)

    def equals(self, other: "GgufTensor") -> bool:
        """Returns whether shapes, types and bytes are equal."""
        same = (self.shape, self.kind, self.size) == (other.shape, other.kind, other.size)
        return same and np.array_equal(self._bytes(), other._bytes())

    def _bytes(self) -> np.ndarray:
        values = np.fromfile(self.path, np.uint8, self.size, offset=self.offset)
        if values.size != self.size:
            raise OSError(f"{self.path} ended while it was read")
        return values


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What a file describes.

    Attributes:
      source: the model.
      tensors: by the keys of `name_map.TABLE`; a tensor with another purpose keeps its own name.
      problems: one phrase for each tensor of a type that is not read.
      tokenizer: the content of a `tokenizer.json`.
      names: role ("mask", "separator", "pad") -> token name, as far as the file declares them.
    """

    source: Source
    tensors: dict[str, GgufTensor]
    problems: list[str]
    tokenizer: bytes
    names: dict[str, str]


def read_gguf(path: pathlib.Path) -> GgufFile:
    """Reads the metadata of a file and the places of its tensors.

    Raises:
      BadInput: the file is damaged, the package `gguf` is missing, or the model or its tokenizer has features that ours
        does not implement. One line names all problems of the model.
    """
    require_packages(str(path), "gguf", extra="convert")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        if reader.byte_order != "I":
            raise ValueError("its byte order is not that of this machine")
        fields = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} is not a whole GGUF file ({reason}); download it again") from None
    family, config = _config(path, fields, stored)
    permuted = {"attn_q": config.query_heads, "attn_k": config.kv_heads} if family.model_type == "llama" else {}
    tensors = {}
    for name, tensor in stored.items():
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        heads = permuted.get(name.rpartition(".")[0].rpartition(".")[2], 0)
        place = int(tensor.data_offset), int(tensor.n_bytes)
        tensors[_key(name)] = GgufTensor(path, shape, tensor.tensor_type, *place, heads=heads)
    problems = [
        f"{name} has type {tensor.tensor_type.name}, not one of {', '.join(TYPES)}"
        for name, tensor in stored.items()
        if tensor.tensor_type.name not in TYPES
    ]
    source = Source(config, "v1", tied="output.weight" not in stored)
    return GgufFile(source, tensors, problems, tokenizer_json(path, fields), token_names(fields))


def _config(path: pathlib.Path, fields: dict[str, Any], stored: dict[str, Any]) -> tuple[Family, Qwen3Config]:
    architecture = fields.get("general.architecture")
    family = next((family for family in FAMILIES if family.model_type == architecture), None)
    if family is None:
        known = ", ".join(family.model_type for family in FAMILIES)
        raise BadInput(f"{path}: architecture {architecture!r} is not supported; give a model of {known}")
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    unknown = [key for key in own if key not in (*_SIZES.values(), *_OTHER_KEYS) and own[key] != _NEUTRAL.get(key)]
    problems = [f"{prefix}{key} is {own[key]!r}" for key in unknown]
    if fields.get("split.count", 0) > 1:
        problems.append(f"it is one of {fields['split.count']} parts; join them with llama-gguf-split --merge")
    width, heads = own.get("embedding_length"), own.get("attention.head_count")
    own.setdefault("attention.head_count_kv", heads)
    if type(width) is int and type(heads) is int and heads > 0 and width % heads == 0:
        own.setdefault("attention.key_length", width // heads)
    sizes: dict[str, Any] = {field: own.get(key) for field, key in _SIZES.items()}
    problems += [
        f"{prefix}{_SIZES[field]} is {value!r}, not a size"
        for field, value in sizes.items()
        if type(value) is not int or value < 1
    ]
    problems += [
        f"{prefix}{key} is {own[key]!r}, not the head dimension {sizes['head_dim']}"
        for key in ("attention.value_length", "rope.dimension_count")
        if own.get(key, sizes["head_dim"]) != sizes["head_dim"]
    ]
    if _EPSILON not in own:
        problems.append(f"{prefix}{_EPSILON} is missing")
    if "token_embd.weight" not in stored:
        problems.append("token_embd.weight is missing")
    if problems:
        raise BadInput(f"{path}: {'; '.join(problems)}; these are not supported, or the file is damaged")
    return family, Qwen3Config(
        vocab_size=int(stored["token_embd.weight"].shape[1]),
        **sizes,
        rms_norm_eps=_decimal(own[_EPSILON]),
        rope_theta=_decimal(own.get(_THETA, 10_000.0)),
        causal=bool(own.get(_CAUSAL, True)),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
    )


def _decimal(value: float) -> float:
    """Returns the shortest decimal number of a float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _key(name: str) -> str:
    """Returns the Hugging Face key of a tensor, or its own name."""
    if name in _NAMES:
        return _NAMES[name]
    block, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.partition(".")
    if block == "blk" and layer.isdigit() and part in _LAYER_NAMES:
        return f"layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return name
