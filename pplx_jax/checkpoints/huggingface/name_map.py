"""The name map: one table between our parameter tree and the Hugging Face (PyTorch) keys, used in both directions.

Our layers are stacked on a leading axis, PyTorch's are numbered. A kernel is the transpose of a Linear's weight. The
keys are those of the released weights: `embed_tokens.*`, `layers.N.*`, `norm.*`. `lm_head` exists only for a model with
a separate head, before the contrastive stages.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import is_finite, named_leaves
from pplx_jax.models.transformer import Qwen3Config


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
      path: dotted path in our tree.
      key: PyTorch's key; `{}` stands for the layer number of a stacked parameter.
      axes: our axes without the layer axis, letters of `_our_shape`.
      option: the field of the configuration that adds the parameter; None if every model has it.
    """

    path: str
    key: str
    axes: str
    option: str | None = None

    @property
    def stacked(self) -> bool:
        return "{}" in self.key

    @property
    def transposed(self) -> bool:
        return self.path.endswith(".kernel")


TABLE = (
    Entry("embed.embedding", "embed_tokens.weight", "VD"),
    Entry("layers.input_norm.scale", "layers.{}.input_layernorm.weight", "D"),
    Entry("layers.attention.q.kernel", "layers.{}.self_attn.q_proj.weight", "DQ"),
    Entry("layers.attention.k.kernel", "layers.{}.self_attn.k_proj.weight", "DK"),
    Entry("layers.attention.v.kernel", "layers.{}.self_attn.v_proj.weight", "DK"),
    Entry("layers.attention.q.bias", "layers.{}.self_attn.q_proj.bias", "Q", "qkv_bias"),
    Entry("layers.attention.k.bias", "layers.{}.self_attn.k_proj.bias", "K", "qkv_bias"),
    Entry("layers.attention.v.bias", "layers.{}.self_attn.v_proj.bias", "K", "qkv_bias"),
    Entry("layers.attention.o.kernel", "layers.{}.self_attn.o_proj.weight", "QD"),
    Entry("layers.attention.q_norm.scale", "layers.{}.self_attn.q_norm.weight", "E", "qk_norm"),
    Entry("layers.attention.k_norm.scale", "layers.{}.self_attn.k_norm.weight", "E", "qk_norm"),
    Entry("layers.post_attention_norm.scale", "layers.{}.post_attention_layernorm.weight", "D"),
    Entry("layers.mlp.gate.kernel", "layers.{}.mlp.gate_proj.weight", "DF"),
    Entry("layers.mlp.up.kernel", "layers.{}.mlp.up_proj.weight", "DF"),
    Entry("layers.mlp.down.kernel", "layers.{}.mlp.down_proj.weight", "FD"),
    Entry("final_norm.scale", "norm.weight", "D"),
)
HEAD = Entry("head.embedding", "lm_head.weight", "VD")


def entries(config: Qwen3Config) -> tuple[Entry, ...]:
    """Returns the table for a model."""
    table = tuple(entry for entry in TABLE if entry.option is None or getattr(config, entry.option))
    return table if config.tied else (*table, HEAD)


def to_torch_layout(params: Mapping[str, Any], config: Qwen3Config) -> dict[str, np.ndarray]:
    """Converts our tree to PyTorch's flat dict, in the order of the table.

    Args:
      params: nested dict with the paths of `entries`.
      config: the encoder of the parameters.

    Returns:
      key -> array of the same dtype. Every array is a view of `params`; nothing is copied.

    Raises:
      BadInput: parameters are missing, unexpected or of another shape. One line names all of them.
    """
    flat = named_leaves(params)
    _check(flat, {entry.path: _our_shape(entry, config) for entry in entries(config)}, "parameters")
    tensors = {}
    for entry in entries(config):
        for layer, key in enumerate(_keys(entry, config)):
            array = flat[entry.path][layer] if entry.stacked else flat[entry.path]
            tensors[key] = array.T if entry.transposed else array
    return tensors


def from_torch_layout(
    tensors: Mapping[str, Any],
    config: Qwen3Config,
    *,
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf,
) -> dict[str, Any]:
    """Converts PyTorch's flat dict to our tree: the exact inverse of `to_torch_layout`.

    Args:
      tensors: key -> an array or a `StoredTensor`. The latter is read when needed, so that besides the result only one
        tensor is in memory at a time.
      config: the encoder of the tensors.
      dtype: of the result; None for that of the tensors.
      place: maps (path, array) to the tree's leaf. It can move the array to devices.

    Returns:
      Nested dict of contiguous arrays, or of what `place` returned.

    Raises:
      BadInput: tensors are missing, unexpected or of another shape (one line names all of them), or one is non-finite.
    """
    _check(tensors, torch_shapes(config), "tensors")
    params: dict[str, Any] = {}
    for entry in entries(config):
        keys = _keys(entry, config)
        leaf = np.empty(_our_shape(entry, config), dtype or tensors[keys[0]].dtype)
        for layer, key in enumerate(keys):
            tensor = np.asarray(tensors[key])
            if not is_finite(tensor):
                raise BadInput(f"tensor {key} is non-finite (NaN or infinity); download the weights again")
            leaf[layer if entry.stacked else ...] = tensor.T if entry.transposed else tensor
            del tensor  # before the next one is read
        *parents, name = entry.path.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = place(entry.path, leaf)
        del leaf
    return params


def torch_shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Returns PyTorch key -> shape."""
    shapes = {}
    for entry in entries(config):
        shape = _our_shape(entry, config)[entry.stacked :]
        shapes |= dict.fromkeys(_keys(entry, config), shape[::-1] if entry.transposed else shape)
    return shapes


def mismatches(found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns one phrase for each name that is missing in `found`, is not in `wanted`, or has another shape."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is left over" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    return problems


def _keys(entry: Entry, config: Qwen3Config) -> list[str]:
    return [entry.key.format(layer) for layer in range(config.layers)] if entry.stacked else [entry.key]


def _our_shape(entry: Entry, config: Qwen3Config) -> tuple[int, ...]:
    sizes = {
        "V": config.vocab_size,
        "D": config.width,
        "F": config.mlp_width,
        "E": config.head_dim,
        "Q": config.query_heads * config.head_dim,
        "K": config.kv_heads * config.head_dim,
    }
    return (config.layers,) * entry.stacked + tuple(sizes[axis] for axis in entry.axes)


def _check(found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    if problems := mismatches(found, wanted):
        raise BadInput(f"{what} do not fit the model's configuration: {'; '.join(problems)}; check both")
