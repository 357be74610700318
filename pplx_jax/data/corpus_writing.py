"""Writing a corpus: JSON lines, a retrieval set, and a folder that is there whole or not at all."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines as UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_retrieval_set(folder: pathlib.Path, passages: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Writes a BEIR folder (arXiv 2104.08663) in which every passage answers one query.

    Args:
        folder: is made.
        passages: (row of corpus.jsonl with "_id" and "text", the query it answers).
    """
    folder.mkdir()
    write_rows(folder / "corpus.jsonl", (passage for passage, _ in passages))
    # A query's id is not its passage's: evaluation tools drop a hit of the same id.
    queries = [{"_id": f"query:{passage['_id']}", "text": query} for passage, query in passages]
    write_rows(folder / "queries.jsonl", queries)
    judgements = (f"query:{passage['_id']}\t{passage['_id']}\t1\n" for passage, _ in passages)
    with (folder / "qrels.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(["query-id\tcorpus-id\tscore\n", *judgements])


@contextlib.contextmanager
def whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty sibling folder, which takes the place of `output` when the block ends well."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir()
        yield temporary
        if output.exists():
            os.replace(output, old)
        os.replace(temporary, output)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
