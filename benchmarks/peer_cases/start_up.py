"""From the start of a Python process to the first embedding: ours by what the compilation cache holds, and peers.

Every pass starts a process, which imports, loads the model, embeds one text and ends.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peer_cases import encode
from peer_cases.subject import Subject
from peer_cases.turns import chosen, measure, table_row
from pplx_jax.core.compilation_cache import FOLDER

NAMES = ("ours", "ours_cold_cache", "ours_without_cache", "sentence_transformers_float32", "onnxruntime_float32")
TEXT = "read a file line by line"
_OURS = """
from pplx_jax.core.compilation_cache import use_compilation_cache
use_compilation_cache()
import time, sys; started = time.perf_counter()
from pplx_jax import Embedder
imported = time.perf_counter()
model = Embedder.load(sys.argv[1])
loaded = time.perf_counter()
vectors = model.encode([sys.argv[3]], quantization="none")
"""
_SENTENCE_TRANSFORMERS = """
import time, sys; started = time.perf_counter()
from sentence_transformers import SentenceTransformer
imported = time.perf_counter()
model = SentenceTransformer(sys.argv[2], trust_remote_code=True)
loaded = time.perf_counter()
vectors = model.encode([sys.argv[3]], quantization="none")
"""
_ONNXRUNTIME = """
import time, sys; started = time.perf_counter()
import numpy as np, onnxruntime, tokenizers
imported = time.perf_counter()
session = onnxruntime.InferenceSession(f"{sys.argv[2]}/onnx/model.onnx")
tokenizer = tokenizers.Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json")
loaded = time.perf_counter()
ids = np.array([tokenizer.encode(sys.argv[3], add_special_tokens=False).ids], np.int64)
vectors = session.run(["pooler_output"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
"""
_REPORT = """
import json, pathlib
embedded = time.perf_counter()
peak = 1024 * int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
phases = {"import": imported - started, "load": loaded - imported, "embed": embedded - loaded, "peak_bytes": peak}
print(json.dumps({**phases, "vector": vectors[0].tolist()}))
"""


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the row of the one case; `seconds` has phases of the last pass beside the whole."""
    folders = {"ours": subject.ours, "exported": subject.exported, "vectors": os.fspath(workdir)}
    found = measure(__name__, folders, chosen(NAMES, options.implementations), compare, options.passes)
    agreements = [each["agreement"] for each in found.values() if "agreement" in each]
    row = table_row(found, {"starts": 1}, "starts")
    for name, agreement in zip(row["agreement"], agreements, strict=True):
        row["peak_bytes"][name] = agreement.pop("peak_bytes")
        row["seconds"][name] |= {f"{phase}_phase": agreement.pop(phase) for phase in ("import", "load", "embed")}
    yield f"{subject.name}, one text", row


def open_side(name: str, case: Mapping[str, Any]) -> "StartUp":
    """Opens an implementation: one of `NAMES`, with a cache folder of its own."""
    return StartUp(name, case)


class StartUp:
    """Starts processes of one implementation."""

    def __init__(self, name: str, case: Mapping[str, Any]):
        programs = {"ours": _OURS, "sentence": _SENTENCE_TRANSFORMERS, "onnxruntime": _ONNXRUNTIME}
        self._program = programs[name.partition("_")[0]] + _REPORT
        self._name, self._arguments = name, [case["ours"], case["exported"], TEXT]
        self._cache = pathlib.Path(case["vectors"]) / f"cache_of_{name}"
        self._vector = pathlib.Path(case["vectors"]) / f"start_up_{name}.npy"
        self._environment = {key: value for key, value in os.environ.items() if key != FOLDER}
        self._environment["PPLX_JAX_CACHE"] = os.fspath(self._cache)
        if name == "ours_without_cache":
            self._environment[FOLDER] = ""
        elif name == "ours":
            self.run()  # fills its cache
        self._last: dict[str, Any] = {}

    def run(self) -> None:
        if self._name == "ours_cold_cache":
            shutil.rmtree(self._cache, ignore_errors=True)
        command = [sys.executable, "-c", self._program, *self._arguments]
        done = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True)
        self._last = json.loads(done.stdout.splitlines()[-1])

    def check(self) -> dict[str, Any]:
        np.save(self._vector, [self._last.pop("vector")])
        return {"vectors": os.fspath(self._vector), **self._last}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the cosine with ours, and the phases and peak memory of the first pass.

    Raises:
      Different: as in `encode.compare`.
    """
    phases = {key: theirs[key] for key in ("import", "load", "embed", "peak_bytes")}
    return encode.compare(ours, theirs, "float32") | phases
