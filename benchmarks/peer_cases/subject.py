"""The model and the texts that all implementations get.

The model is a folder of ours and its export to Hugging Face and ONNX, so all have the same weights and vocabulary.
"""

import dataclasses
import functools
import gzip
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pplx_jax.checkpoints.model_folder import load_model, save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.export.export_hf import export_hf
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SEPARATOR = "\n\n"
_PAIR_SETS = ("medquad", "jaquad-train", "jaquad-dev", "drcd-dev", "drcd-test")
_LONGEST_WORD = 40  # characters; a text without spaces is one word
# The widths of one block, from gin/models. The vocabulary is trained on the texts, so its table is larger than it.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49_152, "width": 576, "mlp_width": 1536, "query_heads": 9, "kv_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "max_length": 8192, "qk_norm": False,
    },
    "qwen3_0p6b": {
        "vocab_size": 151_936, "width": 1024, "mlp_width": 3072, "query_heads": 16, "kv_heads": 8, "head_dim": 128,
        "max_length": 32_768,
    },
    "tiny": {
        "vocab_size": 512, "width": 32, "mlp_width": 64, "query_heads": 2, "kv_heads": 1, "head_dim": 16,
        "max_length": 1024,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model in every form.

    Attributes:
      name: for the names of cases.
      ours: model folder, bidirectional.
      exported: Hugging Face folder with float32 weights and `onnx/model.onnx`.
    """

    name: str
    ours: str
    exported: str

    @functools.cached_property
    def vocabulary(self) -> Any:
        return load_vocabulary(pathlib.Path(self.ours))

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text [n]."""
        return np.array([len(ids) for ids in self.vocabulary.encode_batch(list(texts))], np.int64)


def make_subject(model: str, layers: int, texts: Sequence[str], workdir: pathlib.Path) -> Subject:
    """Writes a model and its export, if the workdir does not have them yet.

    Args:
      model: a model folder, or a name of `SHAPES` for random weights.
      layers: of random weights; of a model folder all layers are kept.
      texts: to train the vocabulary of random weights on.
      workdir: where to write.
    """
    shape = SHAPES.get(model)
    if shape is None and not pathlib.Path(model).is_dir():
        raise BadInput(f"--model {model}: no such folder, and not one of {', '.join(SHAPES)}")
    name = f"{model}, {layers} layers" if shape else pathlib.Path(model).name
    folder = workdir / name.replace(", ", "_").replace(" ", "_")
    ours, exported = folder / "model", folder / "exported"
    subject = Subject(name, os.fspath(ours), os.fspath(exported))
    if exported.is_dir():
        return subject
    if shape:
        folder.mkdir(parents=True, exist_ok=True)
        config = Qwen3Config(layers=layers, dtype="float32", **shape)
        vocabulary = train_vocabulary(texts, folder / "vocabulary.model", min(8192, config.vocab_size))
        params = initial_params(config, 0)
    else:
        loaded = load_model(model)
        config, vocabulary, params = dataclasses.replace(loaded.config, causal=False), loaded.vocabulary, loaded.params
    save_model(ours, config, vocabulary, params, stage="benchmark")
    export_hf(ours, exported, onnx=True)
    return subject


def read_texts(path: pathlib.Path | None) -> list[str]:
    """Returns texts of mixed lengths, in a fixed order: of a file, of `../shared/data`, or of this project's pages.

    Args:
      path: JSON lines with `text`, also gzipped; None for the other two.
    """
    if path is not None:
        return list(_of_file(path))
    if SHARED.is_dir():
        sets = ("medquad", "mbxp-python", "jaquad-dev")
        files = [SHARED / "retrieval" / name / "corpus.jsonl.gz" for name in sets]
        each = [list(_of_file(file)) for file in files] + [list(_of_file(SHARED / "text" / "fastapi-docs.jsonl.gz"))]
        return [text for some in zip(*each, strict=False) for text in some]
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    return [part for page in pages for part in page.split(SEPARATOR) if part.strip()]


def read_pairs(path: pathlib.Path | None) -> list[tuple[str, str]]:
    """Returns pairs of a query and its document: of a BEIR folder, of `../shared/data`, or of this project's pages."""
    if path is None and not SHARED.is_dir():  # a paragraph finds the one after it
        texts = read_texts(None)
        return list(zip(texts[::2], texts[1::2], strict=False))
    folders = [path] if path else [SHARED / "retrieval" / name for name in _PAIR_SETS]
    return [pair for folder in folders for pair in _pairs_of(folder)]


def _pairs_of(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    found = read_beir(folder)
    documents = dict(zip(found.document_ids, found.documents, strict=True))
    for name, query in zip(found.query_ids, found.queries, strict=True):
        yield query, documents[max(found.qrels[name].items(), key=lambda each: each[1])[0]]


def _of_file(path: pathlib.Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def choose(texts: Sequence[str], count_tokens: Any, tokens: int, most: int) -> list[str]:
    """Returns the first texts of together about `tokens` tokens, without those of more than `most` tokens."""
    chosen, total = [], 0
    for begin in range(0, len(texts), 256):
        some = [text for text in texts[begin : begin + 256] if text.strip()]
        for text, count in zip(some, count_tokens(some).tolist(), strict=True):
            if 0 < count <= most:
                chosen.append(text)
                total += count
                if total >= tokens:
                    return chosen
    if not chosen:
        raise BadInput(f"no text has 1 to {most} tokens")
    return chosen


def of_length(texts: Sequence[str], count_tokens: Any, tokens: int, length: int) -> list[str]:
    """Returns texts of nearly `length` tokens, and never more, of together about `tokens` tokens.

    Each is cut from all texts, joined. At least one is returned.
    """
    found = [word for text in texts for word in text.split() if len(word) < _LONGEST_WORD]
    words = itertools.cycle(found)
    made = []
    while len(made) * length < tokens:
        words_of_text: list[str] = []
        count = 0
        while count < length:  # a piece at a time, so that the count is nearly right when the loop ends
            words_of_text += itertools.islice(words, max((length - count) // 4, 1))
            count = int(count_tokens([" ".join(words_of_text)])[0])
        while count > length:
            del words_of_text[-max((count - length) // 4, 1) :]
            count = int(count_tokens([" ".join(words_of_text)])[0])
        made.append(" ".join(words_of_text))
    return made
