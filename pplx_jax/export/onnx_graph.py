"""Writes the encoder and its quantizer as an ONNX graph of standard operators (opset 17), without PyTorch.

Inputs and outputs have the names of the published folder: `input_ids` and `attention_mask`, int64
[batch, length], give `last_hidden_state` [batch, length, D], `pooler_output` (the mean v over the mask,
[batch, D]), `pooler_output_int8` (clip(round(127 tanh v), -127, 127), half to even) and
`pooler_output_binary` (int8, +1 where v >= 0, else -1). Batch and length are dynamic.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pplx_jax.checkpoints.huggingface.families import family_of
from pplx_jax.kernels.quantization import LEVELS
from pplx_jax.models.transformer import Qwen3Config, rotary_frequencies

FILE = "model.onnx"
DATA = "model.onnx_data"
OUTPUTS = ("last_hidden_state", "pooler_output", "pooler_output_int8", "pooler_output_binary")
_OPSET, _IR_VERSION = 17, 8  # onnxruntime 1.13 and later read these
_PAGE = 4096  # tensors start at page boundaries, so that runtimes can map the file
_EMBEDDING = "embed_tokens.weight"


def write_onnx(
    tensors: Mapping[str, np.ndarray], config: Qwen3Config, folder: pathlib.Path, dims: int | None = None
) -> pathlib.Path:
    """Writes `model.onnx`, and `model.onnx_data` with all weights in float32.

    Weights are written to a separate file one by one. So there is no second copy in memory, and the 2 GB limit of a
    protobuf message does not apply.

    Args:
      tensors: the encoder in PyTorch layout (`to_torch_layout`).
      config: the encoder.
      folder: an existing folder.
      dims: number of leading dimensions of the pooled outputs; None for all.

    Returns:
      The path of `model.onnx`.
    """
    import onnx

    path = folder / FILE
    with (folder / DATA).open("wb") as data:
        model = _Builder(tensors, config, data, dims or config.width).model()
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path, full_check=True)
    return path


class _Builder:
    """Appends nodes in order. Every method returns the name of its value."""

    def __init__(self, tensors: Mapping[str, np.ndarray], config: Qwen3Config, data: Any, dims: int):
        import onnx

        self.onnx, self.types = onnx, onnx.TensorProto
        self.tensors, self.config, self.data, self.dims = tensors, config, data, dims
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constants: dict[tuple, str] = {}

    def model(self) -> Any:
        helper, types = self.onnx.helper, self.types
        hidden = self.encoder()
        pooled = self.pooled(hidden)
        scaled = self.op("Round", self.op("Mul", self.op("Tanh", pooled), self.constant(float(LEVELS))))
        clipped = self.op("Clip", scaled, self.constant(float(-LEVELS)), self.constant(float(LEVELS)))
        positive = self.op("GreaterOrEqual", pooled, self.constant(0.0))
        signs = self.op("Where", positive, self.constant(1, np.int8), self.constant(-1, np.int8))
        integers = self.op("Cast", clipped, to=types.INT8)
        for name, value in zip(OUTPUTS, (hidden, pooled, integers, signs), strict=True):
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

        def declared(name: str, kind: int, *shape: int | str) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        width = self.config.width
        graph = helper.make_graph(
            self.nodes,
            family_of(self.config).pplx_model_type,
            [declared(name, types.INT64, "batch", "length") for name in ("input_ids", "attention_mask")],
            [
                declared(OUTPUTS[0], types.FLOAT, "batch", "length", width),
                declared(OUTPUTS[1], types.FLOAT, "batch", self.dims),
                declared(OUTPUTS[2], types.INT8, "batch", self.dims),
                declared(OUTPUTS[3], types.INT8, "batch", self.dims),
            ],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="pplx-jax")

    def encoder(self) -> str:
        """Adds the encoder: hidden states [B, L, D] after the final norm."""
        bias, angles = self.bias(), self.angles()
        x = self.op("Gather", self.weight(_EMBEDDING), "input_ids")
        for layer in range(self.config.layers):
            prefix = f"layers.{layer}"
            y = self.norm(x, f"{prefix}.input_layernorm.weight")
            x = self.op("Add", x, self.attention(y, f"{prefix}.self_attn", bias, angles))
            y = self.norm(x, f"{prefix}.post_attention_layernorm.weight")
            gate = self.project(y, f"{prefix}.mlp.gate_proj.weight")
            gate = self.op("Mul", gate, self.op("Sigmoid", gate))
            up = self.project(y, f"{prefix}.mlp.up_proj.weight")
            x = self.op("Add", x, self.project(self.op("Mul", gate, up), f"{prefix}.mlp.down_proj.weight"))
        return self.norm(x, "norm.weight")

    def attention(self, y: str, prefix: str, bias: str, angles: tuple[str, str]) -> str:
        """Adds attention, [B, L, D] -> [B, L, D]. K key heads, each with a group of G query heads: [B, K, G, L, E]."""
        config = self.config
        group = config.query_heads // config.kv_heads

        def heads(name: str, members: int) -> str:
            shape = self.constant([0, 0, config.kv_heads, members, config.head_dim], np.int64)
            projected = self.project(y, f"{prefix}.{name}_proj.weight")
            if config.qkv_bias:
                projected = self.op("Add", projected, self.weight(f"{prefix}.{name}_proj.bias"))
            return self.op("Reshape", projected, shape)

        def rotated(name: str, members: int) -> str:
            x = heads(name, members)
            return self.rotated(self.norm(x, f"{prefix}.{name}_norm.weight") if config.qk_norm else x, angles)

        query, key = rotated("q", group), rotated("k", 1)
        query = self.op("Mul", query, self.constant(config.head_dim**-0.5))
        query = self.op("Transpose", query, perm=[0, 2, 3, 1, 4])
        key = self.op("Transpose", key, perm=[0, 2, 3, 4, 1])
        value = self.op("Transpose", heads("v", 1), perm=[0, 2, 3, 1, 4])
        weights = self.op("Softmax", self.op("Add", self.op("MatMul", query, key), bias), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, value), perm=[0, 3, 1, 2, 4])
        flat = self.constant([0, 0, config.query_heads * config.head_dim], np.int64)
        return self.project(self.op("Reshape", mixed, flat), f"{prefix}.o_proj.weight")

    def bias(self) -> str:
        """Adds the attention bias [B, 1, 1, 1, L]: 0 for tokens, the lowest finite float32 for padding."""
        visible = self.op("Cast", "attention_mask", to=self.types.BOOL)
        lowest = float(np.finfo(np.float32).min)
        bias = self.op("Where", visible, self.constant(0.0), self.constant(lowest))
        return self.op("Unsqueeze", bias, self.constant([1, 2, 3], np.int64))

    def angles(self) -> tuple[str, str]:
        """Adds cosines and sines [L, 1, 1, E / 2] of positions 0, 1, ..."""
        frequencies = rotary_frequencies(self.config.head_dim, self.config.rope_theta)
        length = self.op("Gather", self.op("Shape", "input_ids"), self.constant(1, np.int64))
        positions = self.op("Range", self.constant(0, np.int64), length, self.constant(1, np.int64))
        positions = self.op(
            "Unsqueeze", self.op("Cast", positions, to=self.types.FLOAT), self.constant([1, 2, 3], np.int64)
        )
        angles = self.op("Mul", positions, self.constant(frequencies))
        return self.op("Cos", angles), self.op("Sin", angles)

    def rotated(self, x: str, angles: tuple[str, str]) -> str:
        """Adds RoPE on the halves of the last axis."""
        cosine, sine = angles
        first, second = self.op("Split", x, axis=-1, outputs=2)
        left = self.op("Sub", self.op("Mul", first, cosine), self.op("Mul", second, sine))
        right = self.op("Add", self.op("Mul", second, cosine), self.op("Mul", first, sine))
        return self.op("Concat", left, right, axis=-1)

    def norm(self, x: str, key: str) -> str:
        """Adds RMSNorm over the last axis."""
        mean = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(self.config.rms_norm_eps)))
        return self.op("Mul", self.op("Div", x, root), self.weight(key))

    def pooled(self, hidden: str) -> str:
        """Adds the leading dimensions of the mean over the mask, [B, dims]; zero if the mask is empty."""
        mask = self.op("Cast", "attention_mask", to=self.types.FLOAT)
        axis = self.constant([1], np.int64)
        total = self.op("Squeeze", self.op("MatMul", self.op("Unsqueeze", mask, axis), hidden), axis)
        count = self.op("ReduceSum", mask, axis, keepdims=1)
        mean = self.op("Div", total, self.op("Max", count, self.constant(1.0)))
        if self.dims == self.config.width:
            return mean
        start, end, last = (self.constant([value], np.int64) for value in (0, self.dims, 1))
        return self.op("Slice", mean, start, end, last)

    def project(self, x: str, key: str) -> str:
        return self.op("MatMul", x, self.weight(key))

    def weight(self, key: str) -> str:
        """Adds a tensor to the data file. Kernels are [in, out], their layout in memory."""
        tensor = self.tensors[key]
        tensor = tensor.T if tensor.ndim == 2 and key != _EMBEDDING else tensor
        self.data.write(b"\0" * (-self.data.tell() % _PAGE))
        content = np.ascontiguousarray(tensor, dtype="<f4")
        proto = self.types(name=key, dims=tensor.shape, data_type=self.types.FLOAT)
        proto.data_location = self.types.EXTERNAL
        for name, value in (("location", DATA), ("offset", self.data.tell()), ("length", content.nbytes)):
            proto.external_data.add(key=name, value=str(value))
        self.data.write(content.data)
        self.initializers.append(proto)
        return key

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Adds a small tensor to the graph, once per value."""
        array = np.asarray(value, dtype)
        identity = (array.dtype.str, array.shape, array.tobytes())
        if identity not in self.constants:
            self.constants[identity] = f"constant_{len(self.constants)}"
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self.constants[identity]))
        return self.constants[identity]

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node and returns the name of its value, or the names of its values."""
        name = f"{kind}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, name=name, **attributes))
        return name if outputs == 1 else names
