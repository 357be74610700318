"""Writes corpus folders: JSON lines and a BEIR evaluation set, under their final name only once whole."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pplx_jax.core.output_folder import replaced_folder, require_free
from pplx_jax.data.io.beir import RetrievalSet


@contextlib.contextmanager
def whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an empty folder, which takes the place of `output` when the block ends without an error.

    Raises:
        BadInput: `output` holds files and no corpus, which has an evaluation set.
    """
    require_free(output, "corpus", lambda folder: (folder / "evaluation").exists())
    with replaced_folder(output) as partial:
        yield partial


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_retrieval_set(folder: pathlib.Path, passages: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Writes a BEIR folder in which each passage (a row of corpus.jsonl) answers the query beside it."""
    folder.mkdir()
    write_rows(folder / "corpus.jsonl", (passage for passage, _ in passages))
    # A query's id is not its passage's: evaluation tools drop a hit of the same id.
    queries = ({"_id": f"query:{passage['_id']}", "text": query} for passage, query in passages)
    write_rows(folder / "queries.jsonl", queries)
    with (folder / "qrels.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"query:{passage['_id']}\t{passage['_id']}\t1\n" for passage, _ in passages)


def write_beir(folder: pathlib.Path, data: RetrievalSet) -> None:
    """Writes a retrieval set as `read_beir` reads it."""
    folder.mkdir()
    passages = zip(data.document_ids, data.documents, data.parents, data.chunks, strict=True)
    columns = ("_id", "text", "parent", "chunk")
    write_rows(folder / "corpus.jsonl", (dict(zip(columns, passage, strict=True)) for passage in passages))
    queries = zip(data.query_ids, data.queries, strict=True)
    write_rows(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries))
    with (folder / "qrels.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query, grades in data.qrels.items():
            file.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in grades.items())
