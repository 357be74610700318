"""Writes corpus folders: JSON lines and a BEIR evaluation set, under their final name only once whole."""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


@contextlib.contextmanager
def whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill that takes the name `output`, replacing what is there, when the block ends without an error."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(output, ignore_errors=True)
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, UTF-8."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_retrieval_set(folder: pathlib.Path, passages: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Writes a BEIR folder in which each passage (a row of corpus.jsonl) answers the query beside it."""
    folder.mkdir()
    write_rows(folder / "corpus.jsonl", (passage for passage, _ in passages))
    queries = ({"_id": f"query:{passage['_id']}", "text": query} for passage, query in passages)
    write_rows(folder / "queries.jsonl", queries)
    with (folder / "qrels.tsv").open("w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"query:{passage['_id']}\t{passage['_id']}\t1\n" for passage, _ in passages)
