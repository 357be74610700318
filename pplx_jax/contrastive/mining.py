"""Hard negatives: documents a model ranks high for a query, yet below its positive (arXiv 2602.11151, section 2.5)."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pplx_jax.contrastive.mining_documents import Candidates, Documents, answers_of, candidates_of
from pplx_jax.contrastive.mining_parts import Parts
from pplx_jax.contrastive.mining_report import Sample, write_mining_report
from pplx_jax.contrastive.mining_search import Search, approximate_search, exact_search
from pplx_jax.data.examples import open_tables
from pplx_jax.data.gather import Gatherer
from pplx_jax.data.token_files import Ragged, TokenTable, holds_triplets, write_table
from pplx_jax.data.token_hashes import token_hashes
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.errors import BadInput, require
from pplx_jax.models.embedder import Embedder
from pplx_jax.models.quantization import to_int8
from pplx_jax.output_folder import require_free
from pplx_jax.progress import Progress
from pplx_jax.retrieval.bm25 import BM25

_QUERIES_PER_BLOCK = 512
_REASONS = ("positives", "above_ceiling", "lexical")


@dataclasses.dataclass(frozen=True)
class Mining:
    """Which documents become the hard negatives of a query. The paper publishes none of this; see the README.

    Attributes:
      negatives: K, of each query.
      first_rank: documents ranked before it (from 1) are left alone: many answer the query as well.
      last_rank: the end of the window, this rank included. Copies of a document have one rank.
      ceiling: a negative's cosine is at most this share of the positive's.
      margin: and at most the positive's less this.
      lexical_ceiling: a negative's BM25 score is at most this share of the positive's; 0 asks no BM25.
      search: "exact", or "approximate" by faiss.
      probes: cells that the approximate search looks in.
      examples: pairs that are mined, a seeded sample; 0 for all.
      part_size: queries, and documents, of one piece of work that is kept when the work is cut off.
      samples: queries that the report shows.
      seed: of the sample and of the choice within the window.
    """

    negatives: int = 7
    first_rank: int = 30
    last_rank: int = 100
    ceiling: float = 0.95
    margin: float = 0.0
    lexical_ceiling: float = 0.0
    search: Literal["exact", "approximate"] = "exact"
    probes: int = 32
    examples: int = 0
    part_size: int = 16384
    samples: int = 20
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.first_rank <= self.last_rank:
            raise BadInput(f"Mining: ranks {self.first_rank} to {self.last_rank} are no window; count from 1")
        if self.search not in ("exact", "approximate"):
            raise BadInput(f"Mining.search={self.search!r}; choose 'exact' or 'approximate'")
        if min(self.negatives, self.part_size, self.probes) < 1:
            raise BadInput("Mining: negatives, part_size and probes are 1 or more")
        ranks = self.last_rank - self.first_rank + 1
        require(self.negatives <= ranks, self, "negatives", f"at most the {ranks} ranks of the window")


def mine_table(
    embedder: Embedder,
    table: TokenTable,
    vocabulary: Vocabulary,
    mining: Mining,
    output: pathlib.Path,
    *,
    documents: Sequence[TokenTable] = (),
    among: np.ndarray | None = None,
    shard: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Writes the triplet table of a pair table, and `report.txt` and `report.html` in it.

    The queries are the sampled pairs', and ranked are the pairs' documents and those of further tables, each text once:
    INT8 embeddings, cosine. Of the window's documents under the ceilings, K are drawn; a query that has fewer than K is
    left out, and counted. The documents of all pairs that share a query's tokens are its positives and never its
    negatives, nor are texts of the same tokens, cut as they are.

    The work goes in parts beside `output`, which are kept when it is cut off and taken up by the next call; the result
    depends on neither.

    Args:
      embedder: the model whose ranking is used.
      table: a pair table.
      vocabulary: the table's.
      mining: the choice.
      output: folder of the triplet table.
      documents: tables of any stage and the same vocabulary whose texts are ranked too (`candidates_of`), cut as the
        pairs' documents are. What answers a query in them is a positive of it.
      among: [n] rows of the table that the sample is drawn from; all where None.
      shard: (i, n) does the i-th of n shares of the parts and writes no table, so that machines that see the same
        folder share the work; a last call without it puts them together.

    Returns:
      Counts: `queries`, `left_out`, the `documents` ranked, `mean_positive_similarity`, `mean_negative_similarity`, and
      of the window's documents how many were refused, as `positives`, `above_ceiling` and `lexical`; of a shard,
      `parts`.

    Raises:
      BadInput: `output` holds something else than mined triplets; fewer documents than the window is deep, or no
        query with K negatives.
    """
    require_free(output, "token table of stage triplet", holds_triplets)
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise BadInput(f"mining: shard {shard[0]} of {shard[1]}; count shards from 0")
    rows = np.arange(table.count) if among is None else among
    chosen = _sample(rows, mining)
    work = _Work(embedder, table, vocabulary, mining, chosen, documents)
    if len(work.documents) < mining.last_rank:
        raise BadInput(
            f"mining: ranks to {mining.last_rank} among {len(work.documents)} documents; mine more examples, rank "
            "more documents or lower last_rank"
        )
    parts = Parts(output.with_name(output.name + ".mining"), work.fingerprint())
    if shard is not None:
        return {"parts": work.run(parts, *shard)}
    found = [parts(_negatives(part), dict) for part in range(work.run(parts, 0, 1))]
    kept, negatives, ranks, scores, positive = (
        np.concatenate([one[name] for one in found]) for name in ("kept", "negatives", "ranks", "scores", "positive")
    )
    if not len(kept):
        parts.remove()
        raise BadInput(
            f"mining: no query has {mining.negatives} documents of rank {mining.first_rank} to {mining.last_rank} "
            f"under {mining.ceiling} of its positive; raise the ceiling or widen the window"
        )
    counts: dict[str, Any] = {
        "queries": len(kept),
        "left_out": len(chosen) - len(kept),
        "documents": len(work.documents),
        "mean_positive_similarity": float(np.mean(positive)),
        "mean_negative_similarity": float(np.mean(scores)),
        **{reason: int(sum(one["refused"][place] for one in found)) for place, reason in enumerate(_REASONS)},
    }
    _write(table, vocabulary, output, chosen, work.documents, kept, negatives)
    samples = work.samples(kept, negatives, ranks, scores, positive)
    write_mining_report(output, dataclasses.asdict(mining), counts, samples)
    parts.remove()
    return counts


class _Work:
    """The pairs that are mined, and the parts that mining them consists of."""

    def __init__(
        self,
        embedder: Embedder,
        table: TokenTable,
        vocabulary: Vocabulary,
        mining: Mining,
        chosen: np.ndarray,
        others: Sequence[TokenTable],
    ):
        self._embedder, self._table, self._vocabulary, self._mining = embedder, table, vocabulary, mining
        self._chosen = chosen
        candidates = [Candidates(table["document"], chosen), *map(candidates_of, others)]
        self.documents = Documents(candidates, table.manifest.get("lengths", {}).get("document"))
        self._document_of = self.documents.numbers[: len(chosen)]
        self._positives: dict[bytes, set[int]] = {}
        for place, document in enumerate(self._document_of):
            self._positives.setdefault(self._query(place).tobytes(), set()).add(int(document))
        first = len(chosen)
        for other, (_, rows) in zip(others, candidates[1:], strict=True):
            for query, answer in enumerate(answers_of(other)):
                positives = self._positives.get(np.asarray(other["query"][query], np.int32).tobytes())
                if positives is not None:
                    positives.add(int(self.documents.numbers[first + answer]))
            first += len(rows)

    def fingerprint(self) -> str:
        """Of all that the parts depend on."""
        facts = [self._embedder.fingerprint, dataclasses.asdict(self._mining), self.documents.fingerprint]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self._chosen.tobytes())
        for place in range(len(self._chosen)):
            digest.update(self._query(place).tobytes())
        for positives in self._positives.values():
            digest.update(np.array(sorted(positives)).tobytes())
        return digest.hexdigest()

    def run(self, parts: Parts, index: int, shards: int) -> int:
        """Does what is not there yet of one of several shares of the work, and returns its parts of queries."""
        queries, documents = self._in_parts(len(self._chosen)), self._in_parts(len(self.documents))
        share = range(index, len(queries), shards)
        missing = [part for part in share if not parts.has(_negatives(part))]
        if missing or not all(parts.has(_vectors(part)) for part in range(index, len(documents), shards)):
            # Others are at work on the parts of their shares, so one's own come first.
            order = sorted(range(len(documents)), key=lambda part: (part - index) % shards)
            vectors = self._encode_documents(parts, documents, order)
            if missing:
                self._rank(parts, vectors, {part: queries[part] for part in missing})
        return len(share)

    def _in_parts(self, count: int) -> list[range]:
        size = self._mining.part_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def _encode_documents(self, parts: Parts, places: list[range], order: list[int]) -> np.ndarray:
        found, done = {}, 0
        with Progress("mine: encode", total=len(self.documents), unit="document") as progress:
            for part in order:
                work = lambda part=part: {"vectors": self._encode([self._document(row) for row in places[part]])}  # noqa: E731
                found[part] = parts(_vectors(part), work)["vectors"]
                done += len(places[part])
                progress.update(done)
        return np.concatenate([found[part] for part in range(len(places))])

    def _rank(self, parts: Parts, vectors: np.ndarray, places: dict[int, range]) -> None:
        if self._mining.search == "exact":
            search = exact_search(vectors)
        else:
            search = approximate_search(vectors, self._mining.probes)
        done = 0
        with Progress("mine: rank", total=sum(map(len, places.values())), unit="query") as progress:
            for part, own in places.items():
                parts(_negatives(part), functools.partial(self._choose, own, search, vectors, progress, done))
                done += len(own)

    def _query(self, place: int) -> np.ndarray:
        return np.asarray(self._table["query"][self._chosen[place]], np.int32)

    def _document(self, document: int) -> np.ndarray:
        return self.documents.text(self.documents.places[document])

    def _encode(self, texts: list[np.ndarray]) -> np.ndarray:
        return np.asarray(to_int8(jnp.asarray(self._embedder.encode_tokens(texts))))

    @functools.cached_property
    def _lexical(self) -> BM25:
        return BM25([self._vocabulary.decode(self._document(row)) for row in range(len(self.documents))])

    def _choose(
        self, places: range, search: Search, documents: np.ndarray, progress: Progress, done: int
    ) -> dict[str, np.ndarray]:
        """The negatives of a part's queries."""
        mining = self._mining
        vectors = self._encode([self._query(place) for place in places])
        kept, negatives, ranks, scores, positives = [], [], [], [], []
        refused = np.zeros(len(_REASONS), np.int64)
        for first in range(0, len(places), _QUERIES_PER_BLOCK):
            block = places[first : first + _QUERIES_PER_BLOCK]
            of_block = vectors[first : first + len(block)]
            found, near = search(of_block, mining.last_rank)
            own = self._document_of[list(block)]
            positive = _cosines(of_block, documents[own])
            lexical = None
            if mining.lexical_ceiling:
                lexical = self._lexical.scores([self._vocabulary.decode(self._query(place)) for place in block])
            for row, place in enumerate(block):
                window = np.arange(mining.first_rank - 1, near.shape[1])
                window = window[near[row, window] >= 0]
                candidates = near[row, window]
                allowed = np.ones((len(_REASONS), len(window)), bool)
                allowed[0] = ~np.isin(candidates, list(self._positives[self._query(place).tobytes()]))
                allowed[1] = found[row, window] <= _ceiling(positive[row], mining)
                if lexical is not None:
                    allowed[2] = lexical[row, candidates] <= mining.lexical_ceiling * lexical[row, own[row]]
                # Each refusal is counted once, by its first reason.
                passed = np.cumprod(np.vstack([np.ones(len(window), bool), allowed]), axis=0).astype(bool)
                refused += (passed[:-1] & ~passed[1:]).sum(axis=1)
                window = window[passed[-1]]
                if len(window) < mining.negatives:
                    continue
                # By the pair, not by the order of the work: parts may be done anywhere.
                generator = np.random.default_rng((mining.seed, int(self._chosen[place])))
                drawn = generator.choice(window, mining.negatives, replace=False)
                kept.append(place)
                negatives.append(self.documents.places[near[row, drawn]])
                ranks.append(drawn + 1)
                scores.append(found[row, drawn])
                positives.append(positive[row])
            progress.update(done + first + len(block))
        shape = (len(kept), mining.negatives)
        return {
            "kept": np.array(kept, np.int64),
            "negatives": np.array(negatives, np.int64).reshape(shape),
            "ranks": np.array(ranks, np.int64).reshape(shape),
            "scores": np.array(scores, np.float32).reshape(shape),
            "positive": np.array(positives, np.float32),
            "refused": refused,
        }

    def samples(self, kept, negatives, ranks, scores, positive) -> list[Sample]:
        """Queries for the report, as text."""
        generator = np.random.default_rng(self._mining.seed)
        shown = np.sort(generator.choice(len(kept), min(self._mining.samples, len(kept)), replace=False))
        decode, text = self._vocabulary.decode, self.documents.text
        return [
            Sample(
                query=decode(self._query(kept[row])),
                positive=(decode(text(kept[row])), float(positive[row])),
                negatives=[
                    (decode(text(place)), int(rank), float(score))
                    for place, rank, score in sorted(
                        zip(negatives[row], ranks[row], scores[row], strict=True), key=lambda item: item[1]
                    )
                ],
            )
            for row in shown
        ]


def _negatives(part: int) -> str:
    return f"negatives-{part:05d}"


def _vectors(part: int) -> str:
    return f"documents-{part:05d}"


def _cosines(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    a, b = queries.astype(np.float32), documents.astype(np.float32)
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)


def _ceiling(positive: float, mining: Mining) -> float:
    # Below zero the share is turned over: the ceiling stays under the positive.
    share = positive * mining.ceiling if positive >= 0 else positive / mining.ceiling
    return min(share, positive - mining.margin) if mining.margin else share


def _write(
    table: TokenTable,
    vocabulary: Vocabulary,
    output: pathlib.Path,
    chosen: np.ndarray,
    documents: Documents,
    kept: np.ndarray,
    negatives: np.ndarray,
) -> None:
    """Rows of the new table: those with negatives first, then rows that only serve as negatives.

    `negatives` refers to rows of the table, so a document that is only a negative needs one too; `examples` in the
    manifest says how many rows are examples. Documents of other tables come last, and have no query.
    """
    only_negative = np.setdiff1d(negatives, kept)
    places = np.concatenate([kept, only_negative])
    row = np.full(len(documents.numbers), -1, np.int32)
    row[places] = np.arange(len(places), dtype=np.int32)
    pairs = chosen[places[places < len(chosen)]]
    texts = [documents.text(place) for place in places]
    others = texts[len(pairs) :]
    filler = np.zeros((len(only_negative), negatives.shape[1]), np.int32)
    features = {
        "query": Ragged.from_arrays([*(table["query"][pair] for pair in pairs), *([] for _ in others)]),
        "document": Ragged.from_arrays(texts),
        "document_hash": token_hashes(texts),
        "source": np.concatenate([table["source"][pairs], np.zeros(len(others), np.int32)]),
        "negatives": np.concatenate([row[negatives], filler]),
    }
    notes = {"examples": len(kept), "sources": table.manifest.get("sources", [])}
    write_table(output, "triplet", vocabulary, features, notes=notes)


_DEFAULT = Mining()


def _sample(rows: np.ndarray, mining: Mining) -> np.ndarray:
    count = min(mining.examples or len(rows), len(rows))
    return np.sort(np.random.default_rng(mining.seed).choice(rows, count, replace=False))


def _sampled(tables: Sequence[TokenTable], mining: Mining) -> TokenTable:
    """The sampled pairs of several tables as one in memory."""
    counts = [table.count for table in tables]
    chosen = _sample(np.arange(sum(counts)), mining)
    ends = np.cumsum(counts)
    table = np.searchsorted(ends, chosen, side="right")
    return Gatherer(tables)(table, chosen - (ends - counts)[table])


def mine_file(
    model: pathlib.Path,
    pairs: pathlib.Path,
    output: pathlib.Path,
    mining: Mining = _DEFAULT,
    documents: Sequence[pathlib.Path] = (),
    shard: int | None = None,
    shards: int | None = None,
) -> dict[str, Any]:
    """Mines the token files of a pair stage with a model folder; see `mine_table`.

    Args:
      model: a model folder.
      pairs: one pair table, or a folder of them by source and shard, whose pairs are then mined together.
      output: folder of the triplet table.
      mining: the choice.
      documents: tables, or folders of them as of `pairs`, of any stage, whose texts are ranked too.
      shard: the share of the work that is done, of `shards`; all of it where None.
      shards: how many shares there are.

    Returns:
      As `mine_table`.

    Raises:
      BadInput: as `mine_table`; one of `shard` and `shards` without the other; no pair tables, or no
        tables of documents, of the model's vocabulary.
    """
    if (shard is None) != (shards is None):
        raise BadInput("--shard and --shards go together: --shard=0 --shards=4 does the first of four shares")
    embedder = Embedder.load(model)
    vocabulary = embedder.vocabulary
    tables = _open(pairs, vocabulary, "pair")
    table = tables[0] if len(tables) == 1 else _sampled(tables, mining)
    others = [other for folder in documents for other in _open(folder, vocabulary)]
    share = None if shard is None or shards is None else (shard, shards)
    return mine_table(embedder, table, vocabulary, mining, pathlib.Path(output), documents=others, shard=share)


def _open(folder: pathlib.Path, vocabulary: Vocabulary, stage: str | None = None) -> list[TokenTable]:
    return list(itertools.chain(*open_tables(folder, stage=stage, vocabulary=vocabulary).values()))
