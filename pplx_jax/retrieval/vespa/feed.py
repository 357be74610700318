"""Feeds documents to a running Vespa, or writes them to feed files. Feeding resumes after the last complete shard.

fed.json     {"url", "settings", "shards", "documents"}: the shards that Vespa has acknowledged completely
feed/*.jsonl one put operation per line, for `vespa feed`, whose HTTP/2 client is faster for hundreds of millions
"""

import concurrent.futures
import dataclasses
import json
import pathlib
from typing import Any

from pplx_jax.core.buckets import remove
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json_if_valid, write_json
from pplx_jax.core.progress import Progress
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder
from pplx_jax.retrieval.vespa.client import Vespa
from pplx_jax.retrieval.vespa.documents import documents_by_shard


def feed(source: EmbeddingFolder, vespa: Vespa, state: pathlib.Path, connections: int) -> int:
    """Puts every document. Shards that `state` lists for the same vectors and URL are skipped if Vespa still has them.

    Args:
        source: a finished folder.
        vespa: the Vespa instance.
        state: the file that stores the progress.
        connections: number of concurrent requests.

    Returns:
        The number of documents in Vespa, all from `source`.

    Raises:
        BadInput: a document is refused, or Vespa has another number of documents at the end.
    """
    done = _read_state(state, source, vespa)
    write_json(state, done)  # from now on, the documents in Vespa are of this index
    if done["documents"] and vespa.count() < done["documents"]:  # documents were removed since then
        done = {**done, "shards": 0, "documents": 0}
    shards, documents = done["shards"], done["documents"]
    pool = concurrent.futures.ThreadPoolExecutor(connections)
    try:
        with Progress("feed", len(source.shards), unit="shard", start=shards) as progress:
            for batch in documents_by_shard(source, start=shards):
                for _ in pool.map(vespa.put, batch):
                    pass
                shards, documents = shards + 1, documents + len(batch)
                write_json(state, {**done, "shards": shards, "documents": documents})
                progress.update(shards, documents=documents)
    finally:
        pool.shutdown(cancel_futures=True)
    held = vespa.count()
    if held < documents:
        why = "documents with equal ids replaced each other; make ids unique, then run this again with --replace"
    elif held > documents:
        state.unlink()  # so that --replace removes them
        why = "it has those of an earlier feed; run this again with --replace to remove them"
    else:
        return documents
    raise BadInput(f"{vespa.url} holds {held} documents, {documents} were put: {why}")


def require_own_documents(source: EmbeddingFolder, vespa: Vespa, state: pathlib.Path) -> None:
    """Checks that Vespa has no documents, or those of an earlier `feed` of the same vectors, also an interrupted one.

    Raises:
        BadInput: it has others.
    """
    if _is_own(state, source, vespa):
        return
    try:
        others = vespa.count()
    except BadInput:  # it is not started yet, or has no such application
        return
    if others:
        raise BadInput(
            f"{vespa.url} holds {others} documents of an earlier feed; give --replace to remove them, or another --url"
        )


def remove_other_documents(source: EmbeddingFolder, vespa: Vespa, state: pathlib.Path) -> None:
    """Removes all documents, unless they are of an earlier `feed` of the same vectors, which can then resume."""
    if not _is_own(state, source, vespa):
        vespa.remove_all()


def _is_own(state: pathlib.Path, source: EmbeddingFolder, vespa: Vespa) -> bool:
    """Returns whether `feed` began with the same vectors and URL."""
    done = read_json_if_valid(state) or {}
    return done.get("url") == vespa.url and done.get("settings") == dataclasses.asdict(source.settings)


def _read_state(state: pathlib.Path, source: EmbeddingFolder, vespa: Vespa) -> dict[str, Any]:
    fresh = {"url": vespa.url, "settings": dataclasses.asdict(source.settings), "shards": 0, "documents": 0}
    done = read_json_if_valid(state) or {}
    return done if _is_own(state, source, vespa) and isinstance(done.get("shards"), int) else fresh


def write_feed_files(source: EmbeddingFolder, folder: pathlib.Path) -> int:
    """Writes one feed file per shard and removes earlier ones. Returns the number of documents."""
    remove(folder)
    folder.mkdir(parents=True)
    documents = 0
    with Progress("feed files", len(source.shards), unit="shard") as progress:
        for shard, batch in enumerate(documents_by_shard(source)):
            with atomic_path(folder / f"{shard:05d}.jsonl") as temporary, open(temporary, "wb") as file:
                for document in batch:
                    file.write(json.dumps(document.operation, ensure_ascii=False).encode() + b"\n")
            documents += len(batch)
            progress.update(shard + 1)
    return documents
