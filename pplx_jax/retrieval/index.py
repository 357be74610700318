"""An index: the vectors of an embedding folder in one matrix, their texts, and the model that queries need.

    index.json     {format, model (relative to the folder), model_fingerprint, dims, quantization, bit_order,
    count} vectors.npy    [N, width]
    places.npy     int64 [N], the order of ties: ids descending
    empty.npy      bool [N], vectors of empty texts, which are never hits
    rows.jsonl     one object a vector, and offsets.npy int64 [N + 1], where each begins

Loading maps the files and reads none of them whole, so it takes no time at any size.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.errors import BadInput
from pplx_jax.models.quantization import BitOrder, Quantization, quantize
from pplx_jax.retrieval import rows
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.encoder import Encoder, load_encoder
from pplx_jax.retrieval.metrics import tie_places
from pplx_jax.retrieval.search import top_k

FORMAT = 1
_HIT_FIELDS = ("id", "text", "path", "line", "document", "chunk")


def build_index(embeddings: str | pathlib.Path, output: str | pathlib.Path) -> dict[str, Any]:
    """Makes an index of a finished embedding folder.

    Args:
        embeddings: what `embed_file` left.
        output: the folder to write; an index already there is replaced once the new one is whole.

    Returns:
        {"count", "dims", "quantization"}.

    Raises:
        BadInput: the embeddings are missing, unfinished or none, or `output` is a folder of something else.
    """
    source, output = EmbeddingFolder.read(pathlib.Path(embeddings)), pathlib.Path(output)
    shards = list(source.vectors())
    count = sum(len(shard) for shard in shards)
    if count == 0:
        raise BadInput(f"{source.path} holds no vectors: its input had no row that could be embedded")
    if output.exists() and any(output.iterdir()) and not (output / "index.json").exists():
        raise BadInput(f"{output} exists and is no index; give another --output")
    model = (source.path / source.model).resolve()
    settings = source.settings
    with _replaced_folder(output) as folder:
        vectors = np.lib.format.open_memmap(
            folder / "vectors.npy", "w+", dtype=shards[0].dtype, shape=(count, shards[0].shape[1])
        )
        np.concatenate(shards, out=vectors)
        vectors.flush()
        ids, empty = _write_rows(folder, source)
        np.save(folder / "places.npy", tie_places(ids))
        np.save(folder / "empty.npy", np.array(empty))
        description = {"dims": settings.dims, "quantization": settings.quantization, "count": count}
        rows.write_json(
            folder / "index.json",
            {
                "format": FORMAT,
                "model": os.path.relpath(model, output.resolve()),
                "model_fingerprint": settings.model_fingerprint,
                "bit_order": settings.bit_order,
                **description,
            },
        )
    return description


def _write_rows(folder: pathlib.Path, source: EmbeddingFolder) -> tuple[list[str], list[bool]]:
    ids, empty, offsets = [], [], [0]
    with open(folder / "rows.jsonl", "wb") as file:
        for line in source.described():
            row = json.loads(line)
            ids.append(row["id"])
            empty.append(row.get("empty", False))
            offsets.append(offsets[-1] + file.write(line))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    return ids, empty


@contextlib.contextmanager
def _replaced_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


class Index:
    """An index on disk, opened for searching.

    Attributes:
        path: its folder.
        model: the model folder that encodes queries.
        model_fingerprint: names the model; vectors of another are refused.
        dims, quantization, bit_order, count: of the vectors.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any]):
        """Use `Index.load`."""
        self.path = path
        self.model = (path / description["model"]).resolve()
        self.model_fingerprint: str = description["model_fingerprint"]
        self.dims: int = description["dims"]
        self.quantization: Quantization = description["quantization"]
        self.bit_order: BitOrder = description["bit_order"]
        self.count: int = description["count"]
        self._vectors = np.load(path / "vectors.npy", mmap_mode="r")
        self._places = np.load(path / "places.npy", mmap_mode="r")
        self._empty = np.load(path / "empty.npy")
        self._offsets = np.load(path / "offsets.npy", mmap_mode="r")

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Index":
        """Opens an index.

        Raises:
            BadInput: there is none, or it is damaged or of another version.
        """
        path = pathlib.Path(path)
        try:
            description = json.loads((path / "index.json").read_text(encoding="utf-8"))
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
            return cls(path, description)
        except FileNotFoundError as error:
            raise BadInput(f"no index in {path}: {error.filename} is missing; make one with `index`") from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"the index {path} cannot be used ({error}); make it again with `index`") from None

    def search(self, query: np.ndarray, k: int = 10, *, model_fingerprint: str | None = None) -> list[dict[str, Any]]:
        """The k best vectors.

        Args:
            query: [width], quantized as the index is.
            k: hits wanted; fewer come back from a smaller index.
            model_fingerprint: the model that made `query`, checked where given.

        Returns:
            Hits, best first, ties by id descending: {"id", "score": cosine (of signs: 1 - 2 Hamming / dims),
            "text", "path", "line", ...}; path and line are None where the input had none.

        Raises:
            BadInput: the query is of another model, width or quantization, or k is less than 1.
        """
        if model_fingerprint not in (None, self.model_fingerprint):
            raise BadInput(
                f"the query was encoded by model {model_fingerprint}, the index {self.path} by "
                f"{self.model_fingerprint}; encode it with {self.model}"
            )
        query = np.asarray(query)
        if query.shape != self._vectors.shape[1:] or query.dtype != self._vectors.dtype:
            raise BadInput(
                f"the query is {query.dtype}{list(query.shape)}, the index {self.path} holds "
                f"{self._vectors.dtype}[{self._vectors.shape[1]}]; encode it with "
                f"quantization={self.quantization!r}, dims={self.dims}"
            )
        if k < 1:
            raise BadInput(f"k={k}: ask for at least one hit")
        packed = self.quantization == "ubinary"
        documents, scores = top_k(query[None], self._vectors, self._places, k, packed=packed, excluded=self._empty)
        with open(self.path / "rows.jsonl", "rb") as file:
            return [self._hit(file, *pair) for pair in zip(documents[0], scores[0], strict=True)]

    def _hit(self, file, document: int, score: float) -> dict[str, Any]:
        file.seek(self._offsets[document])
        row = json.loads(file.readline())
        hit = {"id": row["id"], "score": float(score), "text": row["text"], "path": None, "line": None}
        return hit | {name: row[name] for name in _HIT_FIELDS if name in row}

    def encode_query(self, text: str, encoder: Encoder) -> np.ndarray:
        """The query's vector [width], quantized as the index is.

        Raises:
            BadInput: the text is empty, or the model is not the one of the index.
        """
        if not text.strip():
            raise BadInput("the query is empty; give some text to search for")
        if encoder.fingerprint != self.model_fingerprint:
            raise BadInput(
                f"the index {self.path} was made by model {self.model_fingerprint}, {self.model} is now "
                f"{encoder.fingerprint}; embed and index again"
            )
        pooled = encoder.encode([text], quantization="none", dims=self.dims)
        return quantize(pooled, self.quantization, self.bit_order)[0]


def search_index(
    index: str | pathlib.Path, query: str, k: int = 10, *, encoder: Encoder | None = None
) -> dict[str, Any]:
    """Searches an index for a text; loads the model that the index points at unless `encoder` is given.

    Returns:
        {"hits": [...]}; see `Index.search`.

    Raises:
        BadInput: an empty query, or an index or model that cannot be used.
    """
    opened = Index.load(index)
    if not query.strip():
        raise BadInput("the query is empty; give some text to search for")
    encoder = encoder or load_encoder(opened.model)
    return {"hits": opened.search(opened.encode_query(query, encoder), k, model_fingerprint=encoder.fingerprint)}
