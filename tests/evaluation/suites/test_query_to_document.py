"""Recall in nested pools: by hand, against ranking every pool anew, and what is refused."""

import dataclasses
import json
import re
import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.trec_eval import run_metrics
from helpers.word_encoder import WordEncoder

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.trec_run import read_run
from pplx_jax.evaluation.evaluate import evaluate_task
from pplx_jax.evaluation.scoring.system import Settings, System
from pplx_jax.evaluation.suites.query_to_document import open_benchmark, pool_progress, pool_ranks, shared_ranks
from pplx_jax.evaluation.suites.query_to_document.corpus_embeddings import EmbeddedCorpus, joined
from pplx_jax.evaluation.suites.query_to_document.fusion import fused_labels, reciprocal_rank_fusion
from pplx_jax.evaluation.suites.query_to_document.labelled_queries import read_labelled_queries
from pplx_jax.evaluation.suites.query_to_document.nested_pools import NestedPools
from pplx_jax.evaluation.suites.query_to_document.pool_ranks import PoolRanks
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder
from pplx_jax.retrieval.metrics import judge, relevant_ranks, tie_places

WORDS = [f"w{number}" for number in range(40)]


def write(folder, corpus, queries, qrels=(), runs=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = (json.dumps({"_id": identity, "text": text}) + "\n" for identity, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    if qrels:
        (folder / "qrels.tsv").write_text("".join(f"{q}\t{d}\t{g}\n" for q, d, g in qrels))
    for number, run in enumerate(runs):
        (folder / "runs").mkdir(exist_ok=True)
        (folder / "runs" / f"{number}.trec").write_text(
            "".join(
                f"{q} Q0 {d} {rank} {1 / rank} s{number}\n"
                for q, ranked in run.items()
                for rank, d in enumerate(ranked, start=1)
            )  # fmt: skip
        )
    return folder


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A corpus of 300 short texts, many of them alike, with labels by people and by two systems."""
    random = np.random.default_rng(0)
    corpus = {f"d{number:03d}": " ".join(random.choice(WORDS, 3)) for number in range(300)}
    queries = {f"q{number}": " ".join(random.choice(WORDS, 4)) for number in range(12)}
    ids = list(corpus)
    qrels = [(query, identity, 1 + (place == 0)) for query in list(queries)[:8]
             for place, identity in enumerate(random.choice(ids, 4, replace=False))]  # fmt: skip
    runs = [{query: random.choice(ids, 10, replace=False).tolist() for query in queries} for _ in range(2)]
    return write(tmp_path_factory.mktemp("pools") / "set", corpus, queries, [*qrels, ("q8", "d000", 0)], runs)


def evaluate(folder, system, name="query-to-document", **options):
    benchmark = open_benchmark(name, folder, **options)
    (task,) = benchmark.tasks
    parts = task.evaluate(system)
    return benchmark, {part.subset: part for part in parts}


def words(quantization="int8", encoder=None):
    return System("words", encoder or WordEncoder(64), Settings(quantization=quantization))


def test_reciprocal_rank_fusion_by_hand():
    first = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    second = {"q": {"c": 0.9, "a": 0.8}, "p": {"z": 1.0}}
    fused = reciprocal_rank_fusion([first, second])
    assert fused["q"] == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61})
    assert fused["p"] == pytest.approx({"z": 1 / 61})
    assert fused_labels([first, second], 2) == {"q": {"a": 1, "c": 1}, "p": {"z": 1}}
    equals = {"q": {"a": 1.0, "b": 1.0}}  # the greater id ranks first
    assert reciprocal_rank_fusion([equals])["q"] == {"b": 1 / 61, "a": 1 / 62}
    assert fused_labels([{"q": {"a": 1}}, {"q": {"b": 1}}], 1) == {"q": {"b": 1}}
    others = fused_labels([first, second], 2, counts=lambda query, document: document != "a")
    assert others == {"q": {"c": 1, "b": 1}, "p": {"z": 1}}
    with pytest.raises(BadInput, match="at least two"):
        fused_labels([first], 2)


def test_ranks_by_hand():
    """Relevant is m; a, z score as it does, h higher, l lower; z is only in the larger pool."""
    ranks = PoolRanks(np.array([0]), ["m"], np.array([0.5]), pools=2)
    ranks.add(["h", "a", "m"], np.array([[0.9, 0.5, 0.5 + 1e-7]], np.float32), np.array([0, 0, 0]))
    ranks.add(["z", "l", "x"], np.array([[0.5, 0.1, 0.9]], np.float32), np.array([1, 0, 2]))
    assert ranks.ranks().tolist() == [[2], [3]]
    without = PoolRanks(np.array([0]), ["m"], np.array([0.5]), pools=1, excluded=["h"])
    without.add(["h", "a", "m"], np.array([[0.9, 0.5, 0.5]], np.float32), np.array([0, 0, 0]))
    assert without.ranks().tolist() == [[1]]


def test_queries_are_scored_some_at_a_time(monkeypatch):
    """Rows that are read as they are needed count as a whole array does, also of queries without pairs."""
    random = np.random.default_rng(3)
    ids, shells = [f"d{number}" for number in range(50)], random.integers(0, 3, 50)
    scores = random.integers(-2, 3, (7, 50)).astype(np.float32)
    query = np.array([5, 0, 5, 2, 2, 0, 5])  # none of 1, 3, 4 and 6
    documents = [ids[place] for place in random.choice(50, 7, replace=False)]
    own = scores[query, [ids.index(document) for document in documents]]
    excluded = [f"d{number}" for number in query]
    whole = PoolRanks(query, documents, own, 2, excluded)
    whole.add(ids, scores, shells)
    read = []

    class Rows:
        def __getitem__(self, part):
            read.append(part)
            return scores[part]

    monkeypatch.setattr(pool_ranks, "_QUERIES_AT_ONCE", 2)
    in_parts = PoolRanks(query, documents, own, 2, excluded)
    in_parts.add(ids, Rows(), shells)
    np.testing.assert_array_equal(in_parts.ahead, whole.ahead)
    assert read == [slice(0, 2), slice(2, 4), slice(4, 6)]
    again = PoolRanks(**{**in_parts.arguments(), "pools": 2})
    again.add(ids, scores, shells)
    np.testing.assert_array_equal(again.ahead, whole.ahead)


@hypothesis.given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 4))
def test_ranks_are_those_of_ranking_each_pool(seed, blocks):
    """Few different scores, so nearly everything ties; the reference ranks a pool's columns alone."""
    random = np.random.default_rng(seed)
    ids = [f"d{number}" for number in random.permutation(40)]
    scores = random.integers(-2, 3, (3, 40)).astype(np.float32)
    shells = random.integers(0, 4, 40)  # 3: outside all pools
    qrels = {str(query): {ids[place]: 1 for place in random.choice(40, 5, replace=False)} for query in range(3)}
    for labels in qrels.values():
        for document in labels:
            shells[ids.index(document)] = 0
    query = np.repeat(np.arange(3), 5)
    documents = [document for labels in qrels.values() for document in labels]
    own = scores[query, [ids.index(document) for document in documents]]
    counted = PoolRanks(query, documents, own, pools=3)
    for part in np.array_split(np.arange(40), blocks):
        counted.add([ids[place] for place in part], scores[:, part], shells[part])
    for pool, ranks in enumerate(counted.ranks()):
        members = np.flatnonzero(shells <= pool)
        names = [ids[place] for place in members]
        judgements = judge(qrels, list(qrels), names)
        np.testing.assert_array_equal(ranks, relevant_ranks(scores[:, members], judgements, tie_places(names)))


def test_pools_are_nested_whatever_the_order():
    ids = [f"d{number}" for number in range(1000)]
    relevant = frozenset(["d1", "d500"])
    pools = NestedPools(ids, relevant, (700, 2, 100, 1000))
    assert pools.sizes == (2, 100, 700, 1000)
    shells = pools.shells(ids)
    assert [np.count_nonzero(shells <= place) for place in range(4)] == [2, 100, 700, 1000]
    assert {identity for identity, shell in zip(ids, shells, strict=True) if shell == 0} == relevant
    backwards = NestedPools(ids[::-1], relevant, (2, 100, 700, 1000))
    np.testing.assert_array_equal(backwards.shells(ids), shells)
    other = NestedPools(ids, relevant, (2, 100, 700, 1000), seed=1)
    assert (other.shells(ids) != shells).any()
    assert NestedPools(ids, relevant, None, (100, 10_000)).sizes == (100, 1000)
    for size in (1, 1001):
        with pytest.raises(BadInput, match=f"pool size {size}: the corpus has 1000 documents, 2 of them relevant"):
            NestedPools(ids, relevant, (size,))
    with pytest.raises(BadInput, match="1 relevant documents are not in the corpus, such as 'lost'"):
        NestedPools(ids, frozenset(["lost"]), (10,))


def test_recall_by_hand(tmp_path):
    corpus = {"cats": "cat", "both": "cat dog", "dogs": "dog", "far": "sun moon"}
    folder = write(
        tmp_path / "hand", corpus, {"q": "cat", "p": "sun"}, [("q", "both", 1), ("q", "far", 2), ("p", "dogs", 1)]
    )
    benchmark, parts = evaluate(folder, words("none"), sizes=(3, 4))
    assert list(parts) == ["human 3", "human 4"]  # all but "cats" are relevant
    ten = parts["human 4"]
    assert (ten.queries, ten.documents, ten.query_ids) == (2, 4, ["q", "p"])
    assert ten.metrics == {"recall@10": 1.0, "recall@100": 1.0, "recall@1000": 1.0}
    assert benchmark.averages({"hand": list(parts.values())})["human 3 recall@10"] == 1.0


def ranked_anew(folder, documents, system):
    """Recall of ranking the pool's documents alone, each query by itself."""
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    vectors = system.encoder.encode(list(documents.values()), quantization="int8").astype(float)
    run = {}
    for query in queries:
        vector = system.encoder.encode([query["text"]], quantization="int8")[0].astype(float)
        cosines = (vectors @ vector / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vector)).astype(np.float32)
        run[query["_id"]] = dict(zip(documents, map(float, cosines), strict=True))
    return run


def test_every_pool_is_as_if_ranked_alone(big):
    sizes = (150, 220, 300)
    _, parts = evaluate(big, words(), sizes=sizes, relevant=5)
    assert list(parts) == [f"{kind} {size}" for kind in ("human", "fused") for size in sizes]
    corpus = {row["_id"]: row["text"] for row in map(json.loads, (big / "corpus.jsonl").read_text().splitlines())}
    fused = fused_labels([read_run(path) for path in sorted((big / "runs").iterdir())], 5)
    human = {}
    for line in (big / "qrels.tsv").read_text().splitlines():
        query, document, grade = line.split("\t")
        human.setdefault(query, {})[document] = int(grade)
    relevant = frozenset(d for labels in (human, fused) for found in labels.values() for d, g in found.items() if g)
    shells = NestedPools(corpus, relevant, sizes).shells(list(corpus))
    for place, size in enumerate(sizes):
        pool = {name: text for (name, text), shell in zip(corpus.items(), shells, strict=True) if shell <= place}
        run = ranked_anew(big, pool, words())
        for kind, labels in (("human", human), ("fused", fused)):
            part = parts[f"{kind} {size}"]
            assert part.documents == len(pool) == size and part.queries == len(labels)
            expected = run_metrics(run, labels, ["recall@10", "recall@100", "recall@1000"])
            assert part.metrics == pytest.approx(expected)
            assert {k: float(np.mean(v)) for k, v in part.per_query.items()} == pytest.approx(part.metrics)
    assert parts["fused 150"].metrics["recall@10"] > parts["fused 300"].metrics["recall@10"]


@pytest.mark.parametrize(("quantization", "stored"), [("int8", "int8"), ("ubinary", "none"), ("tanh", "tanh")])
def test_shards_give_what_texts_give_and_are_read_twice(big, tmp_path, monkeypatch, quantization, stored):
    _, expected = evaluate(big, words(quantization), sizes=(200, 300))
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("queries.jsonl", "qrels.tsv", "runs"):
        (folder / name).symlink_to(big / name)
    lines = (big / "corpus.jsonl").read_text().splitlines(keepends=True)
    for name, part in {"0": lines[:1], "1": lines[1:2], "2": lines[2:]}.items():  # several folders are read as one
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
        embed_file(
            tmp_path / "model", tmp_path / f"{name}.jsonl", folder / "embeddings" / name,
            quantization=stored, shard_size=70, encoder=WordEncoder(64),
        )  # fmt: skip
    described_of, read = EmbeddingFolder.described_of, []

    def noted(folder, shard):
        read.append(shard)
        return described_of(folder, shard)

    monkeypatch.setattr(EmbeddingFolder, "described_of", noted)
    benchmark, parts = evaluate(folder, words(quantization), sizes=(200, 300))
    assert read == [*range(7)] * 2  # for the ids and the relevant documents, then for the ranks
    assert {name: part.metrics for name, part in parts.items()} == {
        name: part.metrics for name, part in expected.items()
    }
    other = dataclasses.replace(words(quantization), encoder=WordEncoder(64, fingerprint="other"))
    with pytest.raises(BadInput, match="embedded by model words, not by words"):
        benchmark.tasks[0].evaluate(other)
    if stored != "none":
        with pytest.raises(BadInput, match=f"holds {stored} vectors of 64.*binary of 64"):
            benchmark.tasks[0].evaluate(words("binary"))


def test_an_interrupted_pass_goes_on_after_its_shards(big, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("queries.jsonl", "qrels.tsv", "runs"):
        (folder / name).symlink_to(big / name)
    embed_file(tmp_path / "model", big / "corpus.jsonl", folder / "embeddings", shard_size=70, encoder=WordEncoder(64))
    (whole,) = open_benchmark("query-to-document", folder, sizes=(200, 300)).tasks
    expected = [part.metrics for part in whole.evaluate(words())]
    task = whole.within(tmp_path / "results")
    monkeypatch.setattr(pool_progress, "SAVE_SECONDS", 0.0)
    add, added = PoolRanks.add, []

    def count(ranks, ids, *others):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(list(ids))
        add(ranks, ids, *others)

    monkeypatch.setattr(PoolRanks, "add", count)
    with pytest.raises(KeyboardInterrupt):
        task.evaluate(words())
    assert len(list((tmp_path / "results" / "scratch").iterdir())) == 1
    first = added.copy()
    monkeypatch.setattr(
        PoolRanks, "add", lambda ranks, ids, *others: (added.append(list(ids)), add(ranks, ids, *others))
    )
    added.clear()
    (other,) = open_benchmark("query-to-document", folder, sizes=(250, 300)).tasks
    other.within(tmp_path / "results").evaluate(words())
    assert added[:2] == first  # another pass begins at the first shard
    added.clear()
    assert [part.metrics for part in task.evaluate(words())] == expected
    assert added and not [ids for ids in added if ids in first]
    assert not list((tmp_path / "results" / "scratch").iterdir())


class Threads:
    """Processes of a job as threads: what `shared_ranks` calls to exchange data, and which of them counted what."""

    def __init__(self, monkeypatch, processes):
        self._index, self._count = threading.local(), processes
        self._said, self._barrier = [None] * processes, threading.Barrier(processes, timeout=20)
        self.counted = [[] for _ in range(processes)]
        add = PoolRanks.add
        monkeypatch.setattr(shared_ranks, "called_by_others", self._begin)
        monkeypatch.setattr(shared_ranks, "own_share", lambda: (self._own(), processes))
        monkeypatch.setattr(shared_ranks, "broadcast_bytes", lambda data: self._exchanged(data)[0])
        monkeypatch.setattr(shared_ranks, "sum_counts", lambda own: sum(self._exchanged(own.copy())))

        def noted(ranks, ids, *others):
            self.counted[self._own()].append(list(ids))
            add(ranks, ids, *others)

        monkeypatch.setattr(PoolRanks, "add", noted)

    def _own(self):
        return getattr(self._index, "value", 0)

    def _begin(self, function):
        def follow(index):
            self._index.value = index
            function()

        self.others = [threading.Thread(target=follow, args=(index,)) for index in range(1, self._count)]
        for other in self.others:
            other.start()
        return True

    def _exchanged(self, own):
        self._said[self._own()] = own
        self._barrier.wait()
        found = list(self._said)
        self._barrier.wait()
        return found


@pytest.mark.parametrize("quantization", ["int8", "ubinary"])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_ranking(big, tmp_path, monkeypatch, quantization, processes):
    """Also one that goes on after the counts of a single process, and another after those of several."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("queries.jsonl", "qrels.tsv", "runs"):
        (folder / name).symlink_to(big / name)
    embed_file(
        tmp_path / "model", big / "corpus.jsonl", folder / "embeddings",
        quantization=quantization, shard_size=35, encoder=WordEncoder(64),
    )  # fmt: skip
    (task,) = open_benchmark("query-to-document", folder, sizes=(200, 300)).tasks
    task = task.within(tmp_path / "results")
    expected = [part.per_query for part in task.evaluate(words(quantization))]
    assert expected[0]["recall@10"].min() < expected[0]["recall@10"].max()

    def same(found):
        for part, of_one in zip(found, expected, strict=True):
            for name, values in of_one.items():
                np.testing.assert_array_equal(part.per_query[name], values)

    with monkeypatch.context() as patch:
        threads = Threads(patch, processes)
        same(task.evaluate(words(quantization)))
        assert not any(other.join(10) or other.is_alive() for other in threads.others)
        sizes = [sum(map(len, of_one)) for of_one in threads.counted]
        assert sum(sizes) == 300 and min(sizes) >= 35 and max(sizes) - min(sizes) <= 70
    for first, second in ((1, processes), (processes, 1), (processes, processes)):
        with monkeypatch.context() as patch:
            threads = Threads(patch, first) if first > 1 else None
            patch.setattr(pool_progress, "SAVE_SECONDS", 0.0)
            patch.setattr(NestedPools, "shells", interrupted_after(5, NestedPools.shells))
            with pytest.raises(BadInput, match="stopped"):
                task.evaluate(words(quantization))
            assert threads is None or not any(other.join(10) or other.is_alive() for other in threads.others)
        assert len(list((tmp_path / "results" / "scratch").iterdir())) == 1
        with monkeypatch.context() as patch:
            threads = Threads(patch, second)
            same(task.evaluate(words(quantization)))
            assert sum(sum(map(len, of_one)) for of_one in threads.counted) == 300 - 5 * 35


def interrupted_after(calls, function):
    """The function, which stops the work when it has been called so often."""
    left = iter(range(calls))

    def call(*arguments):
        if next(left, None) is None:
            raise BadInput("stopped")
        return function(*arguments)

    return call


def test_a_document_of_chunks_is_worth_its_best(tmp_path):
    rows = [
        {"id": "a", "chunks": ["sun", "cat dog"]},
        {"id": "b", "chunks": ["cat", "", "moon"]},
        {"id": "c", "text": "dog"},
        {"id": "d", "text": ""},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embed_file(tmp_path / "model", tmp_path / "in.jsonl", tmp_path / "out", shard_size=3, encoder=WordEncoder(64))
    corpus = EmbeddedCorpus(tmp_path / "out", words())
    first, second = corpus.blocks()
    assert (first.ids, second.ids) == (["a", "b", "c"], ["d"])
    scores = np.array([[0.1, 0.9, 0.8, 0.95, 0.7, 0.6]], np.float32)  # 0.95 is that of an empty text
    np.testing.assert_array_equal(first.document_scores(scores), np.float32([[0.9, 0.8, 0.6]]))
    assert second.document_scores(scores[:, :1]) == -np.inf
    both = joined([first.taken([1]), second.taken([]), first.taken([0, 2])])
    assert both.ids == ["b", "a", "c"] and both.starts.tolist() == [0, 3, 5]
    np.testing.assert_array_equal(both.vectors, first.vectors[[2, 3, 4, 0, 1, 5]])
    for size, parts in ((1, ["a", "b", "c"]), (4, ["a", "bc"]), (5, ["ab", "c"]), (6, ["abc"])):
        assert ["".join(first[part].ids) for part in first.cut(size)] == parts
        cut = joined([first[part] for part in first.cut(size)])
        assert cut.starts.tolist() == first.starts.tolist()
        np.testing.assert_array_equal(cut.vectors, first.vectors)


def test_queries_as_corpus_do_not_find_themselves(tmp_path):
    queries = {"1": "cat dog", "2": "cat dog bird", "3": "cat sun", "4": "moon"}
    folder = write(tmp_path / "set", queries, {"1": "cat dog"}, [("1", "2", 1), ("1", "1", 1)])
    crowd = {f"x{n}": "cat dog" for n in range(9)}
    write(folder, {**queries, **crowd}, {"1": "cat dog"})
    _, parts = evaluate(folder, words(), "query-to-query")
    assert parts["human 13"].metrics["recall@10"] == 1.0  # nine copies before it; the query itself would be the tenth
    _, parts = evaluate(folder, words(), "query-to-document")
    assert parts["human 13"].metrics["recall@10"] == 0.5


@pytest.mark.parametrize("name", ["bm25", "int8"])
def test_the_document_of_a_query_itself_is_dropped_as_in_a_folder(tmp_path, name):
    """Ten copies come before the relevant document, one of them with the id of the query."""
    corpus = {"q": "ant bee", "a": "ant dog", **{f"x{number}": "ant bee" for number in range(9)}}
    folder = write(tmp_path / "set", corpus, {"q": "ant bee"}, [("q", "a", 1)])
    system = System("bm25", None) if name == "bm25" else words()
    for choice, expected in ((None, 1), ("drop", 1), ("keep", 0)):
        task = open_benchmark("query-to-document", folder).tasks[0]
        (part,) = (task.with_own_document(choice) if choice else task).evaluate(system)
        assert part.metrics["recall@10"] == expected
    write(folder, corpus, {"q": "ant bee"}, [("q", "a", 1), ("q", "q", 1)])
    for choice, expected in ((None, 0.5), ("drop", 1), ("keep", 0.5)):
        task = open_benchmark("query-to-document", folder).tasks[0]
        (part,) = (task.with_own_document(choice) if choice else task).evaluate(system)
        assert part.metrics["recall@10"] == expected


def test_a_query_takes_no_place_among_its_own_fused_labels(tmp_path):
    queries = {"1": "cat dog", "2": "cat", "3": "dog", "4": "moon"}
    folder = write(tmp_path / "set", queries, {"1": "cat dog"}, runs=[{"1": ["1", "2", "3", "4"]}] * 2)
    for never_own, expected in ((True, ["2", "3"]), (False, ["1", "2"])):
        assert read_labelled_queries(folder, 2, never_own=never_own).documents == expected


def test_queries_of_several_pools_and_labels_count_once(big, tmp_path):
    found = evaluate_task("bm25", "query-to-document", data=big, output=tmp_path / "results")
    (kept,) = json.loads((tmp_path / "results" / "results.json").read_text())["settings"][0]["tasks"]
    assert found["queries"] == kept["queries"] == 12
    assert [part["queries"] for part in kept["parts"]] == [9, 12]


@pytest.mark.parametrize("name", ["bm25", "int8", "ubinary"])
def test_what_shares_nothing_with_a_query_is_not_retrieved(tmp_path, name):
    corpus = {"a": "ant", "b": "bee", "empty": "", "z": "dog"}
    queries = {"found": "bee", "none": "qqqq" if name == "bm25" else "", "of empty": "ant"}
    folder = write(tmp_path / "set", corpus, queries, [("found", "b", 1), ("none", "z", 1), ("of empty", "empty", 1)])
    _, parts = evaluate(folder, System("bm25", None) if name == "bm25" else words(name))
    (part,) = parts.values()
    recall = dict(zip(part.query_ids, part.per_query["recall@1000"], strict=True))
    assert recall == {"found": 1, "none": 0, "of empty": 0}


def test_bm25_indexes_each_pool(big):
    _, parts = evaluate(big, System("bm25", None), sizes=(200, 300))
    metrics = [parts[f"fused {size}"].metrics["recall@10"] for size in (200, 300)]
    assert 0 < metrics[1] < metrics[0] <= 1
    assert parts["fused 300"].metrics["recall@1000"] == pytest.approx(np.mean(list(share_of_words(big).values())))


def share_of_words(folder):
    """Query -> the share of its fused labels that have one of its words."""
    corpus, queries = (
        {row["_id"]: set(row["text"].split()) for row in map(json.loads, (folder / name).read_text().splitlines())}
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    fused = fused_labels([read_run(path) for path in sorted((folder / "runs").iterdir())], 50)
    return {q: np.mean([bool(corpus[d] & queries[q]) for d in relevant]) for q, relevant in fused.items()}


def test_several_sets_are_tasks_of_their_own(big, tmp_path):
    for name in ("english", "multilingual"):
        (tmp_path / name).symlink_to(big)
    benchmark = open_benchmark("query-to-document", tmp_path)
    assert [task.folder.name for task in benchmark.tasks] == ["english", "multilingual"]
    (tmp_path / "options.json").write_text('{"sizes": [200, 300], "relevant": 4}')
    chosen = open_benchmark("query-to-document", tmp_path, relevant=5).tasks[0].options
    assert (chosen.sizes, chosen.relevant, chosen.seed) == ((200, 300), 5, 0)
    revision = benchmark.tasks[0].revision
    assert revision == benchmark.tasks[0].revision
    assert revision != open_benchmark("query-to-document", tmp_path, relevant=3).tasks[0].revision


def test_changed_data_is_another_revision(tmp_path):
    """Also where it is of as many bytes as before."""
    folder = write(tmp_path / "set", {"d": "ant"}, {"q": "ant"}, [("q", "d", 1)])
    (task,) = open_benchmark("query-to-document", folder).tasks
    manifest = folder / "embeddings" / "manifest.json"
    manifest.parent.mkdir()
    revisions = set()
    for text in ("bee", "cat"):
        for sha256 in ("1" * 64, "2" * 64):
            write(folder, {"d": text}, {"q": "ant"})
            manifest.write_text(json.dumps({"settings": {"input_sha256": sha256}}))
            revisions.add(task.revision)
    assert len(revisions) == 4 and task.revision in revisions


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sizes": 5}, "options.json: sizes=5; set it to a list of integers or null"),
        ({"sizes": ["a"]}, "options.json: sizes=['a']; set it to a list"),
        ({"sizes": []}, "PoolOptions.sizes=(); set it to one or more"),
        ({"sizes": [0]}, "PoolOptions.sizes=(0,); set it to one or more"),
        ({"relevant": "x"}, "options.json: relevant='x'; set it to an integer"),
        ({"relevant": True}, "options.json: relevant=True; set it to an integer"),
        ({"relevant": 0}, "PoolOptions.relevant=0; set it to 1 or more"),
        ({"seed": -1}, "PoolOptions.seed=-1; set it to 0 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(big, tmp_path, options, message):
    (tmp_path / "set").symlink_to(big)
    (tmp_path / "options.json").write_text(json.dumps(options))
    with pytest.raises(BadInput, match=re.escape(message)):
        open_benchmark("query-to-document", tmp_path)


def test_what_is_refused(big, tmp_path):
    with pytest.raises(BadInput, match="not public; give --data"):
        open_benchmark("query-to-document", None)
    with pytest.raises(BadInput, match="arguments: no option 'size'; the options are sizes, relevant, seed"):
        open_benchmark("query-to-document", big, size=3)
    with pytest.raises(BadInput, match="nor a folder in it has queries.jsonl"):
        open_benchmark("query-to-document", tmp_path)
    bare = write(tmp_path / "bare", {"d": "x"}, {"q": "x"})
    with pytest.raises(BadInput, match="has no labels"):
        evaluate(bare, words())
    write(bare, {"d": "x"}, {"q": "x"}, runs=[{"q": ["d"]}, {"p": ["d"]}])
    with pytest.raises(BadInput, match="has a ranking for 'p', which is not in queries.jsonl"):
        evaluate(bare, words())
    (bare / "runs" / "0.trec").write_text("q Q0 d 1 0.5 tag\nq Q0 d\n")
    with pytest.raises(BadInput, match="0.trec, line 2: not"):
        evaluate(bare, words())
    (bare / "runs" / "0.trec").write_text("q Q0 d 1 0.5 tag\nq Q0 d 2 0.4 tag\n")
    with pytest.raises(BadInput, match="line 2: 'd' occurs twice"):
        evaluate(bare, words())
    with pytest.raises(BadInput, match="leave --context out"):
        evaluate(big, System("words", WordEncoder(64), Settings(context=True)))
    for relevant in (frozenset(), frozenset("b")):
        with pytest.raises(BadInput, match="an id occurs twice"):
            NestedPools("abcb", relevant, None)
    empty = write(tmp_path / "empty", {}, {"q": "x"}, [("q", "gone", 1)])
    for system in (words(), System("bm25", None)):
        with pytest.raises(BadInput, match="corpus.jsonl has no documents"):
            evaluate(empty, system)
    lost = write(tmp_path / "lost", {"d": "x"}, {"q": "x"}, [("q", "gone", 1)])
    with pytest.raises(BadInput, match="not in the corpus, such as 'gone'"):
        evaluate(lost, words())
