"""The verb `index`: builds an index from the folder that `embed` wrote. See `index` for its files."""

import pathlib
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import link_or_copy, read_json_if_valid, write_json
from pplx_jax.core.output_folder import describes, replaced_folder, require_free
from pplx_jax.core.paths import as_path, relative
from pplx_jax.core.progress import Progress
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.former_index import UPDATED, described_identity, embedded_from, identity, require_replaceable
from pplx_jax.retrieval.index import FORMAT, INDEX, UPDATES, BuiltEngine
from pplx_jax.retrieval.metrics import tie_places
from pplx_jax.retrieval.open_embeddings import open_embeddings
from pplx_jax.retrieval.sharded_vectors import ShardedVectors
from pplx_jax.retrieval.sign_search import default_lists, write_signs

_PROGRESS_EVERY = 10_000


def build_index(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    engine: BuiltEngine | None = None,
    lists: int | None = None,
    url: str | None = None,
    table: str | None = None,
    vespa_config_url: str | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Builds an index from a finished embedding folder.

    Args:
        embeddings: what `embed_file` wrote, see `open_embeddings`.
        output: the folder to write. The same index is built again, and takes its place when it is complete.
        engine: "faiss" stores the signs of int8 embeddings for a first search stage. "numpy" stores nothing more; each
            query is compared with every vector. "vespa" feeds a Vespa instance instead, "postgres" fills a table of
            PostgreSQL. None for faiss if the embeddings are int8 and their number of dimensions is a multiple of 8,
            else numpy.
        lists: number of inverted lists of faiss, 0 for none. None for none below `sign_search.LISTS_FROM` vectors, and
            the square root of their number above.
        url: of the server: Vespa's container, or the database, such as postgresql://USER@HOST/DATABASE.
        table: of PostgreSQL; None for "pplx_" and the name of `output`.
        vespa_config_url: `config_url` of `pplx_jax.retrieval.vespa.build`.
        replace: whether to replace an index of another model, other texts or other settings, or one that was updated.

    Returns:
        {"count", "dims", "quantization", "engine", "lists"}.

    Raises:
        BadInput: the embeddings are missing, damaged, unfinished, empty or unsuitable for the engine, or `output`
            contains something else, or another index and `replace` is false.
    """
    if engine == "vespa":
        from pplx_jax.retrieval import vespa  # needs an HTTP client

        return vespa.build(embeddings, output, url=url, config_url=vespa_config_url, replace=replace)
    if engine == "postgres":
        from pplx_jax.retrieval import postgres  # needs psycopg

        return postgres.build(embeddings, output, url=url, table=table, replace=replace)
    source, output = open_embeddings(embeddings), as_path(output)
    settings = source.settings
    vectors = _open_vectors(source)
    engine, lists = _chosen(source, engine, lists, len(vectors))
    require_free(output, f"index of the engine {engine}", _is_index)
    if former := read_json_if_valid(output / INDEX):
        known = {**described_identity(former), UPDATED: (output / UPDATES).exists()}
        require_replaceable(str(output), known, identity(settings, engine=engine, lists=lists), replace=replace)
    description = {"count": len(vectors), "dims": settings.dims, "quantization": settings.quantization}
    description |= {"engine": engine, "lists": lists}
    with replaced_folder(output, last=INDEX) as folder:
        for shard, files in enumerate(zip(source.vector_paths(), source.line_paths(), strict=True)):
            for file in files:
                link_or_copy(file, folder / f"{shard:05d}{file.suffix}")
        _write_rows(folder, source)
        if engine == "faiss":
            write_signs(folder, vectors, lists)
        write_json(
            folder / INDEX,
            {
                "format": FORMAT,
                "model": relative(source.model_folder, output),
                "model_fingerprint": settings.model_fingerprint,
                "bit_order": settings.bit_order,
                **({"prompts": settings.prompts} if settings.prompts else {}),
                "embedded_from": embedded_from(settings),
                "shards": len(source.shards),
                **description,
            },
        )
    return description


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / INDEX, "format", "model_fingerprint", "shards", "count")


def _open_vectors(source: EmbeddingFolder) -> ShardedVectors:
    if source.totals()["count"] == 0:
        raise BadInput(f"{source.path} holds no vectors; its input had no row that could be embedded")
    try:
        return ShardedVectors(source.vector_paths())
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(f"{source.path} is damaged ({error}); delete the folder and embed again") from None


def _chosen(
    source: EmbeddingFolder, engine: BuiltEngine | None, lists: int | None, count: int
) -> tuple[BuiltEngine, int]:
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
            progress.note(f"{len(repeated)} documents have the id of an earlier document, the first is {repeated[0]!r}")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "empty.npy", empty)
    np.save(folder / "places.npy", tie_places(ids))
    if in_chunks:
        np.save(folder / "documents.npy", documents)
