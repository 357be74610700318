"""Writes corpus folders: JSON lines and BEIR evaluation sets."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pplx_jax.core.output_folder import replaced_folder, require_free
from pplx_jax.data.io.beir import RetrievalSet


@contextlib.contextmanager
def corpus_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty temporary folder, which replaces `output` when the block ends without an error.

    Raises:
        BadInput: `output` contains files but no evaluation set, so it is not a corpus.
    """
    require_free(output, "corpus", lambda folder: (folder / "evaluation").exists())
    with replaced_folder(output) as partial:
        yield partial


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines in UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_retrieval_set(folder: pathlib.Path, passages: Sequence[tuple[Mapping[str, Any], str | None]]) -> None:
    """Writes a BEIR folder from pairs of a passage (a row of corpus.jsonl) and the query that it answers, if any."""
    folder.mkdir(parents=True)
    write_rows(folder / "corpus.jsonl", (passage for passage, _ in passages))
    # A query and its passage have different ids, because evaluation tools drop hits with the id of the query.
    asked = [(passage["_id"], query) for passage, query in passages if query is not None]
    write_rows(folder / "queries.jsonl", ({"_id": f"query:{name}", "text": query} for name, query in asked))
    _write_qrels(folder, ((f"query:{name}", name, 1) for name, _ in asked))


def write_beir(folder: pathlib.Path, data: RetrievalSet) -> None:
    """Writes a retrieval set in the layout that `read_beir` reads."""
    folder.mkdir()
    passages = zip(data.document_ids, data.documents, data.parents, data.chunks, strict=True)
    columns = ("_id", "text", "parent", "chunk")
    write_rows(folder / "corpus.jsonl", (dict(zip(columns, passage, strict=True)) for passage in passages))
    queries = zip(data.query_ids, data.queries, strict=True)
    write_rows(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries))
    grades = ((query, document, grade) for query, found in data.qrels.items() for document, grade in found.items())
    _write_qrels(folder, grades)


def _write_qrels(folder: pathlib.Path, grades: Iterable[tuple[str, str, int]]) -> None:
    with (folder / "qrels.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query}\t{document}\t{grade}\n" for query, document, grade in grades)
