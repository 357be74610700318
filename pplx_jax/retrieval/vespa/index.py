"""An index in Vespa: the folder that describes it here, building it from embeddings, and searching it.

application/   the application package, see `application`
vespa.json     {format, url, model (relative to the folder), model_fingerprint, dims, quantization, bit_order, count}
fed.json, feed/  see `feed`
"""

import os
import pathlib
import shutil
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.http_client import HttpClient
from pplx_jax.core.output_folder import describes, require_free
from pplx_jax.inference.encoder import Encoder, load_encoder
from pplx_jax.kernels.quantization import BitOrder, Quantization, quantize
from pplx_jax.retrieval.embedding_folder import EmbeddingFolder
from pplx_jax.retrieval.vespa.application import (
    DOCUMENT_TYPE,
    SIMILARITY,
    VespaApplication,
    profiles,
    write_application,
    zipped,
)
from pplx_jax.retrieval.vespa.client import Vespa, deploy
from pplx_jax.retrieval.vespa.documents import packed_signs
from pplx_jax.retrieval.vespa.feed import feed, write_feed_files

FORMAT = 1
LOCAL = "http://localhost:8080"
CANDIDATES_PER_HIT = 40
_STORED = ("int8", "binary", "ubinary")


def build(
    embeddings: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    url: str | None = None,
    config_url: str | None = None,
    application: VespaApplication | None = None,
    connections: int = 32,
    retries: int = 8,
    startup_seconds: float = 300.0,
) -> dict[str, Any]:
    """Writes the application package of an embedding folder; with addresses, also deploys it and feeds the documents.

    Run again after an interruption, feeding goes on after the last whole shard.

    Args:
        embeddings: what `embed_file` left, of quantization "int8", "binary" or "ubinary".
        output: the folder to write.
        url: of Vespa's container, such as http://localhost:8080. Without it feed files are written instead.
        config_url: of the configuration server, such as http://localhost:19071: the package is deployed first.
        application: see `VespaApplication`; its defaults where None.
        connections, retries: of feeding.
        startup_seconds: how long the container may take after the deployment.

    Returns:
        {"count": vectors, "documents", "dims", "quantization", "fed": whether Vespa has them}.

    Raises:
        BadInput: the embeddings are missing, unfinished, none or in floats, `output` is something else,
            or Vespa refuses or does not answer.
    """
    source, output = EmbeddingFolder.read(pathlib.Path(embeddings)), pathlib.Path(output)
    settings = source.settings
    if settings.quantization not in _STORED:
        raise BadInput(f"{source.path} holds {settings.quantization!r} vectors; Vespa takes {', '.join(_STORED)}")
    if settings.dims % 8:
        raise BadInput(f"{source.path} has {settings.dims} dimensions; packed signs need a multiple of 8")
    count = source.totals()["count"]
    if count == 0:
        raise BadInput(f"{source.path} holds no vectors: its input had no row that could be embedded")
    require_free(output, "Vespa index", _is_index)
    files = (application or VespaApplication()).files(settings.dims, int8=settings.quantization == "int8")
    output.mkdir(parents=True, exist_ok=True)
    description = {"dims": settings.dims, "quantization": settings.quantization, "count": count}
    model = (source.path / source.model).resolve()
    write_json(
        output / "vespa.json",
        {
            "format": FORMAT,
            "url": url or LOCAL,
            "model": os.path.relpath(model, output.resolve()),
            "model_fingerprint": settings.model_fingerprint,
            "bit_order": settings.bit_order,
            **description,
        },
    )
    write_application(output / "application", files)
    if config_url:
        deploy(HttpClient(config_url, retries=retries), zipped(files))
    if not url:
        return {**description, "documents": write_feed_files(source, output / "feed"), "fed": False}
    vespa = Vespa(HttpClient(url, connections=connections, retries=retries))
    if config_url:
        vespa.wait_until_up(startup_seconds)
    documents = feed(source, vespa, output / "fed.json", connections)
    shutil.rmtree(output / "feed", ignore_errors=True)  # files of a call without an address
    return {**description, "documents": documents, "fed": True}


def _is_index(folder: pathlib.Path) -> bool:
    return describes(folder / "vespa.json", "format", "url", "model_fingerprint", "count")


class VespaIndex:
    """An index in Vespa, opened for searching.

    Attributes:
        path: the folder that `build` wrote.
        model: the model folder that encodes queries; model_fingerprint names it.
        dims, quantization, bit_order, count: of the vectors.
        profiles: rank profiles that a query may name, the default one first.
    """

    def __init__(self, path: pathlib.Path, description: dict[str, Any], url: str | None = None):
        """Use `VespaIndex.load`."""
        self.path = path
        self.model = (path / description["model"]).resolve()
        self.model_fingerprint: str = description["model_fingerprint"]
        self.dims: int = description["dims"]
        self.quantization: Quantization = description["quantization"]
        self.bit_order: BitOrder = description["bit_order"]
        self.count: int = description["count"]
        self.profiles = profiles(int8=self.quantization == "int8")
        self._vespa = Vespa(HttpClient(url or description["url"]))

    @classmethod
    def load(cls, path: str | pathlib.Path, url: str | None = None) -> "VespaIndex":
        """Opens an index; `url` is where its Vespa is, if not where it was built.

        Raises:
            BadInput: there is none, or it is damaged or of another version.
        """
        path = pathlib.Path(path)
        if not (path / "vespa.json").exists():
            raise BadInput(f"no Vespa index in {path}; make one with `index --engine vespa`")
        description = read_json(path / "vespa.json", fix="make the index again")
        try:
            if description["format"] != FORMAT:
                raise ValueError(f"format {description['format']}, this version reads {FORMAT}")
            return cls(path, description, url)
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path / 'vespa.json'} cannot be used ({error}); make the index again") from None

    def encode_query(self, text: str, encoder: Encoder) -> np.ndarray:
        """The query's pooled vector, float32 [dims].

        Raises:
            BadInput: the text is empty, or the model is not the one of the index.
        """
        if not text.strip():
            raise BadInput("the query is empty; give some text to search for")
        if encoder.fingerprint != self.model_fingerprint:
            raise BadInput(
                f"the index {self.path} was made by model {self.model_fingerprint}, {self.model} is now "
                f"{encoder.fingerprint}; embed and index again"
            )
        return encoder.encode([text], quantization="none", dims=self.dims)[0]

    def request(
        self, query: np.ndarray, k: int, *, candidates: int, ranking: str | None = None, exact: bool = False
    ) -> dict[str, Any]:
        """The body of /search for a pooled query [dims]; see `search` for the rest."""
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
        """The k best documents, each by its best chunk.

        Args:
            query: pooled, float [dims].
            k: hits wanted.
            candidates: found by their signs on every content node and ranked again; 40 a hit where None.
            ranking: one of `profiles`.
            exact: compare the signs with those of all documents instead of walking the graph.

        Returns:
            {"hits": best first, equals by id descending: {"id": of the chunk, "score": cosine, "text", "path", "line"},
            and {"document", "chunk"} where the row had chunks; "coverage": share of the documents that answered in
            time, in percent}.

        Raises:
            BadInput: k or `candidates` is too small, the profile is unknown, or Vespa refuses or does not answer.
        """
        candidates = CANDIDATES_PER_HIT * k if candidates is None else candidates
        if not 1 <= k <= candidates:
            raise BadInput(f"k={k}, candidates={candidates}: ask for at least one hit, and as many candidates as hits")
        if ranking not in (None, *self.profiles):
            raise BadInput(
                f"no rank profile {ranking!r} for {self.quantization}; take one of {', '.join(self.profiles)}"
            )
        answer = self._vespa.query(self.request(query, k, candidates=candidates, ranking=ranking, exact=exact))
        root = answer["root"]
        hits = [_hit(child) for child in root.get("children", [])]
        hits.sort(key=lambda hit: (hit["score"], hit["id"]), reverse=True)
        return {"hits": hits, "coverage": root.get("coverage", {}).get("coverage", 100)}


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
    """Searches for a text; loads the model that the index points at unless `encoder` is given. See `VespaIndex.search`.

    Raises:
        BadInput: an empty query, or an index, model or Vespa that cannot be used.
    """
    opened = VespaIndex.load(index, url)
    if not query.strip():
        raise BadInput("the query is empty; give some text to search for")
    encoder = encoder or load_encoder(opened.model)
    vector = opened.encode_query(query, encoder)
    return opened.search(vector, k, candidates=candidates, ranking=ranking, exact=exact)
