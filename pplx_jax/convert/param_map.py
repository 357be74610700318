"""One table between our parameter tree and the keys of the published PyTorch layout, read in both directions.

Layers are stacked on a leading axis in ours and numbered in PyTorch's; a kernel is the transpose of a
Linear's weight. The keys are those of the released weights: `embed_tokens.*`, `layers.N.*`, `norm.*` and no
`lm_head`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pplx_jax.errors import BadInput
from pplx_jax.models.qwen3 import Qwen3Config


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
      path: dotted path in our tree.
      key: PyTorch's key; `{}` stands for the layer's number where the parameter is stacked.
      axes: our axes without the layer axis, letters of `_sizes`.
    """

    path: str
    key: str
    axes: str

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
    Entry("layers.attention.o.kernel", "layers.{}.self_attn.o_proj.weight", "QD"),
    Entry("layers.attention.q_norm.scale", "layers.{}.self_attn.q_norm.weight", "E"),
    Entry("layers.attention.k_norm.scale", "layers.{}.self_attn.k_norm.weight", "E"),
    Entry("layers.post_attention_norm.scale", "layers.{}.post_attention_layernorm.weight", "D"),
    Entry("layers.mlp.gate.kernel", "layers.{}.mlp.gate_proj.weight", "DF"),
    Entry("layers.mlp.up.kernel", "layers.{}.mlp.up_proj.weight", "DF"),
    Entry("layers.mlp.down.kernel", "layers.{}.mlp.down_proj.weight", "FD"),
    Entry("final_norm.scale", "norm.weight", "D"),
)


def to_torch_layout(params: Mapping[str, Any], config: Qwen3Config) -> dict[str, np.ndarray]:
    """Our tree as PyTorch's flat dict, in the table's order.

    Args:
      params: nested dict, paths of `TABLE`.
      config: the encoder the parameters belong to.

    Returns:
      key -> array of the same dtype. Every array is a view of `params`: nothing is copied.

    Raises:
      BadInput: a parameter is missing, left over or of another shape; one line names all of them.
    """
    flat = dict(_flatten(params))
    _check(flat, {entry.path: _our_shape(entry, config) for entry in TABLE}, "parameters")
    tensors = {}
    for entry in TABLE:
        for layer, key in enumerate(_keys(entry, config)):
            array = flat[entry.path][layer] if entry.stacked else flat[entry.path]
            tensors[key] = array.T if entry.transposed else array
    return tensors


def from_torch_layout(tensors: Mapping[str, np.ndarray], config: Qwen3Config) -> dict[str, Any]:
    """PyTorch's flat dict as our tree: the inverse of `to_torch_layout`, bit for bit.

    Args:
      tensors: key -> array. Any mapping serves, so that a lazy one holds a single tensor in memory at a time;
        shapes are asked of its values.
      config: the encoder the tensors belong to.

    Returns:
      Nested dict of contiguous arrays of the tensors' dtype.

    Raises:
      BadInput: a tensor is missing, left over or of another shape; one line names all of them.
    """
    wanted = {}
    for entry in TABLE:
        shape = _our_shape(entry, config)[entry.stacked :]
        wanted |= dict.fromkeys(_keys(entry, config), shape[::-1] if entry.transposed else shape)
    _check(tensors, wanted, "tensors")
    params: dict[str, Any] = {}
    for entry in TABLE:
        keys = _keys(entry, config)
        leaf = np.empty(_our_shape(entry, config), tensors[keys[0]].dtype)
        for layer, key in enumerate(keys):
            tensor = tensors[key].T if entry.transposed else tensors[key]
            leaf[layer if entry.stacked else ...] = tensor
        *parents, name = entry.path.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


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


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check(found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is left over" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        raise BadInput(f"{what} do not fit the model's configuration: {'; '.join(problems)}; check both")
