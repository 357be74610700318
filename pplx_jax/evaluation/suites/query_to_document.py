"""Query-to-document and query-to-query retrieval in pools of growing size (arXiv 2602.11151, internal benchmarks).

The paper's data is not public; its protocol runs here on any:

    DATA/ (the one task) or DATA/SET/ (a task each)
        queries.jsonl   {"_id", "text"}
        corpus.jsonl    {"_id", "text", "title"?}; of query-to-query the queries that may be found; or instead
        embeddings/     the same corpus as `pplx-jax embed` left it, for one that does not fit in memory
        qrels.tsv       labels by people, if there are any
        runs/*.trec     rankings of several systems, if labels are fused from them
    DATA/options.json   what `PoolOptions` names, such as {"sizes": [100000, 1000000]}, if anything

Every pool holds the relevant documents of all queries and a sample of the others, and lies within the next larger one;
ranks in all of them come from one pass. Fused labels favour systems like those that they are fused from: keep the
system under test out of runs/.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput, require
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.beir import corpus_file
from pplx_jax.evaluation.core.benchmark import TOO_LONG, Part, System
from pplx_jax.evaluation.core.data_options import read_options
from pplx_jax.evaluation.scoring.corpus_embeddings import (
    Block,
    EmbeddedCorpus,
    EncodedCorpus,
    encoding,
    joined,
    read_corpus,
)
from pplx_jax.evaluation.scoring.labelled_queries import LabelledQueries, read_labelled_queries
from pplx_jax.evaluation.scoring.nested_pools import NestedPools
from pplx_jax.evaluation.scoring.pool_ranks import PoolRanks
from pplx_jax.inference.encoder import query_encoder
from pplx_jax.inference.overflow import too_long_by_name
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.bm25 import BM25
from pplx_jax.retrieval.search import similarity

PAPER_SIZES = {"query-to-document": (7_500_000, 15_000_000, 30_000_000), "query-to-query": (2_400_000,)}
CUTOFFS = (10, 100, 1000)


@dataclasses.dataclass(frozen=True)
class PoolOptions:
    """What a user may choose, in options.json beside the data.

    Attributes:
        sizes: documents of the pools; the paper's that are below the corpus, and the corpus, where None.
        relevant: documents that are fused to be relevant to a query; ours, the paper gives no number.
        seed: of the pools.
    """

    sizes: tuple[int, ...] | None = None
    relevant: int = 50
    seed: int = 0

    def __post_init__(self):
        require(self.sizes is None or min(self.sizes, default=0) > 0, self, "sizes", "one or more numbers from 1 on")
        require(self.relevant > 0, self, "relevant", "1 or more")
        require(0 <= self.seed < 1 << 64, self, "seed", "0 or more, below 2^64")


@dataclasses.dataclass(frozen=True)
class PoolTask:
    """One data set of the benchmark (`benchmark.Task`); its parts are kinds of label by sizes of pool.

    Attributes:
        name: of the set.
        folder: see the module.
        family: "query-to-document", or "query-to-query", where a query does not find itself.
        options: the user's.
        main_metric: of all parts.
    """

    name: str
    folder: pathlib.Path
    family: str
    options: PoolOptions
    main_metric: str = f"recall@{CUTOFFS[-1]}"

    @property
    def revision(self) -> str:
        """16 hex digits of the settings and of all files; embeddings/ counts by its manifest, which has their input."""
        digest = hashlib.sha256(repr((self.family, self.options)).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder)
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            if name.parts[0] != "embeddings" or name.name == "manifest.json":
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def _queries_are_corpus(self) -> bool:
        return self.family == "query-to-query"

    def evaluate(self, system: System) -> Sequence[Part]:
        labelled = read_labelled_queries(
            self.folder, self.options.relevant, queries_are_corpus=self._queries_are_corpus
        )
        rank = self._rank_by_bm25 if system.encoder is None else self._rank_by_vectors
        sizes, ranks = rank(labelled, system)
        return [
            _part(labelled, kind, size, of_size)
            for kind in labelled.judged
            for size, of_size in zip(sizes, ranks, strict=True)
        ]

    def _rank_by_vectors(self, labelled: LabelledQueries, system: System) -> tuple[Sequence[int], np.ndarray]:
        assert system.encoder is not None
        settings, embeddings = system.settings, self.folder / "embeddings"
        encode = query_encoder(system.encoder)
        with too_long_by_name(labelled.ids, TOO_LONG):
            queries = quantize(encode(labelled.texts, **encoding(system)), settings.quantization)
        if embeddings.is_dir():
            corpus = EmbeddedCorpus(embeddings, system)
        else:
            corpus = EncodedCorpus(*read_corpus(corpus_file(self.folder)), system)

        def scores(block: Block) -> np.ndarray:
            return block.document_scores(similarity(queries, block.vectors, settings.quantization == "ubinary"))

        pools = self._pools(corpus.ids(), labelled)
        relevant = frozenset(labelled.documents)
        chosen = joined([block.taken([i for i, name in enumerate(block.ids) if name in relevant])
                         for block in corpus.blocks()])  # fmt: skip
        counted = self._counted(labelled, chosen.ids, scores(chosen), len(pools.sizes))
        done = 0
        with Progress(f"rank {self.name}", pools.documents, unit="document") as progress:
            for block in corpus.blocks():
                counted.add(block.ids, scores(block), pools.shells(block.ids))
                done += len(block.ids)
                progress.update(done)
        return pools.sizes, counted.ranks()

    def _rank_by_bm25(self, labelled: LabelledQueries, system: System) -> tuple[Sequence[int], np.ndarray]:
        """A BM25 index of each pool, for the rarity of words is the pool's; all texts are in memory."""
        ids, texts = read_corpus(corpus_file(self.folder))
        pools = self._pools(ids, labelled)
        shells = pools.shells(ids)
        ranks = []
        for place in range(len(pools.sizes)):
            pool = np.flatnonzero(shells <= place)
            names, scores = [ids[i] for i in pool], BM25([texts[i] for i in pool]).scores(labelled.texts)
            counted = self._counted(labelled, names, scores, 1)
            counted.add(names, scores, np.zeros(len(names), np.int64))
            ranks.append(counted.ranks()[0])
        return pools.sizes, np.stack(ranks)

    def _pools(self, ids: Iterable[str], labelled: LabelledQueries) -> NestedPools:
        relevant, options = frozenset(labelled.documents), self.options
        return NestedPools(ids, relevant, options.sizes, PAPER_SIZES[self.family], seed=options.seed)

    def _counted(self, labelled: LabelledQueries, ids: Sequence[str], scores: np.ndarray, pools: int) -> PoolRanks:
        column = {name: place for place, name in enumerate(ids)}
        own = scores[labelled.query, [column[document] for document in labelled.documents]]
        excluded = [labelled.ids[row] for row in labelled.query] if self._queries_are_corpus else None
        return PoolRanks(labelled.query, labelled.documents, own, pools, excluded)


@dataclasses.dataclass(frozen=True)
class PoolBenchmark:
    """The family (`benchmark.Benchmark`)."""

    name: str
    tasks: Sequence[PoolTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """The mean over tasks of each metric, for each kind of label and size of pool: "fused 30000000 recall@10"."""
        values: dict[str, list[float]] = {}
        for part in (part for of_task in parts.values() for part in of_task):
            for metric, value in part.metrics.items():
                values.setdefault(f"{part.subset} {metric}", []).append(value)
        return {name: float(np.mean(of_tasks)) for name, of_tasks in values.items()}


def _part(labelled: LabelledQueries, kind: str, size: int, ranks: np.ndarray) -> Part:
    recall = {f"recall@{cutoff}": labelled.recall(kind, ranks, cutoff) for cutoff in CUTOFFS}
    return Part(
        split="test",
        subset=f"{kind} {size}",
        metrics={name: float(np.mean(values)) for name, values in recall.items()},
        queries=len(labelled.judged[kind]),
        documents=size,
        query_ids=[labelled.ids[row] for row in labelled.judged[kind]],
        per_query=recall,
        shares_queries=True,
    )


def open_benchmark(name: str, data: pathlib.Path | None, **options: Any) -> PoolBenchmark:
    """Opens the family on a folder; no set is read yet.

    Args:
        name: "query-to-document" or "query-to-query".
        data: see the module; there is none on the hub.
        **options: of `PoolOptions`.

    Raises:
        BadInput: there is no folder, it holds no set, or there is no such option.
    """
    if data is None:
        raise BadInput(f"the data of {name} is not public: give --data, a folder of your queries, corpus and labels")
    folders = (
        [data] if any(data.glob("queries.jsonl*")) else sorted(path.parent for path in data.glob("*/queries.jsonl*"))
    )
    if not folders:
        raise BadInput(f"{data} has no queries.jsonl, nor has a folder in it; give a set, or a folder of sets")
    chosen = read_options(PoolOptions, data, options)
    return PoolBenchmark(name, [PoolTask(folder.resolve().name, folder, name, chosen) for folder in folders])
