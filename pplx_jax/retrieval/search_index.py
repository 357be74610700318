"""The verb `search`: returns the hits of one query, or writes the rankings of a file of queries."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.core.paths import as_path, is_bucket
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.input_files import input_files
from pplx_jax.data.io.trec_run import run_line
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.lead import leads
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.overflow import too_long_by_name
from pplx_jax.parallel.gather_rows import broadcast_bytes
from pplx_jax.parallel.processes import joins_processes
from pplx_jax.parallel.shares import own_share
from pplx_jax.retrieval.embeddings.folder import document_of
from pplx_jax.retrieval.embeddings.input_rows import BadRow, read_rows
from pplx_jax.retrieval.open_index import open_index
from pplx_jax.retrieval.search_options import Engine, SearchOptions

_QUERIES_AT_ONCE = 256
Write = Callable[[str, str, list[dict[str, Any]]], None]


@joins_processes
def search_index(
    index: str | pathlib.Path,
    query: str | None = None,
    k: int = 10,
    *,
    queries: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    engine: Engine | None = None,
    candidates: int = 40,
    least_candidates: int = 1000,
    probes: int | None = None,
    url: str | None = None,
    model: str | pathlib.Path | None = None,
    deterministic: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Searches an index for a text, or for every text of a file. Loads the model that the index names.

    Several processes of a job search an index folder together, by the engine jax; process 0 writes the output.

    Args:
        index: the folder that `build_index` wrote.
        query: the text.
        k: maximum number of hits per query.
        queries: in place of `query`, JSON lines or Parquet of {"id" or "_id", "text"}: a file, a folder or a pattern.
        output: the file to write for `queries`: NAME.trec (query, Q0, id, rank, score; in an index of chunks the id of
            the document) or NAME.jsonl ({"id", "text", "hits"}).
        engine, candidates, least_candidates, probes: see `SearchOptions`.
        url: of the server of the index, if it is not the one that the index names.
        model: the folder of the model, if it is not where the index says.
        deterministic: whether the bits of a query's vector depend on the query alone, see `Embedder`.
        encoder: the loaded model, if the caller has it.

    Returns:
        {"hits": [...]}, see `SearchableIndex.search_pooled`; for a file {"queries", "output", "seconds"}.

    Raises:
        BadInput: the query is empty, both or none of `query` and `queries` are given, or the index, the model or a file
            cannot be used.
    """
    if (query is None) == (queries is None):
        raise BadInput("give a query to search for, or --queries FILE, and not both")
    if query is not None and output is not None:
        raise BadInput("--output is for the rankings of --queries FILE; leave it out, or give the query in a file")
    options = SearchOptions(engine, candidates, least_candidates, probes)
    if own_share()[1] > 1 and engine != "jax":
        raise BadInput("several processes search together by --engine jax only; give it, or start one process")
    opened = open_index(index, url)
    loading: dict[str, Any] = opened.prompts | ({"deterministic": True} if deterministic else {})
    if query is not None:
        if not query.strip():
            raise BadInput("the query is empty; give some text to search for")
        encoder = encoder or load_encoder(model or opened.model, **loading)
        with too_long_by_name(["the query"], "shorten it"):
            pooled = opened.pool_queries([query], encoder)
        return {"hits": opened.search_pooled(_of_first(pooled), k, options)[0]}
    if output is None:
        raise BadInput("--queries needs --output FILE.trec or FILE.jsonl")
    assert queries is not None
    files, output = input_files(queries), as_path(output)
    with _writer(output) as write:
        entries = _read_queries(files, queries)
        encoder = encoder or load_encoder(model or opened.model, **loading)
        started = time.monotonic()
        with Progress("search", len(entries), unit="query", enabled=leads()) as progress:
            for begin in range(0, len(entries), _QUERIES_AT_ONCE):
                block = entries[begin : begin + _QUERIES_AT_ONCE]
                with too_long_by_name([name for name, _ in block], "shorten this query"):
                    pooled = opened.pool_queries([text for _, text in block], encoder)
                found = opened.search_pooled(_of_first(pooled), k, options)
                for (name, text), hits in zip(block, found, strict=True):
                    write(name, text, hits)
                progress.update(begin + len(block))
    return {"queries": len(entries), "output": str(output), "seconds": round(time.monotonic() - started, 3)}


def _of_first(pooled: np.ndarray) -> np.ndarray:
    """Returns the vectors of process 0, so that all search for the same bits."""
    return (
        np.frombuffer(broadcast_bytes(pooled.tobytes()), pooled.dtype).reshape(pooled.shape)
        if own_share()[1] > 1
        else pooled
    )


def _read_queries(files: Sequence[pathlib.Path], given: str | pathlib.Path) -> list[tuple[str, str]]:
    """Returns ids and texts."""
    found: dict[str, str] = {}
    for where, row in read_rows(files, "text", "chunks"):
        if isinstance(row, BadRow):
            raise BadInput(f"{where}: {row.reason}; give each query an id and a text")
        if row.is_document or not row.chunks[0].strip():
            raise BadInput(f"{where}: no text to search for; a query is one non-empty text")
        if row.id in found:
            raise BadInput(f"{where}: a second query of id {row.id!r}; make ids unique")
        found[row.id] = row.chunks[0]
    if not found:
        raise BadInput(f"{given} holds no queries; give lines with id and text")
    return list(found.items())


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Write]:
    """Yields a function that writes the hits of a query. The file is renamed to `path` if the block succeeds."""
    formats: dict[str, Callable[[str, str, list[dict[str, Any]]], str]] = {".trec": _trec_lines, ".jsonl": _json_line}
    if path.suffix not in formats:
        raise BadInput(f"{path}: rankings are written as .trec or .jsonl; give a name with such an ending")
    if not is_bucket(path) and not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist; create it first")
    lines = formats[path.suffix]
    if not leads():
        yield lambda query, text, hits: None
        return
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield lambda query, text, hits: print(lines(query, text, hits), end="", file=file)


def _trec_lines(query: str, text: str, hits: list[dict[str, Any]]) -> str:
    best: dict[str, float] = {}  # a run file names each id once
    for hit in hits:
        best.setdefault(document_of(hit), hit["score"])
    ranked = enumerate(best.items(), start=1)
    return "".join(run_line(query, document, rank, score) for rank, (document, score) in ranked)


def _json_line(query: str, text: str, hits: list[dict[str, Any]]) -> str:
    return json.dumps({"id": query, "text": text, "hits": hits}, ensure_ascii=False) + "\n"
