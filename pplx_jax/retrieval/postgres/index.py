"""An index in PostgreSQL: builds it from embeddings, searches it, adds and deletes documents.

A folder describes it:

    postgres.json    {"format", "url" (without a password), "table", "has_chunks", "count"} and what
                     `index_description.describe` returns
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid, write_json
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.core.paths import as_path
from pplx_jax.core.progress import Progress
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, document_of
from pplx_jax.retrieval.embeddings.open_embeddings import open_to_index
from pplx_jax.retrieval.index_description import UPDATED, describe, identity, read_description, require_replaceable
from pplx_jax.retrieval.packed_signs import packed_signs, require_signs
from pplx_jax.retrieval.postgres import table as sql
from pplx_jax.retrieval.postgres.connection import connected, without_password
from pplx_jax.retrieval.search_options import SearchOptions
from pplx_jax.retrieval.searchable_index import Hit, SearchableIndex
from pplx_jax.retrieval.shown_hit import CHUNKS_SHOWN, shown_chunk, shown_hit

FORMAT = 1
DESCRIPTION = "postgres.json"
_MOST_EF = 1000  # the limit of hnsw.ef_search; more candidates come from an iterative scan
_WIDENING = 4


@dataclasses.dataclass(frozen=True)
class PostgresOptions:
    """Options of the table.

    Attributes:
        links_per_node, explored_at_insert: of the HNSW graph over the signs. Larger values increase recall, size and
            the time to build it.
        build_memory: PostgreSQL's maintenance_work_mem while the graph is built. The build is slow if it does not fit.
    """

    links_per_node: int = 16
    explored_at_insert: int = 200
    build_memory: str = "1GB"


def build(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    url: str | None,
    table: str | None = None,
    options: PostgresOptions = PostgresOptions(),
    replace: bool = False,
) -> dict[str, Any]:
    """Copies an embedding folder into a table and builds its indexes. The same index is built again.

    It is one transaction. Searches use the former table until it ends. After an interruption the database is as before.

    Args:
        embeddings: what `embed_file` wrote, see `open_embeddings`, with quantization "int8", "binary" or "ubinary".
        output: the folder that describes the index.
        url: address of the database, such as postgresql://USER@HOST/DATABASE. A password in it is not stored.
        table: name of the table; None for the name of `output` with "pplx_" before it.
        options: of the table.
        replace: whether to replace another index in `output` or in the table.

    Returns:
        {"count": number of stored vectors, "dims", "quantization", "table"}.

    Raises:
        BadInput: the embeddings are missing, unfinished, empty or floats, `output` or the table is something else, or
            another index and `replace` is false, or the server does not answer or has no pgvector.
    """
    source, output = open_to_index(embeddings), as_path(output)
    settings = source.settings
    if url is None:
        raise BadInput("the engine postgres needs --url, such as postgresql://USER@HOST/DATABASE")
    require_signs(source, "postgres")
    require_free(output, "PostgreSQL index", _is_index)
    name = sql.checked_name(table or "pplx_" + "".join(c if c.isalnum() else "_" for c in output.name.lower()))
    if former := read_json_if_valid(output / DESCRIPTION):
        require_replaceable(str(output), former, identity(settings, table=name), replace=replace)
    new, int8 = f"{name}_new", settings.quantization == "int8"
    has_chunks = any("document" in row for row in source.described())
    with connected(url) as connection:
        if former := _comment_of(connection, name):
            require_replaceable(f"the table {name}", former, identity(settings), replace=replace)
        connection.execute("create extension if not exists vector")
        connection.execute(f"drop table if exists {new}")
        connection.execute(sql.create(new, settings.dims, int8=int8))
        count = _copy(connection, new, source)
        connection.execute("select set_config('maintenance_work_mem', %s, true)", (options.build_memory,))
        for statement in sql.index(new, options.links_per_node, options.explored_at_insert):
            connection.execute(statement)
        connection.execute(f"drop table if exists {name}")
        connection.execute(f"alter table {new} rename to {name}")
        _comment(connection, name, identity(settings))
    output.mkdir(parents=True, exist_ok=True)
    where = {"format": FORMAT, "url": without_password(url), "table": name}
    write_json(output / DESCRIPTION, {**where, **describe(source, output), "has_chunks": has_chunks, "count": count})
    return {"count": count, "dims": settings.dims, "quantization": settings.quantization, "table": name}


class PostgresIndex(SearchableIndex):
    """An index in PostgreSQL, opened for searching; more attributes in `BaseIndex`.

    Attributes:
        table: its name.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any], url: str | None = None):
        """Use `PostgresIndex.load` instead."""
        super().__init__(path, description)
        self.table: str = sql.checked_name(description["table"])
        self._description = description
        self._url: str = url or description["url"]
        self._int8 = self.quantization == "int8"

    @classmethod
    def load(cls, path: str | pathlib.Path, url: str | None = None) -> "PostgresIndex":
        """Opens an index. `url` is needed if the database has another address than when the index was built.

        Raises:
            BadInput: there is no index, it is damaged or of another version, or the table is of another model.
        """
        path = as_path(path)
        if not (path / DESCRIPTION).exists():
            raise BadInput(f"no PostgreSQL index in {path}; make one with `index --engine postgres`")
        with read_description(path / DESCRIPTION, FORMAT) as description:
            index = cls(path, description, url)
        with connected(index._url) as connection:
            found = (_comment_of(connection, index.table) or {}).get("model_fingerprint")
        if found != index.model_fingerprint:
            raise BadInput(
                f"the table {index.table} is of model {found}, the index {path} of {index.model_fingerprint}; "
                "make the index again"
            )
        return index

    def search_pooled(
        self, queries: np.ndarray, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        if k < 1:
            raise BadInput(f"k={k}: request at least one hit")
        self.require_engine(options, "postgres")
        stored = quantize(queries, self.quantization, self.bit_order)
        signs = packed_signs(stored, self.quantization, self.bit_order)
        with connected(self._url) as connection:
            return [
                self._search(connection, sql.parameters(*each), k, options.count(k))
                for each in zip(stored, signs, strict=True)
            ]

    def _search(self, connection: Any, query: dict[str, str], k: int, candidates: int) -> list[Hit]:
        """Returns the hits of one query. Asks for more candidates while they belong to fewer than k documents."""
        has_chunks = self._description["has_chunks"]
        statement = sql.search(self.table, self.dims, int8=self._int8, by_document=has_chunks)
        while True:
            _set_effort(connection, candidates)
            found = connection.execute(statement, query | {"candidates": candidates, "k": k}).fetchall()
            if len(found) >= k or candidates >= self.count:
                break
            candidates *= _WIDENING
        hits = [shown_hit(row, score) for _, row, score in found]
        if has_chunks:
            self._add_chunks(connection, query, hits)
        return hits

    def _add_chunks(self, connection: Any, query: dict[str, str], hits: list[Hit]) -> None:
        """Adds the best chunks of the document to each hit that is a chunk."""
        documents = [hit["document"] for hit in hits if "chunk" in hit]
        statement = sql.chunks(self.table, self.dims, int8=self._int8)
        best: dict[str, list[Hit]] = {}
        for document, row, score in connection.execute(statement, query | {"documents": documents}):
            best.setdefault(document, []).append(shown_chunk(row, score))
        for hit in hits:
            if "chunk" in hit:
                hit["chunks"] = best[hit["document"]][:CHUNKS_SHOWN]

    def update(self, embeddings: EmbeddingFolder) -> dict[str, int]:
        self.require_same_form(embeddings)
        ids, chunks = set[str](), False
        for row in embeddings.described():
            ids.add(document_of(row))
            chunks = chunks or "document" in row
        with connected(self._url) as connection:
            replaced = self._delete(connection, ids)
            added = _copy(connection, self.table, embeddings)
            self._note(connection, chunks)
        return {"added": added, "replaced": replaced}

    def delete(self, ids: Collection[str]) -> dict[str, int]:
        with connected(self._url) as connection:
            deleted = self._delete(connection, ids)
            self._note(connection)
        return {"deleted": deleted, "missing": len(set(ids)) - deleted}

    def _delete(self, connection: Any, ids: Collection[str]) -> int:
        """Deletes documents and returns their number."""
        gone = f"delete from {self.table} where document = any(%s) returning document"
        row = connection.execute(f"with gone as ({gone}) select count(distinct document) from gone", (list(ids),))
        return row.fetchone()[0]

    def _note(self, connection: Any, chunks: bool = False) -> None:
        """Writes what changed to the description."""
        self.count = connection.execute(f"select count(*) from {self.table}").fetchone()[0]
        chunks = chunks or self._description["has_chunks"]
        self._description |= {"count": self.count, "has_chunks": chunks, UPDATED: True}
        _comment(connection, self.table, {**(_comment_of(connection, self.table) or {}), UPDATED: True})
        write_json(self.path / DESCRIPTION, self._description)


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / DESCRIPTION, "format", "table", "model_fingerprint", "count")


def _set_effort(connection: Any, candidates: int) -> None:
    """Makes the graph return this many candidates in the next statement."""
    settings = {
        "hnsw.ef_search": min(candidates, _MOST_EF),
        "hnsw.iterative_scan": "relaxed_order" if candidates > _MOST_EF else "off",
        "hnsw.max_scan_tuples": max(20_000, 10 * candidates),
    }
    for name, value in settings.items():
        connection.execute("select set_config(%s, %s, true)", (name, str(value)))


def _copy(connection: Any, table: str, source: EmbeddingFolder) -> int:
    count = 0
    with Progress("copy", source.totals()["count"], unit="vector") as progress:
        for count in sql.copy_rows(connection, table, source):
            progress.update(count)
    return count


def _comment(connection: Any, table: str, values: Mapping[str, Any]) -> None:
    text = json.dumps({"pplx_jax": FORMAT, **values})
    connection.execute(f"comment on table {table} is '{text.replace(chr(39), chr(39) * 2)}'")


def _comment_of(connection: Any, table: str) -> dict[str, Any] | None:
    """Returns the values of `_comment`, at least "model_fingerprint", or None if the table does not exist.

    Raises:
        BadInput: the table is not the table of an index.
    """
    row = connection.execute(
        "select obj_description(to_regclass(%s), 'pg_class') where to_regclass(%s) is not null", (table, table)
    ).fetchone()
    if row is None:
        return None
    try:
        values = json.loads(row[0])
        return {**values, "model_fingerprint": values["model_fingerprint"]}
    except (TypeError, ValueError, KeyError):
        raise BadInput(f"the table {table} is not that of an index; give another --output or --table") from None
