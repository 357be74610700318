"""The table of an index: its columns, how vectors get into it, and the query that finds and ranks them.

    number       bigint, primary key
    document     text, the id of the row that was embedded; indexed
    id           text, of the vector: a chunk of document d is "d#0", "d#1", ...
    described    jsonb, what `embed` wrote about the vector: text, path, line, chunk, ...
    signs        bit(dims), dimension 0 first; an HNSW graph finds candidates by Hamming distance
    vector       halfvec(dims), the INT8 values as they are, if the embeddings are int8

float16 holds the integers from -127 to 127 exactly, and pgvector adds up their products in float32, which is exact for
at most 1,024 dimensions. So scores equal those of the exact index. Vectors of empty texts are not stored.

A comment on the table says which model made it. Syntax: the README of pgvector; the binary format of COPY in
PostgreSQL's manual, and of the types in src/halfvec.c of pgvector and varbit.c of PostgreSQL.
"""

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, document_of
from pplx_jax.retrieval.packed_signs import packed_signs

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
_END = struct.pack("!h", -1)
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}")


def checked_name(table: str) -> str:
    """Returns the name. Raises BadInput unless SQL takes it without quotes."""
    if not _NAME.fullmatch(table):
        raise BadInput(f"{table!r} is no name of a table; use at most 50 of a-z, 0-9 and _, and no digit first")
    return table


def create(table: str, dims: int, *, int8: bool) -> str:
    """Returns the statement that creates a table without indexes."""
    vector = f", vector halfvec({dims})" if int8 else ""
    return (
        f'create table {table} (number bigint generated always as identity, document text collate "C" not null, '
        f'id text collate "C" not null, described jsonb not null, signs bit({dims}) not null{vector})'
    )


def index(table: str, links_per_node: int, explored_at_insert: int) -> list[str]:
    """Returns the statements that create the indexes of a filled table."""
    graph = f"with (m = {links_per_node}, ef_construction = {explored_at_insert})"
    return [
        f"alter table {table} add primary key (number)",
        f"create index on {table} (document)",
        f"create index on {table} using hnsw (signs bit_hamming_ops) {graph}",
        f"analyze {table}",
    ]


def copy_rows(connection: Any, table: str, folder: EmbeddingFolder) -> Iterator[int]:
    """Copies every vector of a folder with a text into the table. Yields their number after each shard."""
    int8 = folder.settings.quantization == "int8"
    columns = "document, id, described, signs" + (", vector" if int8 else "")
    count = 0
    with connection.cursor().copy(f"copy {table} ({columns}) from stdin (format binary)") as copy:
        copy.write(_HEADER)
        for shard, vectors in enumerate(folder.vectors()):
            rows = [row for _, row in folder.described_of(shard)]
            signs = packed_signs(vectors, folder.settings.quantization, folder.settings.bit_order)
            halves = np.asarray(vectors).astype(">f2") if int8 else None
            for place, row in enumerate(rows):
                if row.get("empty"):
                    continue
                fields = [
                    _text(document_of(row)),
                    _text(row["id"]),
                    b"\x01" + _json(row),
                    struct.pack("!i", folder.settings.dims) + signs[place].tobytes(),
                ]
                if halves is not None:
                    fields.append(struct.pack("!hh", folder.settings.dims, 0) + halves[place].tobytes())
                copy.write(struct.pack("!h", len(fields)) + b"".join(map(_field, fields)))
                count += 1
            yield count
        copy.write(_END)


def _field(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def _text(text: str) -> bytes:
    """Returns UTF-8. PostgreSQL stores no NUL."""
    return text.replace("\0", "\ufffd").encode()


def _json(row: dict[str, Any]) -> bytes:
    """Returns JSON without escapes of NUL, which jsonb refuses."""
    return _ESCAPED_NUL.sub("\\1\ufffd", json.dumps(row, ensure_ascii=False)).encode()


def score(dims: int, *, int8: bool) -> str:
    """Returns the expression of a vector's score, float32: its cosine with the query. A zero vector's is 0."""
    if not int8:
        return f"(({dims} - 2 * (signs <~> %(signs)s::bit({dims}))) / {dims})::real"
    return f"(1 - coalesce(nullif(vector <=> %(vector)s::halfvec({dims}), 'NaN'), 1))::real"


def search(table: str, dims: int, *, int8: bool, by_document: bool) -> str:
    """Returns the query for the k best of the candidates; parameters signs, vector, candidates and k."""
    columns = "id, document, described, signs" + (", vector" if int8 else "")
    near = f"select {columns} from {table} order by signs <~> %(signs)s::bit({dims}) limit %(candidates)s"
    scored = f"select id, document, described, {score(dims, int8=int8)} as score from ({near}) as near"
    if by_document:
        scored = f"select distinct on (document) * from ({scored}) as scored order by document, score desc, id desc"
    return f"select id, described, score from ({scored}) as best order by score desc, id desc limit %(k)s"


def chunks(table: str, dims: int, *, int8: bool) -> str:
    """Returns the query for all chunks of documents, best first; parameters signs, vector and documents."""
    scored = f"select document, described, {score(dims, int8=int8)} as score, id from {table}"
    chosen = f"{scored} where document = any(%(documents)s)"
    return f"select document, described, score from ({chosen}) as chosen order by score desc, id desc"


def parameters(query: np.ndarray, signs: np.ndarray) -> dict[str, str]:
    """Returns a query for `search` and `chunks`: its INT8 values [dims] and its packed signs [dims / 8]."""
    return {
        "vector": "[" + ",".join(map(str, query.tolist())) + "]",
        "signs": "".join(f"{byte:08b}" for byte in signs.tolist()),
    }
