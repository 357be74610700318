"""Builds an index folder from embeddings; `index_part` lists its files."""

import pathlib
from typing import Any, Literal

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import link_or_copy, read_json_if_valid, write_json
from pplx_jax.core.output_folder import describes, replaced_folder, require_free
from pplx_jax.core.paths import as_path
from pplx_jax.core.progress import Progress
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, document_of
from pplx_jax.retrieval.embeddings.open_embeddings import open_to_index
from pplx_jax.retrieval.index_description import UPDATED, describe, identity, require_replaceable
from pplx_jax.retrieval.local.index_part import FORMAT, INDEX, UPDATES
from pplx_jax.retrieval.local.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.local.sign_search import default_lists, write_signs
from pplx_jax.retrieval.metrics import tie_places

StoredEngine = Literal["faiss", "numpy"]
_PROGRESS_EVERY = 10_000


def build(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    engine: StoredEngine | None = None,
    lists: int | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Builds an index folder. Arguments and errors are those of `build_index`.

    Returns:
        {"count", "dims", "quantization", "engine", "lists"}.
    """
    source, output = open_to_index(embeddings), as_path(output)
    settings = source.settings
    vectors = _open_vectors(source)
    engine, lists = _chosen(source, engine, lists, len(vectors))
    require_free(output, f"index of the engine {engine}", _is_index)
    if former := read_json_if_valid(output / INDEX):
        known = {**former, UPDATED: (output / UPDATES).exists()}
        require_replaceable(str(output), known, identity(settings, engine=engine, lists=lists), replace=replace)
    report = {"count": len(vectors), "dims": settings.dims, "quantization": settings.quantization}
    report |= {"engine": engine, "lists": lists}
    with replaced_folder(output, last=INDEX) as folder:
        for shard, files in enumerate(zip(source.vector_paths(), source.line_paths(), strict=True)):
            for file in files:
                link_or_copy(file, folder / f"{shard:05d}{file.suffix}")
        _write_rows(folder, source)
        if engine == "faiss":
            write_signs(folder, vectors, lists)
        shards = {"format": FORMAT, "shards": len(source.shards)}
        write_json(folder / INDEX, {**shards, **describe(source, output), **report})
    return report


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / INDEX, "format", "model_fingerprint", "shards", "count")


def _open_vectors(source: EmbeddingFolder) -> ShardedVectors:
    try:
        return ShardedVectors(source.vector_paths())
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(f"{source.path} is damaged ({error}); delete the folder and embed again") from None


def _chosen(
    source: EmbeddingFolder, engine: StoredEngine | None, lists: int | None, count: int
) -> tuple[StoredEngine, int]:
    """Returns the engine and its number of inverted lists."""
    settings = source.settings
    suitable = settings.quantization == "int8" and settings.dims % 8 == 0
    if engine == "faiss" and not suitable:
        raise BadInput(
            f"{source.path} holds {settings.quantization} embeddings of {settings.dims} dimensions; the engine faiss "
            "needs int8 and a multiple of 8; give --engine numpy"
        )
    engine = engine or ("faiss" if suitable else "numpy")
    if engine == "numpy":
        if lists:
            raise BadInput(f"lists={lists}: the engine numpy has no lists; leave --lists out, or give --engine faiss")
        return engine, 0
    lists = default_lists(count) if lists is None else lists
    if not 0 <= lists <= count:
        raise BadInput(f"lists={lists} for {count} vectors: give 0 to {count}")
    return engine, lists


def _write_rows(folder: pathlib.Path, source: EmbeddingFolder) -> None:
    """Writes, for each vector: the offset of its line, its document, whether it is empty, and its position in ties."""
    count = source.totals()["count"]
    offsets, documents = np.empty(count, np.int64), np.empty(count, np.int64)
    empty = np.zeros(count, bool)
    ids: list[str] = []
    document, in_chunks = -1, False
    names, repeated = set[str](), list[str]()
    with Progress("rows", count, unit="vector") as progress:
        for place in range(len(source.shards)):
            last_row = None  # a document is in one shard
            for offset, row in source.described_of(place):
                if "document" not in row or row["row"] != last_row:
                    document, last_row = document + 1, row["row"]
                    name = document_of(row)
                    repeated += [name] if name in names else []
                    names.add(name)
                in_chunks = in_chunks or "document" in row
                number = len(ids)
                offsets[number], documents[number], empty[number] = offset, document, row.get("empty", False)
                ids.append(row["id"])
                if number % _PROGRESS_EVERY == 0:
                    progress.update(number)
        progress.update(count)
        if repeated:
            progress.note(f"{len(repeated)} documents have the id of an earlier document, the first is {repeated[0]!r}")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "empty.npy", empty)
    np.save(folder / "places.npy", tie_places(ids))
    if in_chunks:
        np.save(folder / "documents.npy", documents)
