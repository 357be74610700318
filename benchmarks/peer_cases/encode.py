"""Encoding texts to INT8 embeddings: ours, sentence-transformers, torch.compile and onnxruntime.

Every implementation gets a list of texts and returns their embeddings, so tokenization, sorting, padding or packing,
and quantization are part of the time. "from ids" leaves tokenization out.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from peer_cases.subject import Subject, choose, of_length, read_texts
from peer_cases.turns import Different, chosen, measure, table_row

# The first one is what the others are compared with.
NAMES = (
    "ours_float32",
    "ours",
    "ours_bfloat16",
    "sentence_transformers_float32",
    "sentence_transformers_bfloat16",
    "torch_compile_float32",
    "torch_compile_bfloat16",
    "onnxruntime_float32",
    "onnxruntime_int8",
)
_LONGEST_OF_MIX = 2048  # tokens
_BATCH_SIZE = 32  # the default of sentence-transformers
# Smallest cosine of a text's vector with ours in float32. INT8 weights are another model: its share is only reported.
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.98, "int8": 0.0}


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names and rows of the cases: a mix of lengths, equal lengths, the mix from token ids; INT8 apart."""
    texts, count_tokens = read_texts(options.texts), subject.count_tokens
    mix = choose(texts, count_tokens, options.mix_tokens, _LONGEST_OF_MIX)
    sets = {"mix": (mix, False)} | ({"mix, from ids": (mix, True)} if options.from_ids else {})
    sets |= {f"{each}": (of_length(texts, count_tokens, options.tokens, each), False) for each in options.lengths}
    for name, (some, from_ids) in sets.items():
        case = {
            "ours": subject.ours,
            "exported": subject.exported,
            "texts": some,
            "from_ids": from_ids,
            "threads": options.threads,
            "vectors": os.fspath(workdir),
        }
        found = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
        counts = count_tokens(some)
        facts = {"texts": len(some), "tokens": int(counts.sum()), "longest": int(counts.max())}
        whole = f"{subject.name}, {name}"
        yield whole, table_row({key: each for key, each in found.items() if "int8" not in key}, facts)
        if int8 := {key: each for key, each in found.items() if "int8" in key}:
            yield f"{whole}, int8", table_row({"ours": found["ours"], **int8}, facts)


def open_side(name: str, case: Mapping[str, Any]) -> "Encode":
    """Opens an implementation.

    Args:
      name: one of `NAMES`.
      case: `ours`, `exported`: folders of the model; `texts`; `from_ids`: whether tokens are given; `threads`;
        `vectors`: file for the vectors of the first texts.
    """
    precision = name.rpartition("_")[2]
    if name.startswith("ours"):
        opened: Any = _Ours(case, None if name == "ours" else precision)
    elif name.startswith("onnxruntime"):
        opened = _OnnxRuntime(case, precision)
    else:
        opened = _SentenceTransformer(case, precision, compiled=name.startswith("torch_compile"))
    return Encode(opened, case["texts"], case["from_ids"], pathlib.Path(case["vectors"]) / f"{name}.npy")


@dataclasses.dataclass
class Encode:
    """One implementation with its texts; see `peer_cases.turns.Side`."""

    opened: Any
    texts: Sequence[str]
    from_ids: bool
    vectors: pathlib.Path

    @functools.cached_property
    def ids(self) -> Any:
        return self.opened.tokenize(self.texts)

    def run(self) -> np.ndarray:
        return self.opened.of_ids(self.ids) if self.from_ids else self.opened.encode(self.texts)

    def check(self) -> dict[str, Any]:
        np.save(self.vectors, self.opened.floats(self.texts))
        return {"vectors": str(self.vectors)}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the least and the mean cosine of the vectors of a text.

    Raises:
      Different: the least one is under what the precision explains.
    """
    a, b = (np.load(each["vectors"]).astype(np.float64) for each in (ours, theirs))
    if a.shape != b.shape:
        raise Different(f"{name}: vectors {b.shape}, ours {a.shape}")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    least = _LEAST_COSINE.get(name.rpartition("_")[2], _LEAST_COSINE["bfloat16"])
    if not cosines.min() >= least:
        raise Different(f"{name}: a vector has cosine {cosines.min():.5f} with ours, less than {least}")
    return {"least_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


class _Ours:
    def __init__(self, case: Mapping[str, Any], dtype: str | None):
        import jax

        from pplx_jax.checkpoints.model_folder import load_model
        from pplx_jax.inference.embedder import Embedder
        from pplx_jax.kernels.platform import fast_dtype
        from pplx_jax.kernels.quantization import quantize

        model = load_model(case["ours"])
        config = dataclasses.replace(model.config, dtype=dtype or fast_dtype(jax.default_backend()))
        model = dataclasses.replace(model, config=config)
        self._embedder, self._quantize = Embedder(model), quantize

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.encode(texts)

    def floats(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.encode(texts, quantization="none")

    def tokenize(self, texts: Sequence[str]) -> Any:
        return self._embedder.vocabulary.encode_batch(list(texts))

    def of_ids(self, ids: Any) -> np.ndarray:
        return self._quantize(self._embedder.encode_tokens(ids), "int8")


class _SentenceTransformer:
    def __init__(self, case: Mapping[str, Any], precision: str, compiled: bool):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(case["threads"])
        self._torch = torch
        self._model = SentenceTransformer(
            case["exported"], trust_remote_code=True, model_kwargs={"dtype": getattr(torch, precision)}
        )
        if compiled:
            self._model[0].auto_model.compile(dynamic=True)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(list(texts), batch_size=_BATCH_SIZE, show_progress_bar=False)

    def floats(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(list(texts), batch_size=_BATCH_SIZE, show_progress_bar=False, quantization="none")

    def tokenize(self, texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        batches = [order[begin : begin + _BATCH_SIZE] for begin in range(0, len(order), _BATCH_SIZE)]
        return [(batch, self._model.preprocess([texts[place] for place in batch])) for batch in batches]

    def of_ids(self, ids: Any) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        with self._torch.inference_mode():
            for batch, features in ids:
                rows = self._model.forward(dict(features))["sentence_embedding"].numpy()
                found.update(zip(batch, rows, strict=True))
        return np.stack([found[place] for place in range(len(found))])


class _OnnxRuntime:
    """The graph of the export, with batches as sentence-transformers makes them."""

    def __init__(self, case: Mapping[str, Any], precision: str):
        import onnxruntime
        from tokenizers import Tokenizer

        exported = pathlib.Path(case["exported"])
        path = exported / "onnx" / "model.onnx"
        if precision == "int8":
            path = _int8_graph(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case["threads"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.enable_padding()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.of_ids(self.tokenize(texts))

    def floats(self, texts: Sequence[str]) -> np.ndarray:
        return self._run(self.tokenize(texts), "pooler_output")

    def tokenize(self, texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        found = []
        for begin in range(0, len(order), _BATCH_SIZE):
            batch = order[begin : begin + _BATCH_SIZE]
            encoded = self._tokenizer.encode_batch_fast([texts[place] for place in batch], add_special_tokens=False)
            inputs = {
                "input_ids": np.array([each.ids for each in encoded], np.int64),
                "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
            }
            found.append((batch, inputs))
        return found

    def of_ids(self, ids: Any) -> np.ndarray:
        return self._run(ids, "pooler_output_int8")

    def _run(self, batches: Any, output: str) -> np.ndarray:
        found: dict[int, np.ndarray] = {}
        for batch, inputs in batches:
            found.update(zip(batch, self._session.run([output], inputs)[0], strict=True))
        return np.stack([found[place] for place in range(len(found))])


def _int8_graph(path: pathlib.Path) -> pathlib.Path:
    """Writes the graph with INT8 weights, one scale per column; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = path.with_name("model_int8.onnx")
    if not made.exists():
        quantize_dynamic(path, made, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    return made
