"""Feeding: documents to a running Vespa, many at once, from the shard where an earlier call stopped; or to files.

fed.json     {"url", "settings", "shards", "documents"}: whole shards that Vespa has acknowledged
feed/*.jsonl one put a line, for `vespa feed`, whose HTTP/2 client is the fast way for hundreds of millions
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import shutil
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json_if_valid, write_json
from pplx_jax.core.progress import Progress
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.vespa.client import Vespa
from pplx_jax.retrieval.vespa.documents import documents_by_shard


def feed(source: EmbeddingFolder, vespa: Vespa, state: pathlib.Path, connections: int) -> int:
    """Puts every document, going on from the shards that `state` lists for the same vectors and address, if Vespa still
    has their documents.

    Args:
        source: a finished folder.
        vespa: where to.
        state: the file that remembers what is done.
        connections: documents on their way at once.

    Returns:
        How many documents Vespa holds, all of them from `source`.

    Raises:
        BadInput: a document is refused, or Vespa ends up with another number of documents than were put.
    """
    done = _finished(state, source, vespa)
    if done["documents"] and vespa.count() < done["documents"]:  # they were removed since
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
    if held != documents:
        why = "ids that stand twice replaced each other" if held < documents else "those of an earlier feed are there"
        raise BadInput(
            f"{vespa.url} holds {held} documents, {documents} were put: {why}; "
            "make ids unique, or remove what is there (docs/vespa.md) and run this again"
        )
    return documents


def _finished(state: pathlib.Path, source: EmbeddingFolder, vespa: Vespa) -> dict[str, Any]:
    fresh = {"url": vespa.url, "settings": dataclasses.asdict(source.settings), "shards": 0, "documents": 0}
    done = read_json_if_valid(state) or {}
    same = all(done.get(name) == fresh[name] for name in ("url", "settings"))
    return done if same and isinstance(done.get("shards"), int) else fresh


def write_feed_files(source: EmbeddingFolder, folder: pathlib.Path) -> int:
    """Writes a file of puts a shard, in the place of all that were there; returns how many documents there are."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    documents = 0
    with Progress("feed files", len(source.shards), unit="shard") as progress:
        for place, batch in enumerate(documents_by_shard(source)):
            with atomic_path(folder / f"{place:05d}.jsonl") as temporary, open(temporary, "wb") as file:
                for document in batch:
                    file.write(json.dumps(document.operation, ensure_ascii=False).encode() + b"\n")
            documents += len(batch)
            progress.update(place + 1)
    return documents
