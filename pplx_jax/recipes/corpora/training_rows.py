"""Training rows of a corpus, gathered in memory."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.json_lines import numbered_lines, parse_object
from pplx_jax.data.io.set_samples import draw, passages_of_parents

Row = dict[str, Any]

_SENTENCE_END = re.compile(r"(?<=[.!?؟۔।])\s+|(?<=[。！？])|\n+")


@dataclasses.dataclass
class TrainingRows:
    """Rows of text.jsonl, pairs.jsonl and documents.jsonl (see `WrittenCorpus`)."""

    texts: list[Row] = dataclasses.field(default_factory=list)
    pairs: list[Row] = dataclasses.field(default_factory=list)
    documents: list[Row] = dataclasses.field(default_factory=list)

    def extend(self, other: "TrainingRows") -> None:
        """Appends the rows of another."""
        for name in vars(self):
            getattr(self, name).extend(getattr(other, name))

    def without(self, refused: Callable[[Row], bool]) -> tuple["TrainingRows", dict[str, int]]:
        """Returns the rows that are not refused, and the number of refused rows by kind."""
        kept = TrainingRows(**{name: [row for row in rows if not refused(row)] for name, rows in vars(self).items()})
        return kept, {name: len(rows) - len(getattr(kept, name)) for name, rows in vars(self).items()}


def read_rows(path: pathlib.Path, *columns: str) -> list[dict[str, Any]]:
    """Reads a JSON-lines file, gzipped or not, whose rows must have the columns.

    Raises:
        BadInput: the file is missing, or a line is not an object with these columns.
    """
    if not path.is_file():
        raise BadInput(f"no file {path}; the data folder contains text/ and retrieval/")
    found = []
    for number, line in numbered_lines(path):
        try:
            row = parse_object(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        if missing := [name for name in columns if name not in row]:
            raise BadInput(f"{path}, line {number}: no {', '.join(missing)}")
        found.append(row)
    return found


def question_rows(source: str, data: RetrievalSet) -> TrainingRows:
    """Returns training rows of a retrieval set: its pairs, its documents of several passages, and its texts."""
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


def cropped_pairs(source: str, texts: Iterable[str], seed: int, *, least: int = 24) -> list[Row]:
    """Returns inverse cloze pairs (arXiv 1906.00300): a sentence drawn from each text, and the text without it.

    Texts of fewer than three sentences give none.

    Args:
        source: the source of the pairs.
        texts: passages.
        seed: seed of the draws.
        least: the smallest number of characters of a query.
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
