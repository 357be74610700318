"""What `search` does: one query to hits, or a file of queries to a file of rankings."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.trec_run import run_line
from pplx_jax.inference.encoder import Encoder, load_encoder
from pplx_jax.inference.overflow import too_long_by_name
from pplx_jax.retrieval.embedding_input import BadRow, read_rows
from pplx_jax.retrieval.index import Engine, Index, SearchOptions

_QUERIES_AT_ONCE = 256
Write = Callable[[str, str, list[dict[str, Any]]], None]


def search_index(
    index: str | pathlib.Path,
    query: str | None = None,
    k: int = 10,
    *,
    queries: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    engine: Engine | Literal["vespa"] | None = None,
    candidates: int = 40,
    probes: int | None = None,
    vespa_url: str | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Searches an index for a text, or for every text of a file; loads the model that the index points at.

    Args:
        index: what `build_index` wrote.
        query: the text.
        k: hits wanted of each query.
        queries: instead of one text, JSON lines or Parquet of {"id" or "_id", "text"}.
        output: with `queries`, the file to write: NAME.trec (query, Q0, id, rank, score; of an index of chunks the
            id of the document) or NAME.jsonl ({"id", "text", "hits"}).
        engine, candidates, probes: see `index.SearchOptions`; "vespa", which is found without
            being named, asks a Vespa instance, one query at a time.
        vespa_url: where Vespa is, if not where it was built.
        encoder: the loaded model, where the caller has it already.

    Returns:
        {"hits": [...]}, see `Index.search_batch`; of a file {"queries", "output", "seconds"}.

    Raises:
        BadInput: an empty query, a query that says neither or both of text and file, or an index, a model or a file
            that cannot be used.
    """
    if (query is None) == (queries is None):
        raise BadInput("give a query to search for, or --queries FILE, and not both")
    if engine == "vespa" or (engine is None and (pathlib.Path(index) / "vespa.json").exists()):
        from pplx_jax.retrieval import vespa  # its HTTP client is of no use to the others

        if query is None:
            raise BadInput("a Vespa index takes one query at a time; give its text")
        return vespa.search(index, query, k, url=vespa_url, candidates=k * candidates, encoder=encoder)
    opened, options = Index.load(index), SearchOptions(engine, candidates, probes=probes)
    if query is not None:
        if not query.strip():
            raise BadInput("the query is empty; give some text to search for")
        encoder = encoder or load_encoder(opened.model)
        with too_long_by_name(["the query"], "shorten it"):
            vector = opened.encode_query(query, encoder)
        return {"hits": opened.search(vector, k, model_fingerprint=encoder.fingerprint, options=options)}
    if output is None:
        raise BadInput("--queries needs --output FILE.trec or FILE.jsonl for what is found")
    source, output = pathlib.Path(str(queries)), pathlib.Path(output)
    with _writer(output) as write:
        asked = _read_queries(source)
        encoder = encoder or load_encoder(opened.model)
        started = time.monotonic()
        with Progress("search", len(asked), unit="query") as progress:
            for begin in range(0, len(asked), _QUERIES_AT_ONCE):
                block = asked[begin : begin + _QUERIES_AT_ONCE]
                with too_long_by_name([name for name, _ in block], "shorten this query"):
                    vectors = opened.encode_queries([text for _, text in block], encoder)
                found = opened.search_batch(vectors, k, model_fingerprint=encoder.fingerprint, options=options)
                for (name, text), hits in zip(block, found, strict=True):
                    write(name, text, hits)
                progress.update(begin + len(block))
    return {"queries": len(asked), "output": str(output), "seconds": round(time.monotonic() - started, 3)}


def _read_queries(path: pathlib.Path) -> list[tuple[str, str]]:
    """Ids and texts."""
    found: dict[str, str] = {}
    for row in read_rows(path, "text", "chunks"):
        if isinstance(row, BadRow):
            raise BadInput(f"{path}, line {row.number}: {row.reason}; give each query an id and a text")
        if row.is_document or not row.chunks[0].strip():
            raise BadInput(f"{path}, line {row.number}: no text to search for; a query is one text that is not empty")
        if row.id in found:
            raise BadInput(f"{path}, line {row.number}: a second query of id {row.id!r}; make ids unique")
        found[row.id] = row.chunks[0]
    if not found:
        raise BadInput(f"{path} holds no query")
    return list(found.items())


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Write]:
    """Gives a function that adds the hits of a query; the file appears when the block ends well."""
    formats: dict[str, Callable[[str, str, list[dict[str, Any]]], str]] = {".trec": _trec_lines, ".jsonl": _json_line}
    if path.suffix not in formats:
        raise BadInput(f"{path}: rankings are written as .trec or .jsonl; name the output so")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.parent}; make it first")
    lines = formats[path.suffix]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield lambda query, text, hits: print(lines(query, text, hits), end="", file=file)


def _trec_lines(query: str, text: str, hits: list[dict[str, Any]]) -> str:
    best: dict[str, float] = {}  # of several documents with one id: a run file names each once
    for hit in hits:
        best.setdefault(hit.get("document", hit["id"]), hit["score"])
    ranked = enumerate(best.items(), start=1)
    return "".join(run_line(query, document, rank, score) for rank, (document, score) in ranked)


def _json_line(query: str, text: str, hits: list[dict[str, Any]]) -> str:
    return json.dumps({"id": query, "text": text, "hits": hits}, ensure_ascii=False) + "\n"
