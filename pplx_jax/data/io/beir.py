"""Reads retrieval sets in the BEIR layout (arXiv 2104.08663). Passages may name the document they belong to.

    FOLDER/corpus.jsonl     {"_id", "text", "title"?, "parent"?, "chunk"?, "path"?, "line"?}
    FOLDER/queries.jsonl    {"_id", "text"}
    FOLDER/qrels.tsv        query-id, corpus-id, score; or qrels/SPLIT.tsv; the header line is optional

Each file may be gzipped (".gz" appended to its name). In place of corpus.jsonl and queries.jsonl, there may be folders
corpus/ and queries/ of any number of .jsonl, .jsonl.gz and .parquet files, which are read in the order of their paths.
"""

import dataclasses
import pathlib
from collections.abc import Container, Iterator, Sequence
from typing import Any

from absl import logging

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.input_files import ENDINGS, input_files
from pplx_jax.data.io.json_lines import is_unicode, numbered_lines, parse_object
from pplx_jax.data.io.row_files import rows_of_files

_HEADER = ("query-id", "corpus-id", "score")


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """A collection of passages, the queries with judgements, and the judgements.

    Attributes:
        document_ids, documents: N ids and texts, in file order; see `document_text`.
        parents: N ids of the document that each passage belongs to; the passage's id if the file has no parent.
        chunks: N positions within the parent; counted in file order if the file has none.
        query_ids, queries: ids and texts of the judged queries only, in file order.
        qrels: query id -> document id -> grade, over exactly `query_ids`.
    """

    document_ids: list[str]
    documents: list[str]
    parents: list[str]
    chunks: list[int]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]

    @property
    def has_context(self) -> bool:
        """Whether some document has several passages, so that late chunking can make a difference."""
        return len(set(self.parents)) < len(self.parents)


def document_text(title: str | None, text: str) -> str:
    """Returns "TITLE TEXT" without surrounding white space, as BEIR's own code encodes a document."""
    return f"{title} {text}".strip() if title else text.strip()


def read_beir(folder: str | pathlib.Path, split: str = "test") -> RetrievalSet:
    """Reads a BEIR folder.

    Args:
        folder: the folder.
        split: which qrels/SPLIT.tsv to read if there is no qrels.tsv.

    Raises:
        BadInput: a file is missing, a row lacks a column or repeats an id, or a judgement names an unknown query. The
            message gives the file and the line. A judgement of a document that the corpus does not have is kept, with a
            warning: a relevant one counts as not found, as in trec_eval. It is an error if all are such.
    """
    corpus, asked, qrels_file = _set_files(folder, split)
    documents, parents, chunks = {}, [], []
    seen_of_parent: dict[str, int] = {}
    for where, row in _read_rows(corpus, documents):
        documents[row["_id"]] = document_text(str(row.get("title") or ""), row["text"])
        parent = str(row.get("parent", row["_id"]))
        chunk = row.get("chunk", seen_of_parent.get(parent, 0))
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise BadInput(f'{where}: "chunk" is {chunk!r}; give the position in the parent as an integer')
        seen_of_parent[parent] = seen_of_parent.get(parent, 0) + 1
        parents.append(parent)
        chunks.append(chunk)
    queries: dict[str, str] = {}
    for _, row in _read_rows(asked, queries):
        queries[row["_id"]] = row["text"]
    qrels = _read_qrels(qrels_file, queries, documents)
    judged = [query for query in queries if query in qrels]
    return RetrievalSet(
        document_ids=list(documents),
        documents=list(documents.values()),
        parents=parents,
        chunks=chunks,
        query_ids=judged,
        queries=[queries[query] for query in judged],
        qrels=qrels,
    )


def set_files(folder: str | pathlib.Path, split: str = "test") -> list[pathlib.Path]:
    """Returns the paths of the corpus, the queries and the judgements of a BEIR folder, in this order.

    Raises:
        BadInput: the folder or a file is missing.
    """
    corpus, queries, qrels = _set_files(folder, split)
    return [*corpus, *queries, qrels]


def _set_files(
    folder: str | pathlib.Path, split: str
) -> tuple[Sequence[pathlib.Path], Sequence[pathlib.Path], pathlib.Path]:
    folder = local_copy(as_path(folder))
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: give a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv)")
    return (
        corpus_files(folder),
        _rows_of(folder, "queries"),
        _find(folder, "qrels.tsv", f"qrels/{split}.tsv"),
    )


def set_folders(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns a BEIR folder itself, or the folders in it, by name. Their contents are not checked.

    Raises:
        BadInput: the folder does not exist.
    """
    folder = as_path(folder)
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}: give a BEIR folder, or a folder of BEIR folders")
    if holds(folder, "corpus") or holds(folder, "queries"):
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "qrels" and path.name[0] != ".")
    return inner or [folder]


def _find(folder: pathlib.Path, *names: str) -> pathlib.Path:
    candidates = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    wanted = " or ".join(names)
    raise BadInput(f"{folder} has no {wanted} (nor .gz); a BEIR folder contains corpus, queries and qrels")


def _read_rows(files: Sequence[pathlib.Path], known: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE, line N", row). `_id` is a string that is not in `known`, and `text` is a string."""
    for path, (number, source) in rows_of_files(files):
        where = f"{path}, line {number}"
        try:
            row = parse_object(source) if isinstance(source, bytes) else source
        except ValueError as error:
            raise BadInput(f"{where}: {error}; each line is one object with _id and text") from None
        for column in ("_id", "text"):
            if column not in row:
                raise BadInput(f'{where}: no "{column}", only {", ".join(row) or "nothing"}; rename the column')
        if not isinstance(row["text"], str):
            raise BadInput(f'{where}: "text" is {type(row["text"]).__name__}; give a string')
        row["_id"] = str(row["_id"])
        for column in ("_id", "text", "title"):
            if not is_unicode(str(row.get(column))):
                raise BadInput(f'{where}: "{column}" holds half of a surrogate pair, which is not a character; fix it')
        if row["_id"] in known:
            raise BadInput(f'{where}: "_id" {row["_id"]!r} occurs twice; make ids unique')
        yield where, row


def _read_qrels(
    path: pathlib.Path, queries: Container[str], documents: Container[str] | None
) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    missing: list[str] = []
    first = True
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        cells = line.decode("utf-8-sig", errors="replace").split("\t")
        is_first, first = first, False
        if len(cells) != 3:
            raise BadInput(f"{where}: {len(cells)} columns; give query-id, corpus-id, score with tabs between")
        query, document, grade = (cell.strip() for cell in cells)
        try:
            level = int(grade)
        except ValueError:
            if is_first and (query not in queries or (query, document, grade) == _HEADER):
                continue
            raise BadInput(f"{where}: score {grade!r} is not an integer; grades are 0, 1, 2, ...") from None
        if query not in queries:
            raise BadInput(f"{where}: unknown query-id {query!r}; add it to queries.jsonl or drop the line")
        if documents is not None and document not in documents:
            missing.append(f"{where}: {document!r}")
        if qrels.setdefault(query, {}).setdefault(document, level) != level:
            raise BadInput(f"{where}: a second, different grade for {query!r}, {document!r}; keep one of them")
    if not qrels:
        raise BadInput(f"{path} has no judgements; give lines of query-id, corpus-id, score")
    if missing:
        judgements = sum(map(len, qrels.values()))
        told = f"of {judgements} judgements name a document that corpus.jsonl does not have; the first: {missing[0]}"
        if len(missing) >= judgements:
            raise BadInput(f"all {told}; give the corpus of these judgements")
        logging.warning("%d %s. They count as not found, as in trec_eval", len(missing), told)
    return qrels


def read_queries(folder: pathlib.Path) -> dict[str, str]:
    """Returns all queries of a BEIR folder, with or without judgements: id -> text. Raises BadInput as `read_beir`."""
    queries: dict[str, str] = {}
    for _, row in _read_rows(_rows_of(folder, "queries"), queries):
        queries[row["_id"]] = row["text"]
    return queries


def read_qrels(folder: pathlib.Path, queries: Container[str], split: str = "test") -> dict[str, dict[str, int]]:
    """Returns the judgements of a BEIR folder, without a check of its documents. Raises BadInput as `read_beir`."""
    return _read_qrels(_find(folder, "qrels.tsv", f"qrels/{split}.tsv"), queries, None)


def corpus_files(folder: pathlib.Path) -> Sequence[pathlib.Path]:
    """Returns the files of the corpus of a BEIR folder, in order. Raises BadInput if there is none."""
    return _rows_of(folder, "corpus")


def holds(folder: pathlib.Path, part: str) -> bool:
    """Returns whether a folder has the corpus or the queries of a set.

    Args:
        folder: the folder.
        part: "corpus" or "queries".
    """
    if any(folder.glob(f"{part}.jsonl*")):
        return True
    inner = any(path.name.endswith(ENDINGS) for path in (folder / part).glob("*"))
    return inner and (part != "corpus" or holds(folder, "queries"))  # many folders are called "corpus"


def _rows_of(folder: pathlib.Path, part: str) -> Sequence[pathlib.Path]:
    """Returns PART.jsonl, or the files of the folder PART."""
    return input_files(folder / part) if (folder / part).is_dir() else [_find(folder, f"{part}.jsonl")]
