"""Making an index of the folder that `embed` leaves; what is in it stands in `index`."""

import os
import pathlib
import shutil
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_json
from pplx_jax.core.output_folder import describes, replaced_folder, require_free
from pplx_jax.core.progress import Progress
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.index import FORMAT, BuiltEngine
from pplx_jax.retrieval.metrics import tie_places
from pplx_jax.retrieval.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.sign_search import default_lists, write_signs

_PROGRESS_EVERY = 10_000


def build_index(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    engine: BuiltEngine | None = None,
    lists: int | None = None,
    vespa_url: str | None = None,
    vespa_config_url: str | None = None,
) -> dict[str, Any]:
    """Makes an index of a finished embedding folder.

    Args:
        embeddings: what `embed_file` left.
        output: the folder to write; an index already there is replaced once the new one is whole.
        engine: "faiss" adds the signs of int8 embeddings for a first stage; "numpy" adds nothing, each query is
            compared with every vector; "vespa" feeds a Vespa instead. None: faiss for int8 embeddings whose signs
            fill whole bytes, else numpy.
        lists: of faiss, inverted lists; 0 for none. None: none under `sign_search.LISTS_FROM` vectors, from there
            on the square root of their number.
        vespa_url, vespa_config_url: `url` and `config_url` of `pplx_jax.retrieval.vespa.build`.

    Returns:
        {"count", "dims", "quantization", "engine", "lists"}.

    Raises:
        BadInput: the embeddings are missing, damaged, unfinished or none, do not suit the engine, or `output` is
            something else.
    """
    if engine == "vespa":
        from pplx_jax.retrieval import vespa  # its HTTP client is of no use to the others

        return vespa.build(embeddings, output, url=vespa_url, config_url=vespa_config_url)
    source, output = EmbeddingFolder.read(pathlib.Path(embeddings)), pathlib.Path(output)
    settings = source.settings
    vectors = _open_vectors(source)
    engine, lists = _chosen(source, engine, lists, len(vectors))
    require_free(output, "index", _is_index)
    model = (source.path / source.model).resolve()
    description = {"count": len(vectors), "dims": settings.dims, "quantization": settings.quantization}
    description |= {"engine": engine, "lists": lists}
    with replaced_folder(output) as folder:
        for shard in range(len(source.shards)):
            for ending in ("npy", "jsonl"):
                _link(source.path / f"{shard:05d}.{ending}", folder / f"{shard:05d}.{ending}")
        _write_rows(folder, source)
        if engine == "faiss":
            write_signs(folder, vectors, lists)
        write_json(
            folder / "index.json",
            {
                "format": FORMAT,
                "model": os.path.relpath(model, output.resolve()),
                "model_fingerprint": settings.model_fingerprint,
                "bit_order": settings.bit_order,
                "shards": len(source.shards),
                **description,
            },
        )
    return description


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / "index.json", "format", "model_fingerprint", "shards", "count")


def _open_vectors(source: EmbeddingFolder) -> ShardedVectors:
    if source.totals()["count"] == 0:
        raise BadInput(f"{source.path} holds no vectors: its input had no row that could be embedded")
    try:
        return ShardedVectors(source.vector_paths())
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(f"{source.path} is damaged ({error}); delete the folder and embed again") from None


def _chosen(
    source: EmbeddingFolder, engine: BuiltEngine | None, lists: int | None, count: int
) -> tuple[BuiltEngine, int]:
    """The engine and its inverted lists."""
    settings = source.settings
    suits = settings.quantization == "int8" and settings.dims % 8 == 0
    if engine == "faiss" and not suits:
        raise BadInput(
            f"{source.path} holds {settings.quantization} embeddings of {settings.dims} dimensions; the engine faiss "
            "takes int8 of a multiple of 8, give --engine numpy"
        )
    engine = engine or ("faiss" if suits else "numpy")
    if engine == "numpy":
        if lists:
            raise BadInput(f"lists={lists}: the engine numpy has none; leave them out, or give --engine faiss")
        return engine, 0
    lists = default_lists(count) if lists is None else lists
    if not 0 <= lists <= count:
        raise BadInput(f"lists={lists} for {count} vectors: give 0 for none, and no more than there are vectors")
    return engine, lists


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A second name of a file that is never changed, only replaced; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_rows(folder: pathlib.Path, source: EmbeddingFolder) -> None:
    """What is known of each vector beside its text: where that stands, its document, its place among equals."""
    count = source.totals()["count"]
    offsets, documents = np.empty(count, np.int64), np.empty(count, np.int64)
    empty = np.zeros(count, bool)
    ids: list[str] = []
    document, last_row, in_chunks = -1, None, False
    names, repeated = set[str](), list[str]()
    with Progress("rows", count, unit="vector") as progress:
        for place in range(len(source.shards)):
            for offset, row in source.described_of(place):
                if "document" not in row or row["row"] != last_row:
                    document, last_row = document + 1, row["row"]
                    name = row.get("document", row["id"])
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
            progress.note(f"{len(repeated)} documents have the id of an earlier one, the first {repeated[0]!r}")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "empty.npy", empty)
    np.save(folder / "places.npy", tie_places(ids))
    if in_chunks:
        np.save(folder / "documents.npy", documents)
