"""Makes a source from a file alone, by its columns."""

import itertools
from collections.abc import Collection

from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.file_formats import Row, Unreadable, list_shards, read_rows
from pplx_jax.data.sources.source import Kind, Source

_ROWS_TRIED = 100  # rows that may be unreadable before the first good one
_SYNONYMS = {"positive": "document", "document_id": "id"}  # field -> another common name of its column
_ANY_SHARE = 0.999999  # a report counts bad rows, and stops only if no row is good


def source_of_file(path: str, name: str, text_field: str = "text") -> Source:
    """Returns a source that reads a file. Its kind follows from the columns of the first readable row.

    | columns | kind |
    |---|---|
    | `chunks` and (`queries` or `query`) | contextual |
    | `query`, `positive` or `document`, `negatives` | triplet |
    | `query`, `positive` or `document` | pair |
    | `text_field`, or `chunks` alone | text |

    Args:
        path: a file or a pattern of files, JSON lines or Parquet; also as a URL.
        name: the name of the source.
        text_field: the column of texts without queries.

    Raises:
        BadInput: there is no such file, none of its first rows can be read, or the columns are none of the above.
    """
    row = _first_row(path)
    kind = _kind_of(row, text_field)
    if kind is None:
        raise BadInput(
            f"{path}: columns {', '.join(row) or '(none)'}; give {text_field}, query and positive, or chunks and "
            "queries (--text_field names another column of texts)"
        )
    columns = {field: other for field, other in _SYNONYMS.items() if field not in row and other in row}
    negatives = row.get("negatives")
    return Source(
        name=name,
        kind=kind,
        path=path,
        columns={**columns, "text": text_field} if text_field != "text" else columns,
        negatives=len(negatives) if isinstance(negatives, list) else 1,
        max_bad_share=_ANY_SHARE,
    )


def _first_row(path: str) -> Row:
    shard = list_shards(path, "auto", "train")[0]
    for _, row in itertools.islice(read_rows(path, shard, "auto", "train"), _ROWS_TRIED):
        if not isinstance(row, Unreadable):
            return row
    raise BadInput(f"{path}: none of the first {_ROWS_TRIED} rows can be read; give JSON lines or Parquet")


def _kind_of(columns: Collection[str], text_field: str) -> Kind | None:
    if "chunks" in columns and ("queries" in columns or "query" in columns):
        return "contextual"
    if "query" in columns and ("positive" in columns or "document" in columns):
        return "triplet" if "negatives" in columns else "pair"
    if text_field in columns or "chunks" in columns:
        return "text"
    return None
