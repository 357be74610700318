"""Opens all token tables of a folder: one table, one per source, or one per source and shard."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.token_table import MANIFEST, TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary

Tables = Mapping[str, Sequence[TokenTable]]


def open_tables(
    folder: str | pathlib.Path, *, kind: str | None = None, vocabulary: Vocabulary | None = None, verify: bool = False
) -> dict[str, list[TokenTable]]:
    """Opens FOLDER itself, or every FOLDER/SOURCE or FOLDER/SOURCE/SHARD.

    Args:
        folder: of one kind of example.
        kind: the kind that the tables must have.
        vocabulary: the vocabulary that made them.
        verify: whether to read every offset (`TokenTable.verify`); one process of a job is enough.

    Returns:
        Source -> its tables, in the order of the shards' names.

    Raises:
        BadInput: there is no table; a table is damaged, or of another kind or vocabulary; or shards are missing or
            come from several runs.
    """
    folder = local_copy(as_path(folder))

    def open_one(path: pathlib.Path) -> TokenTable:
        table = TokenTable.open(path, kind=kind, vocabulary=vocabulary)
        if verify:
            table.verify()
        return table

    if (folder / MANIFEST).exists() or not folder.is_dir():
        return {folder.name: [open_one(folder)]}
    found = {}
    for source in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (source / MANIFEST).exists():
            found[source.name] = [open_one(source)]
        elif shards := sorted(path.parent for path in source.glob(f"*/{MANIFEST}")):
            _require_all_shards(shards)
            found[source.name] = [open_one(shard) for shard in shards]
    return found or {folder.name: [open_one(folder)]}  # raises, and says what is missing


def digest_of(tables: Tables | TokenTable) -> str:
    """Returns 16 hex digits that change with the content of the tables, their sources and their order."""
    by_source = {"": [tables]} if isinstance(tables, TokenTable) else tables
    found = {source: [table.digest for table in shards] for source, shards in by_source.items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def require_lengths(tables: Tables, lengths: Lengths) -> None:
    """Compares the limits that tables were made with to those of a recipe. Mined tables do not record theirs.

    Raises:
        BadInput: a limit differs; the message names the table and the field.
    """
    for table in (table for shards in tables.values() for table in shards):
        made = table.manifest.get("lengths", {})
        recorded = {
            "text": table.manifest.get("length"),
            "query": made.get("query"),
            "document": made.get("document"),
            "chunk": made.get("chunks"),
            "chunks": table.manifest.get("max_chunks"),
        }
        for field, length in recorded.items():
            if length is not None and length != getattr(lengths, field):
                raise BadInput(
                    f"{table.folder} was made with Lengths.{field}={length}, this recipe has "
                    f"{getattr(lengths, field)}; set it back, or tokenise the corpus again"
                )


def _require_all_shards(shards: Sequence[pathlib.Path]) -> None:
    """Makes sure that folders called shard-I-of-N are the N shards of one run."""
    counts = {path.name.rpartition("-of-")[2] for path in shards if path.match("shard-*-of-*")}
    if counts and counts != {f"{len(shards):05d}"}:
        raise BadInput(
            f"{shards[0].parent}: {len(shards)} token tables, of sets of {', '.join(sorted(counts))}; "
            "delete them, and copy the whole set or run data cache again"
        )
