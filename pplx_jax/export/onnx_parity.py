"""Parity of an ONNX graph: checks that it computes the same as our model, with the tolerances of `tolerances`."""

import os
import pathlib

import numpy as np

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.export.export_parity import Parity, Reference, padded
from pplx_jax.export.onnx_graph import OUTPUTS
from pplx_jax.export.tolerances import MAX_ABS_DIFF, hidden_difference, int8_equal_share
from pplx_jax.kernels.quantization import LEVELS


def check_onnx_parity(path: pathlib.Path, model: LoadedModel, dims: int | None = None) -> Parity:
    """Runs the graph in onnxruntime on two batches of different sizes and lengths, and compares every output.

    Args:
      path: `model.onnx`.
      model: our model with the exported parameters.
      dims: of the pooled outputs; None for all.

    Raises:
      RuntimeError: the graph differs; the message names the difference.
    """
    import jax
    import onnxruntime

    from pplx_jax.inference.embedder import Embedder

    reference = Reference.of(model)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    differences, outputs = [], []
    for texts in reference.batches():
        tokens, mask = padded([model.vocabulary.encode(text) for text in texts], model.vocabulary.pad_id)
        inputs = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}
        hidden, *embeddings = map(np.asarray, session.run(list(OUTPUTS), inputs))
        differences.append(hidden_difference(hidden[mask], reference.hidden(tokens, mask)[mask], path))
        outputs.append(embeddings)
    pooled, int8, binary = (np.concatenate(batches) for batches in zip(*outputs, strict=True))
    with jax.default_matmul_precision("highest"):
        texts = [text for batch in reference.batches() for text in batch]
        v = Embedder(reference.model).encode(texts, quantization="none", dims=dims)
    if pooled.shape != v.shape:
        raise RuntimeError(f"{path}: pooled vectors have {pooled.shape[1]} dimensions, not {v.shape[1]}")
    difference = max(*differences, hidden_difference(pooled, v, path))
    if binary.dtype != np.int8 or np.any((binary != np.where(v >= 0, 1, -1)) & (np.abs(v) > MAX_ABS_DIFF)):
        raise RuntimeError(f"{path}: binary values ({binary.dtype}) are not the signs")
    return Parity(difference, int8_equal_share(int8, LEVELS * np.tanh(v), path), reference.longest)
