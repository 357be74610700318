"""Rows of a corpus folder, gathered in memory; and draws that depend on a name alone, so that they never move."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import json_lines as files
from pplx_jax.data.io.beir import RetrievalSet

Row = dict[str, Any]

_SENTENCE_END = re.compile(r"(?<=[.!?؟۔।])\s+|(?<=[。！？])|\n+")


@dataclasses.dataclass
class TrainingRows:
    """Rows of text.jsonl, pairs.jsonl and documents.jsonl; see `python_corpus`."""

    texts: list[Row] = dataclasses.field(default_factory=list)
    pairs: list[Row] = dataclasses.field(default_factory=list)
    documents: list[Row] = dataclasses.field(default_factory=list)

    def extend(self, other: "TrainingRows") -> None:
        """Adds another's rows after these."""
        for name in vars(self):
            getattr(self, name).extend(getattr(other, name))

    def without(self, refused: Callable[[Row], bool]) -> tuple["TrainingRows", dict[str, int]]:
        """The rows that are not refused, and how many of each kind were."""
        kept = TrainingRows(**{name: [row for row in rows if not refused(row)] for name, rows in vars(self).items()})
        return kept, {name: len(rows) - len(getattr(kept, name)) for name, rows in vars(self).items()}


def read_rows(path: pathlib.Path, *columns: str) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file, gzipped or not, that have the columns.

    Raises:
        BadInput: the file is missing, or a line is no such object.
    """
    if not path.is_file():
        raise BadInput(f"no file {path}; the data folder holds text/ and retrieval/")
    found = []
    for number, line in files.numbered_lines(path):
        try:
            row = files.parse_object(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        if missing := [name for name in columns if name not in row]:
            raise BadInput(f"{path}, line {number}: no {', '.join(missing)}")
        found.append(row)
    return found


def draw(seed: int, *names: object) -> float:
    """A number in [0, 1) that the seed and the names settle, whatever else is drawn."""
    digest = hashlib.blake2b(repr((seed, *map(str, names))).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def question_rows(source: str, data: RetrievalSet) -> TrainingRows:
    """A retrieval set to train on: its pairs, its documents of several passages with their questions, its text."""
    place = {name: row for row, name in enumerate(data.document_ids)}
    asked: dict[int, list[str]] = {}
    rows = TrainingRows()
    for name, question in zip(data.query_ids, data.queries, strict=True):
        for document, grade in data.qrels[name].items():
            if grade > 0:
                asked.setdefault(place[document], []).append(question)
                rows.pairs.append({"query": question, "document": data.documents[place[document]], "source": source})
    for parent, passages in passages_of_parents(data):
        questions = [
            {"text": text, "chunk": chunk} for chunk, row in enumerate(passages) for text in asked.get(row, ())
        ]
        if len(passages) > 1 and questions:
            chunks = [data.documents[row] for row in passages]
            rows.documents.append({"id": parent, "source": source, "chunks": chunks, "queries": questions})
    rows.texts += [{"text": text, "source": source} for text in data.documents]
    return rows


def passages_of_parents(data: RetrievalSet) -> Iterator[tuple[str, list[int]]]:
    """(parent, its passages in their order), parents in the order of the set."""
    members: dict[str, list[int]] = {}
    for row, parent in enumerate(data.parents):
        members.setdefault(parent, []).append(row)
    for parent, passages in members.items():
        yield parent, sorted(passages, key=lambda row: (data.chunks[row], row))


def cropped_pairs(source: str, texts: Iterable[str], seed: int, *, least: int = 24) -> list[Row]:
    """Of each text of three sentences or more, one drawn sentence and the text without it (arXiv 1906.00300).

    Args:
        source: their name.
        texts: passages.
        seed: of the draws.
        least: characters of a sentence that says enough to be a query.
    """
    rows = []
    for text in texts:
        sentences = [part for part in _SENTENCE_END.split(text) if part and part.strip()]
        long = [row for row, part in enumerate(sentences) if len(part) >= least]
        if len(sentences) < 3 or not long:
            continue
        taken = long[int(draw(seed, "crop", text) * len(long))]
        rest = " ".join(part.strip() for row, part in enumerate(sentences) if row != taken)
        rows.append({"query": sentences[taken].strip(), "document": rest, "source": source})
    return rows


def restricted(data: RetrievalSet, documents: Iterable[int], queries: Callable[[str], bool]) -> RetrievalSet:
    """The set of some of its passages, and of those queries whose every judged passage is among them.

    Args:
        data: the set.
        documents: rows of the passages that stay.
        queries: of a query's id, whether it may stay.
    """
    rows = sorted(documents)
    names = {data.document_ids[row] for row in rows}
    kept = [place for place, name in enumerate(data.query_ids) if queries(name) and names.issuperset(data.qrels[name])]
    query_ids = [data.query_ids[place] for place in kept]
    return RetrievalSet(
        document_ids=[data.document_ids[row] for row in rows],
        documents=[data.documents[row] for row in rows],
        parents=[data.parents[row] for row in rows],
        chunks=[data.chunks[row] for row in rows],
        query_ids=query_ids,
        queries=[data.queries[place] for place in kept],
        qrels={name: data.qrels[name] for name in query_ids},
    )


def sampled(data: RetrievalSet, most_documents: int, most_queries: int, seed: int) -> RetrievalSet:
    """The set at most so large, whole parents drawn by their passages' text: equal passages give an equal draw.

    Args:
        data: the set.
        most_documents: passages, up to the end of a parent; 0 for all.
        most_queries: queries of those; 0 for all.
        seed: of both draws.
    """
    parents = sorted(passages_of_parents(data), key=lambda item: draw(seed, "parent", data.documents[item[1][0]]))
    rows: list[int] = []
    for _, passages in parents:
        if most_documents and len(rows) >= most_documents:
            break
        rows += passages
    within = restricted(data, rows, lambda name: True)
    if not most_queries or len(within.query_ids) <= most_queries:
        return within
    chosen = set(sorted(within.query_ids, key=lambda name: draw(seed, "query", name))[:most_queries])
    return restricted(within, range(len(within.document_ids)), chosen.__contains__)
