"""An index in Vespa: builds it from embeddings, searches it, adds and deletes documents. A folder describes it:

vespa.json       {"format", "url", "count"} and what `index_description.describe` returns
application/     the application package, see `application`
fed.json, feed/  see `feed`
"""

import concurrent.futures
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from pplx_jax.core.buckets import remove
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json_if_valid, write_json
from pplx_jax.core.http_client import HttpClient
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.core.paths import as_path
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, document_of
from pplx_jax.retrieval.embeddings.open_embeddings import open_to_index
from pplx_jax.retrieval.index_description import UPDATED, describe, identity, read_description, require_replaceable
from pplx_jax.retrieval.packed_signs import packed_signs, require_signs
from pplx_jax.retrieval.search_options import SearchOptions
from pplx_jax.retrieval.searchable_index import Hit, SearchableIndex
from pplx_jax.retrieval.vespa.application import (
    DOCUMENT_TYPE,
    SIMILARITY,
    VespaApplication,
    profiles,
    write_application,
    zipped,
)
from pplx_jax.retrieval.vespa.client import Vespa, deploy
from pplx_jax.retrieval.vespa.documents import documents_by_shard
from pplx_jax.retrieval.vespa.feed import feed, remove_other_documents, require_own_documents, write_feed_files

FORMAT = 1
DESCRIPTION, FED = "vespa.json", "fed.json"
LOCAL = "http://localhost:8080"
CANDIDATES_PER_HIT = 40
_CONNECTIONS = 32
_SPARE = 20
_PROBE_SECONDS = 10.0


def build(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    url: str | None = None,
    config_url: str | None = None,
    application: VespaApplication | None = None,
    connections: int = _CONNECTIONS,
    retries: int = 8,
    startup_seconds: float = 300.0,
    replace: bool = False,
) -> dict[str, Any]:
    """Writes the application package for an embedding folder. With URLs, also deploys it and feeds the documents.

    A second call after an interruption resumes feeding after the last complete shard.

    Args:
        embeddings: what `embed_file` wrote, see `open_embeddings`, with quantization "int8", "binary" or "ubinary".
        output: the folder to write.
        url: of Vespa's container, such as http://localhost:8080. None writes feed files instead.
        config_url: of the configuration server, such as http://localhost:19071, to deploy the package first.
        application: options of the application; None for the defaults.
        connections, retries: of the feeding client.
        startup_seconds: maximum time until the container is up after the deployment.
        replace: whether to replace another index in `output`, and to remove its documents from Vespa.

    Returns:
        {"count": number of vectors, "documents", "dims", "quantization", "fed": whether Vespa has the documents}.

    Raises:
        BadInput: the embeddings are missing, unfinished, empty or floats, `output` contains something else, `output` or
            Vespa has another index and `replace` is false, or Vespa refuses a request or does not answer.
    """
    source, output = open_to_index(embeddings), as_path(output)
    settings = source.settings
    require_signs(source, "vespa")
    require_free(output, "Vespa index", _is_index)
    if former := read_json_if_valid(output / DESCRIPTION):
        if require_replaceable(str(output), former, identity(settings), replace=replace):
            (output / FED).unlink(missing_ok=True)  # so that the documents are those of another index
    if url and not replace:
        require_own_documents(source, Vespa(HttpClient(url, retries=0, seconds=_PROBE_SECONDS)), output / FED)
    files = (application or VespaApplication()).files(settings.dims, int8=settings.quantization == "int8")
    output.mkdir(parents=True, exist_ok=True)
    report = {"dims": settings.dims, "quantization": settings.quantization, "count": source.totals()["count"]}
    description = {"format": FORMAT, "url": url or LOCAL, **describe(source, output), "count": report["count"]}
    write_json(output / DESCRIPTION, description)
    write_application(output / "application", files)
    if config_url:
        deploy(HttpClient(config_url, retries=retries), zipped(files))
    if not url:
        return {**report, "documents": write_feed_files(source, output / "feed"), "fed": False}
    vespa = Vespa(HttpClient(url, connections=connections, retries=retries))
    if config_url:
        vespa.wait_until_up(startup_seconds)
    if replace:
        remove_other_documents(source, vespa, output / FED)
    documents = feed(source, vespa, output / FED, connections)
    remove(output / "feed")  # of a call without a URL
    return {**report, "documents": documents, "fed": True}


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / DESCRIPTION, "format", "url", "model_fingerprint", "count")


class VespaIndex(SearchableIndex):
    """An index in Vespa, opened for searching; more attributes in `BaseIndex`.

    Attributes:
        profiles: the available rank profiles, the default first.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any], url: str | None = None):
        """Use `VespaIndex.load` instead."""
        super().__init__(path, description)
        self.profiles = profiles(int8=self.quantization == "int8")
        self._description = description
        self._vespa = Vespa(HttpClient(url or description["url"], connections=_CONNECTIONS))

    @classmethod
    def load(cls, path: str | pathlib.Path, url: str | None = None) -> "VespaIndex":
        """Opens an index. `url` is needed if Vespa has another URL than when the index was built.

        Raises:
            BadInput: there is no index, or it is damaged or of another version.
        """
        path = as_path(path)
        if not (path / DESCRIPTION).exists():
            raise BadInput(f"no Vespa index in {path}; make one with `index --engine vespa`")
        with read_description(path / DESCRIPTION, FORMAT) as description:
            return cls(path, description, url)

    def search_pooled(
        self, queries: np.ndarray, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        self.require_engine(options, "vespa")
        found = [self.search(query, k, candidates=k * options.candidates) for query in queries]
        if worst := [each["coverage"] for each in found if each["coverage"] < 100]:
            raise BadInput(f"{self._vespa.url} searched only {min(worst)}% of the documents in time; add nodes")
        return [each["hits"] for each in found]

    def update(self, embeddings: EmbeddingFolder) -> dict[str, int]:
        self.require_same_form(embeddings)
        chunks: dict[str, int] = {}
        for row in embeddings.described():
            chunks[document_of(row)] = chunks.get(document_of(row), 0) + 1
        former = self._remove(chunks)
        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            for batch in documents_by_shard(embeddings):
                for _ in pool.map(self._vespa.put, batch):
                    pass
        self._note(sum(chunks.values()) - sum(former.values()))
        return {"added": sum(chunks.values()), "replaced": len(former)}

    def delete(self, ids: Collection[str]) -> dict[str, int]:
        former = self._remove(set(ids))
        self._note(-sum(former.values()))
        return {"deleted": len(former), "missing": len(set(ids)) - len(former)}

    def _remove(self, ids: Collection[str]) -> dict[str, int]:
        """Removes documents. Returns the number of chunks of each that Vespa had."""
        with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
            return {name: found for name, found in zip(ids, pool.map(self._vespa.remove, ids), strict=True) if found}

    def _note(self, more: int) -> None:
        """Writes the new number of vectors to the description."""
        self.count += more
        self._description |= {"count": self.count, UPDATED: True}
        write_json(self.path / DESCRIPTION, self._description)

    def request(
        self, query: np.ndarray, k: int, *, candidates: int, ranking: str | None = None, exact: bool = False
    ) -> dict[str, Any]:
        """Returns the body of a /search request for a pooled query [dims]; see `search` for the arguments."""
        stored = quantize(query[None], self.quantization, self.bit_order)
        signs = packed_signs(stored, self.quantization, self.bit_order)[0]
        operator = f"{{targetHits: {candidates}, approximate: {str(not exact).lower()}}}nearestNeighbor(signs, q_signs)"
        return {
            "yql": f"select id, chunk_ids, chunks, path, line, matchfeatures from {DOCUMENT_TYPE} where {operator}",
            "hits": k,
            "ranking.profile": ranking or self.profiles[0],
            "ranking.rerankCount": candidates,
            "input.query(q_signs)": signs.view(np.int8).tolist(),
            "input.query(q_vector)": quantize(query, "int8").tolist(),
            "presentation.format.tensors": "short-value",
            "timeout": "30s",
        }

    def search(
        self,
        query: np.ndarray,
        k: int = 10,
        *,
        candidates: int | None = None,
        ranking: str | None = None,
        exact: bool = False,
    ) -> dict[str, Any]:
        """Returns the k best documents, each by its best chunk.

        Args:
            query: pooled, float [dims].
            k: number of hits.
            candidates: number of documents that every content node finds by their signs and ranks again; None for 40
                per hit.
            ranking: one of `profiles`.
            exact: whether to compare the signs of all documents instead of searching the graph.

        Returns:
            {"hits": best first, ties by id descending: {"id": of the chunk, "score": cosine, "text", "path", "line"},
            and {"document", "chunk"} if the row had chunks; "coverage": percentage of the documents that were searched
            in time}.

        Raises:
            BadInput: k or `candidates` is too small, the profile is unknown, or Vespa refuses the query or does not
                answer.
        """
        candidates = CANDIDATES_PER_HIT * k if candidates is None else candidates
        if not 1 <= k <= candidates:
            raise BadInput(f"k={k}, candidates={candidates}: request at least one hit, and as many candidates as hits")
        if ranking not in (None, *self.profiles):
            raise BadInput(
                f"no rank profile {ranking!r} for {self.quantization}; use one of {', '.join(self.profiles)}"
            )
        # Vespa cuts equal scores in any order, so a few more hits are requested and the tie is broken here.
        hits = min(k + _SPARE, candidates, max(k, VespaApplication.max_hits))
        answer = self._vespa.query(self.request(query, hits, candidates=candidates, ranking=ranking, exact=exact))
        root = answer["root"]
        hits = [_hit(child) for child in root.get("children", [])]
        hits.sort(key=lambda hit: (hit["score"], hit["id"]), reverse=True)
        return {"hits": hits[:k], "coverage": root.get("coverage", {}).get("coverage", 100)}


def _hit(child: dict[str, Any]) -> dict[str, Any]:
    fields = child["fields"]
    by_chunk = fields["matchfeatures"][SIMILARITY]
    chunk = min(by_chunk, key=lambda label: (-by_chunk[label], int(label)))
    identity = fields["chunk_ids"][int(chunk)]
    hit = {
        "id": identity,
        "score": child["relevance"],
        "text": fields["chunks"][int(chunk)],
        "path": fields.get("path"),
        "line": fields.get("line"),
    }
    return hit if identity == fields["id"] else hit | {"document": fields["id"], "chunk": int(chunk)}


def search(
    index: str | pathlib.Path,
    query: str,
    k: int = 10,
    *,
    url: str | None = None,
    candidates: int | None = None,
    ranking: str | None = None,
    exact: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Searches for a text. Loads the model of the index unless `encoder` is given. See `VespaIndex.search`.

    Raises:
        BadInput: the query is empty, or the index, the model or Vespa cannot be used.
    """
    opened = VespaIndex.load(index, url)
    if not query.strip():
        raise BadInput("the query is empty; give some text to search for")
    encoder = encoder or load_encoder(opened.model, **opened.prompts)
    (vector,) = opened.pool_queries([query], encoder)
    return opened.search(vector, k, candidates=candidates, ranking=ranking, exact=exact)
