"""The computation of mining, in parts that survive interruptions and that machines can share."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from pplx_jax.core.progress import Progress
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.inference.embedder import Embedder
from pplx_jax.kernels.quantization import to_int8
from pplx_jax.mining.choice import REASONS, Mining, choose
from pplx_jax.mining.documents import Candidates, Documents, answers_of, candidates_of
from pplx_jax.mining.parts import Parts
from pplx_jax.mining.report import Sample
from pplx_jax.mining.search import Search, approximate_search, exact_search

_QUERIES_PER_BLOCK = 512


class Work:
    """The pairs to mine, and the parts of the computation.

    Args:
      embedder: ranks the documents.
      table: of pairs.
      vocabulary: of the table.
      mining: the rule.
      chosen: [n] rows of the table to mine.
      others: tables whose texts are ranked too.
    """

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
        """Returns a hash of everything that the parts depend on."""
        facts = [self._embedder.fingerprint, dataclasses.asdict(self._mining), self.documents.fingerprint]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self._chosen.tobytes())
        for place in range(len(self._chosen)):
            digest.update(self._query(place).tobytes())
        for positives in self._positives.values():
            digest.update(np.array(sorted(positives)).tobytes())
        return digest.hexdigest()

    def run(self, parts: Parts, index: int, shards: int, *, wait: Callable[[], None] = lambda: None) -> int:
        """Computes the missing parts of one share, and returns the number of its query parts.

        Args:
          parts: of all shares.
          index: of the share.
          shards: number of shares.
          wait: called when the documents of the share are encoded, to wait for those of the others.
        """
        queries, documents = self._in_parts(len(self._chosen)), self._in_parts(len(self.documents))
        share = range(index, len(queries), shards)
        # Others compute the parts of their shares, so start with the own share.
        order = sorted(range(len(documents)), key=lambda part: (part - index) % shards)
        own = [part for part in order if part % shards == index % shards]
        missing = [part for part in share if not parts.has(negatives_of(part))]
        unfinished = bool(missing) or not all(parts.has(_vectors(part)) for part in own)
        vectors: dict[int, np.ndarray] = {}
        with Progress("mine: encode", len(self.documents), "document", enabled=unfinished) as progress:
            for part in own if unfinished else ():
                vectors[part] = self._encode_documents(parts, part, documents[part])
                progress.update(sum(map(len, vectors.values())))
            wait()
            for part in order[len(own) :] if unfinished else ():
                vectors[part] = self._encode_documents(parts, part, documents[part])
                progress.update(sum(map(len, vectors.values())))
        if missing:
            whole = np.concatenate([vectors[part] for part in range(len(documents))])
            self._rank(parts, whole, {part: queries[part] for part in missing})
        return len(share)

    def _in_parts(self, count: int) -> list[range]:
        size = self._mining.part_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def _encode_documents(self, parts: Parts, part: int, places: range) -> np.ndarray:
        work = lambda: {"vectors": self._encode([self._document(row) for row in places])}  # noqa: E731
        return parts(_vectors(part), work)["vectors"]

    def _rank(self, parts: Parts, vectors: np.ndarray, places: dict[int, range]) -> None:
        if self._mining.search == "exact":
            search = exact_search(vectors)
        else:
            search = approximate_search(vectors, self._mining.probes)
        done = 0
        with Progress("mine: rank", total=sum(map(len, places.values())), unit="query") as progress:
            for part, own in places.items():
                parts(negatives_of(part), functools.partial(self._choose, own, search, vectors, progress, done))
                done += len(own)

    def _query(self, place: int) -> np.ndarray:
        return np.asarray(self._table["query"][self._chosen[place]], np.int32)

    def _document(self, document: int) -> np.ndarray:
        return self.documents.text(self.documents.places[document])

    def _encode(self, texts: list[np.ndarray]) -> np.ndarray:
        return np.asarray(to_int8(jnp.asarray(self._embedder.encode_tokens(texts))))

    def _choose(
        self, places: range, search: Search, documents: np.ndarray, progress: Progress, done: int
    ) -> dict[str, np.ndarray]:
        """Returns the negatives of the queries of a part."""
        mining = self._mining
        vectors = self._encode([self._query(place) for place in places])
        kept, negatives, ranks, scores, positives = [], [], [], [], []
        refused = np.zeros(len(REASONS), np.int64)
        for first in range(0, len(places), _QUERIES_PER_BLOCK):
            block = places[first : first + _QUERIES_PER_BLOCK]
            of_block = vectors[first : first + len(block)]
            found, near = search(of_block, mining.last_rank)
            own = self._document_of[list(block)]
            positive = _cosines(of_block, documents[own])
            for row, place in enumerate(block):
                drawn, reasons = choose(
                    mining,
                    near[row],
                    found[row],
                    answers=self._positives[self._query(place).tobytes()],
                    positive=positive[row],
                    pair=int(self._chosen[place]),
                )
                refused += reasons
                if len(drawn):
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
        """Returns sample queries for the report, as text."""
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


def negatives_of(part: int) -> str:
    """Returns the name of a query part of `Work.run`."""
    return f"negatives-{part:05d}"


def _vectors(part: int) -> str:
    return f"documents-{part:05d}"


def _cosines(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    a, b = queries.astype(np.float32), documents.astype(np.float32)
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)
