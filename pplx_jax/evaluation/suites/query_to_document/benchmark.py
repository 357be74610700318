"""Query-to-document and query-to-query retrieval in pools of growing size (arXiv 2602.11151, internal benchmarks).

The paper's data is not public. This module runs its protocol on your data:

    DATA/ (one task) or DATA/SET/ (one task each)
        queries.jsonl   {"_id", "text"}
        corpus.jsonl    {"_id", "text", "title"?}; for query-to-query, the queries that may be found
        embeddings/     in place of corpus.jsonl: the output of `pplx-jax embed`, or a folder of several, for a corpus
                        larger than memory
        qrels.tsv       human labels, if any
        runs/*.trec     rankings of several systems, to fuse labels from, if any
    DATA/options.json   fields of `PoolOptions`, such as {"sizes": [100000, 1000000]}, if any

Every pool contains the relevant documents of all queries and a sample of the others, and is part of the next larger
pool. The corpus is read twice: first its ids and the relevant documents, then everything, which gives the ranks in all
pools. Fused labels favour systems similar to those in runs/, so keep the system under test out of runs/.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pplx_jax.core.errors import BadInput, require
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.beir import corpus_files, holds, set_folders
from pplx_jax.evaluation.core.benchmark import Part, mean_of_each
from pplx_jax.evaluation.core.data_options import read_options
from pplx_jax.evaluation.scoring.scorers import OwnDocument, queries_without_own_document
from pplx_jax.evaluation.scoring.system import System, pool, refuse_context
from pplx_jax.evaluation.suites.query_to_document.corpus_embeddings import (
    Block,
    EmbeddedCorpus,
    EncodedCorpus,
    joined,
    read_corpus,
)
from pplx_jax.evaluation.suites.query_to_document.labelled_queries import LabelledQueries, read_labelled_queries
from pplx_jax.evaluation.suites.query_to_document.nested_pools import NestedPools
from pplx_jax.evaluation.suites.query_to_document.pool_progress import PoolProgress
from pplx_jax.evaluation.suites.query_to_document.pool_ranks import PoolRanks
from pplx_jax.evaluation.suites.query_to_document.query_vectors import QueryVectors
from pplx_jax.evaluation.suites.query_to_document.shared_ranks import SharedRanks
from pplx_jax.inference.encoder import query_encoder
from pplx_jax.kernels.quantization import quantize, zero_rows
from pplx_jax.retrieval.bm25 import BM25

PAPER_SIZES = {"query-to-document": (7_500_000, 15_000_000, 30_000_000), "query-to-query": (2_400_000,)}
NAMES = tuple(PAPER_SIZES)
CUTOFFS = (10, 100, 1000)


@dataclasses.dataclass(frozen=True)
class PoolOptions:
    """Options, read from options.json in the data folder.

    Attributes:
        sizes: number of documents in each pool; None for the paper's sizes that are below the corpus, and the corpus.
        relevant: number of relevant documents per query in fused labels. The paper gives no number.
        seed: for sampling the pools.
    """

    sizes: tuple[int, ...] | None = None
    relevant: int = 50
    seed: int = 0

    def __post_init__(self):
        require(self.sizes is None or min(self.sizes, default=0) > 0, self, "sizes", "one or more positive numbers")
        require(self.relevant > 0, self, "relevant", "1 or more")
        require(0 <= self.seed < 1 << 64, self, "seed", "0 or more, below 2^64")


@dataclasses.dataclass(frozen=True)
class PoolTask:
    """One data set (`benchmark.Task`), with one part per kind of label and pool size.

    Attributes:
        name: of the set.
        folder: of the set, see the module.
        family: "query-to-document" or "query-to-query". In the latter a query is not a hit for itself.
        options: see `PoolOptions`.
        main_metric: of all parts.
        own_document: of query-to-document: whether the document with the id of a query is ranked for it; see
            `scorers.queries_without_own_document`.
        scratch: folder of the counts of an unfinished pass over embeddings/; None to keep none.
    """

    name: str
    folder: pathlib.Path
    family: str
    options: PoolOptions
    main_metric: str = f"recall@{CUTOFFS[-1]}"
    own_document: OwnDocument | None = None
    scratch: pathlib.Path | None = None

    def within(self, folder: pathlib.Path) -> Self:
        """Returns the task with the counts of an unfinished pass in FOLDER/scratch."""
        return dataclasses.replace(self, scratch=folder / "scratch")

    def with_own_document(self, own_document: OwnDocument) -> Self:
        """Returns the task with this choice for documents with the id of a query."""
        return dataclasses.replace(self, own_document=own_document)

    @property
    def revision(self) -> str:
        """16 hex digits of the options and all files; of embeddings/ only the manifest, which has the input's hash."""
        digest = hashlib.sha256(repr((self.family, self.options, self.own_document)).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder)
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            if name.parts[0] != "embeddings" or name.name == "manifest.json":
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def _never_own(self) -> bool:
        return self.family == "query-to-query" or self.own_document == "drop"

    def evaluate(self, system: System) -> Sequence[Part]:
        labelled = read_labelled_queries(self.folder, self.options.relevant, never_own=self._never_own)
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
        refuse_context(settings)
        pooled = pool(query_encoder(system.encoder), labelled.ids, labelled.texts, settings)
        packed = settings.quantization == "ubinary"
        queries = QueryVectors(quantize(pooled, settings.quantization), zero_rows(pooled), packed)
        corpus: EncodedCorpus | EmbeddedCorpus
        if embeddings.is_dir():
            corpus = EmbeddedCorpus(embeddings, system)
        else:
            corpus = EncodedCorpus(*read_corpus(corpus_files(self.folder)), system)
        pools, relevant, own = self._first_pass(corpus, labelled)
        dropped = self._dropped(labelled, corpus.texts(own) if own else {})
        own_scores = queries.scores_of_pairs(relevant, labelled.query, labelled.documents)
        counted = self._counted(labelled, own_scores, len(pools.sizes), dropped)
        facts = (self.name, self.revision, system.encoder.fingerprint, settings, pools.sizes, sorted(dropped))
        progress = PoolProgress(self.scratch if embeddings.is_dir() else None, facts)
        begun = progress.read(counted.ahead.shape)
        if begun is not None:
            counted.ahead = begun[1]
        done, finished = 0, 0 if begun is None else begun[0]
        shown = Progress(f"rank {self.name}", pools.documents, unit="document")
        with shown, SharedRanks(counted, queries) as shared:
            for number, block in enumerate(corpus.blocks(), start=1):
                done += len(block.ids)
                if number <= finished:
                    continue
                shared.add(block, pools.shells(block.ids))
                progress.note(number, shared.total)
                shown.update(done)
            shared.total()
        progress.remove()
        return pools.sizes, counted.ranks()

    def _first_pass(
        self, corpus: EncodedCorpus | EmbeddedCorpus, labelled: LabelledQueries
    ) -> tuple[NestedPools, Block, set[str]]:
        """Returns the pools, the relevant documents, and the ids that are those of queries too.

        A second pass counts. It needs the scores of the relevant documents, so they are found before.
        """
        queries, documents = frozenset(labelled.ids), frozenset(labelled.documents)
        relevant, own = list[Block](), set[str]()

        def ids() -> Iterator[str]:
            for block in corpus.blocks():
                relevant.append(block.taken([place for place, name in enumerate(block.ids) if name in documents]))
                own.update(queries.intersection(block.ids))
                yield from block.ids

        pools = self._pools(ids(), labelled)
        return pools, joined(relevant), own

    def _rank_by_bm25(self, labelled: LabelledQueries, system: System) -> tuple[Sequence[int], np.ndarray]:
        """Builds a BM25 index per pool, because document frequencies depend on the pool. All texts are in memory."""
        ids, texts = read_corpus(corpus_files(self.folder))
        pools = self._pools(ids, labelled)
        dropped = self._dropped(labelled, dict(zip(ids, texts, strict=True)))
        shells = pools.shells(ids)
        ranks = []
        for size in range(len(pools.sizes)):
            pool = np.flatnonzero(shells <= size)
            names, scores = [ids[i] for i in pool], BM25([texts[i] for i in pool]).scores(labelled.texts)
            column = {name: index for index, name in enumerate(names)}
            own = scores[labelled.query, [column[document] for document in labelled.documents]]
            counted = self._counted(labelled, own, 1, dropped)
            counted.add(names, scores, np.zeros(len(names), np.int64))
            ranks.append(counted.ranks()[0])
        return pools.sizes, np.stack(ranks)

    def _pools(self, ids: Iterable[str], labelled: LabelledQueries) -> NestedPools:
        relevant, options = frozenset(labelled.documents), self.options
        return NestedPools(ids, relevant, options.sizes, PAPER_SIZES[self.family], seed=options.seed)

    def _dropped(self, labelled: LabelledQueries, documents: Mapping[str, str]) -> frozenset[str]:
        """Returns the queries that do not find the document with their id."""
        qrels: dict[str, dict[str, int]] = {query: {} for query in labelled.ids}
        for row, document in zip(labelled.query, labelled.documents, strict=True):
            qrels[labelled.ids[row]][document] = 1
        queries = dict(zip(labelled.ids, labelled.texts, strict=True))
        own_document = "drop" if self._never_own else self.own_document
        return queries_without_own_document(queries, documents, qrels, own_document)

    def _counted(self, labelled: LabelledQueries, own: np.ndarray, pools: int, dropped: frozenset[str]) -> PoolRanks:
        """Returns the counter of the pairs, whose documents have the scores `own` [J]."""
        queries = [labelled.ids[row] for row in labelled.query]
        excluded = [query if query in dropped else "" for query in queries] if dropped else None
        return PoolRanks(labelled.query, labelled.documents, own, pools, excluded)


@dataclasses.dataclass(frozen=True)
class PoolBenchmark:
    """A `benchmark.Benchmark` of pool tasks."""

    name: str
    tasks: Sequence[PoolTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Returns the mean of each metric over tasks, by kind of label and pool size: "fused 30000000 recall@10"."""
        return mean_of_each(
            (f"{part.subset} {metric}", value)
            for of_task in parts.values()
            for part in of_task
            for metric, value in part.metrics.items()
        )


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
    """Opens the benchmark on a data folder. No set is read yet.

    Args:
        name: one of `NAMES`.
        data: the data folder, see the module.
        **options: fields of `PoolOptions`.

    Raises:
        BadInput: `data` is None or has no set, or an option is unknown.
    """
    if data is None:
        raise BadInput(f"the data of {name} is not public; give --data, a folder with your queries, corpus and labels")
    folders = [folder for folder in set_folders(data) if holds(folder, "queries")]
    if not folders:
        raise BadInput(f"neither {data} nor a folder in it has queries.jsonl; give a set, or a folder of sets")
    chosen = read_options(PoolOptions, data, options)
    return PoolBenchmark(name, [PoolTask(folder.resolve().name, folder, name, chosen) for folder in folders])
