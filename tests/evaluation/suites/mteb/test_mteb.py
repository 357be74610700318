"""mteb's tasks on files of our own: scores against our folder evaluation, mteb's own search and trec_eval."""

import dataclasses
import json
import shutil

import datasets
import mteb
import numpy as np
import pytest
import threadpoolctl
import torch
from helpers.trec_eval import run_metrics
from helpers.word_encoder import WordEncoder
from mteb.abstasks import AbsTaskRetrieval
from mteb.mocks import MOCK_TASK_TEST_GRID
from mteb.models import SearchEncoderWrapper

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet, read_beir
from pplx_jax.data.sources.corpus_writer import write_beir, write_rows
from pplx_jax.evaluation import evaluate as verb
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.core.results import Results, Subject
from pplx_jax.evaluation.core.retrieval_task import RetrievalTask
from pplx_jax.evaluation.core.runner import run_tasks
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.evaluation.scoring.system import Settings, System, pool
from pplx_jax.evaluation.suites.mteb import embedding_store
from pplx_jax.evaluation.suites.mteb import search as mteb_search
from pplx_jax.evaluation.suites.mteb.benchmark import MtebBenchmark, open_benchmark
from pplx_jax.evaluation.suites.mteb.results import model_meta
from pplx_jax.evaluation.suites.mteb.search import Search
from pplx_jax.evaluation.suites.mteb.task import MtebTask
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts

REPOSITORY, NAME = "ours/words", "words"
SUBSETS = {"english": ["eng-Latn"], "french": ["fra-Latn"]}
SPLITS = ["dev", "test"]
PAIRS = [(split, subset) for split in SPLITS for subset in SUBSETS]
METRICS = ("recall@10", "ndcg@10", "recall@100")
WORDS = "ant bee cat dog eel fox gnu hen".split()


class WordsRetrieval(AbsTaskRetrieval):
    """Short passages of few words, so that many score the same."""

    metadata = mteb.TaskMetadata(
        name="WordsRetrieval",
        dataset={"path": REPOSITORY, "revision": "1"},
        description="",
        type="Retrieval",
        category="t2t",
        modalities=["text"],
        eval_splits=SPLITS,
        eval_langs=SUBSETS,
        main_score="recall_at_10",
        prompt={"query": "Find the animals"},
    )


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory):
    """Nothing is fetched, and what `datasets` prepares does not stay."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    with threadpoolctl.threadpool_limits(1):
        yield
    patch.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DATA/words: a BEIR folder a subset and split, and the card that tells `datasets` which file is what."""
    folder = tmp_path_factory.mktemp("data")
    repository = folder / NAME
    repository.mkdir(parents=True)
    for seed, (split, subset) in enumerate(PAIRS):
        one = random_set(np.random.default_rng(seed))
        write_beir(repository / f"{subset}-{split}", one)
        columns = ("query-id", "corpus-id", "score")
        pairs = ((query, document, grade) for query, grades in one.qrels.items() for document, grade in grades.items())
        rows = (dict(zip(columns, pair, strict=True)) for pair in pairs)
        write_rows(repository / f"{subset}-{split}" / "qrels.jsonl", rows)
    card = ["---", "configs:"]
    for subset in SUBSETS:
        for config, file in (("corpus", "corpus.jsonl"), ("queries", "queries.jsonl"), ("qrels", "qrels.jsonl")):
            card += [f"- config_name: {subset}-{config}", "  data_files:"]
            card += [f"  - {{split: {split}, path: {subset}-{split}/{file}}}" for split in SPLITS]
    (repository / "README.md").write_text("\n".join([*card, "---", ""]))
    return folder


def random_set(random, parents=12, queries=10):
    ids = [f"d{number}" for number in random.permutation(100)[: 3 * parents]]
    texts = [" ".join(random.choice(WORDS, 2)) for _ in ids]
    names = [f"q{number}" for number in range(queries)]
    graded = [random.choice(len(ids), 4, replace=False) for _ in names]
    return RetrievalSet(
        document_ids=ids,
        documents=texts,
        parents=[f"p{place // 3}" for place in range(len(ids))],
        chunks=[2 - place % 3 for place in range(len(ids))],  # rows stand backwards
        query_ids=names,
        queries=[texts[rows[0]] for rows in graded],
        qrels={
            name: {ids[row]: grade for grade, row in enumerate(rows)} for name, rows in zip(names, graded, strict=True)
        },
    )


def words_task(data, **fields):
    return MtebTask("words", WordsRetrieval(), data, **fields)


def system(quantization="int8", **settings):
    return System("words", WordEncoder(dims=16), Settings(quantization, **settings))


def search_of(one, prompts=NO_PROMPTS):
    return Search(one, prompts, model_meta(one, prompts))


def ours(data, one, subset, split):
    """The same part by the evaluation of BEIR folders."""
    (part,) = RetrievalTask("ours", lambda: read_beir(data / NAME / f"{subset}-{split}")).evaluate(one)
    return part


BM25 = System("bm25", None)
SYSTEMS = {
    "int8": system(),
    "binary": system("binary"),
    "ubinary": system("ubinary"),
    "float": system("none"),
    "prefix": system(dims=8),
    "in context": system("int8", context=True),
    "packed in context": system("ubinary", context=True),
    "bm25": BM25,
}


@pytest.fixture(scope="module")
def parts(data):
    """Every system's parts."""
    return {name: words_task(data).evaluate(one) for name, one in SYSTEMS.items()}


@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_agree_with_the_evaluation_of_folders(data, parts, name):
    assert [(part.split, part.subset) for part in parts[name]] == PAIRS
    for part in parts[name]:
        expected = ours(data, SYSTEMS[name], part.subset, part.split)
        assert tuple(part.metrics) == METRICS
        assert (part.queries, part.documents) == (expected.queries, expected.documents) == (10, 36)
        order = [part.query_ids.index(query) for query in expected.query_ids]
        for metric in METRICS:
            assert part.metrics[metric] == pytest.approx(expected.metrics[metric], abs=1e-6)
            np.testing.assert_allclose(part.per_query[metric][order], expected.per_query[metric], atol=1e-6)
        np.testing.assert_array_equal(part.lengths[order], expected.lengths)


def test_systems_differ_where_they_should(parts):
    def figures(name):
        return [dict(part.metrics) for part in parts[name]]

    assert figures("binary") == figures("ubinary")
    assert (
        len({str(figures(name)) for name in ("int8", "binary", "prefix", "in context", "packed in context", "bm25")})
        == 6
    )


def loaded_split(data):
    """mteb's rows of one part, and what our metrics need to judge them."""
    folder = data / NAME / "english-test"
    corpus = datasets.load_dataset("json", data_files=str(folder / "corpus.jsonl"), split="train")
    queries = datasets.load_dataset("json", data_files=str(folder / "queries.jsonl"), split="train")
    return corpus.rename_column("_id", "id"), queries.rename_column("_id", "id"), read_beir(folder).qrels


def run_of(search, corpus, queries, top_k=1000, **more):
    where = {"task_metadata": WordsRetrieval.metadata, "hf_split": "test", "hf_subset": "english"}
    search.index(corpus, **where, encode_kwargs={}, num_proc=None)
    return search.search(queries, **where, top_k=top_k, encode_kwargs={}, num_proc=None, **more)


class OwnEncoder(Search):
    """The same model as an encoder, for mteb's own search."""

    def encode(self, inputs, *, task_metadata, prompt_type=None, **_):
        texts = [text for batch in inputs for text in batch["text"]]
        ids = [str(place) for place in range(len(texts))]
        return pool(self.system.encoder.encode, ids, texts, self.system.settings)

    def similarity(self, one, other):
        return torch.from_numpy(mteb_search.similarity(*(np.atleast_2d(np.asarray(each)) for each in (one, other))))


def test_float_vectors_score_as_in_mtebs_own_search(data):
    one = OwnEncoder(SYSTEMS["float"], NO_PROMPTS, model_meta(SYSTEMS["float"], NO_PROMPTS))
    corpus, queries, _ = loaded_split(data)
    found, theirs = (run_of(each, corpus, queries, 100) for each in (one, SearchEncoderWrapper(one)))
    assert found.keys() == theirs.keys()
    for query in found:
        assert found[query] == pytest.approx(theirs[query], abs=1e-6)


def test_ties_at_the_last_rank_go_to_the_greater_id(data):
    corpus, queries, _ = loaded_split(data)
    for name in ("binary", "ubinary", "int8", "bm25"):
        search = search_of(SYSTEMS[name])
        whole, cut = (run_of(search, corpus, queries, k) for k in (36, 7))
        for query, scores in whole.items():
            expected = sorted(scores, key=lambda document: (scores[document], document), reverse=True)[:7]  # noqa: B023
            assert sorted(cut[query]) == sorted(expected)
            assert all(cut[query][document] == scores[document] for document in expected)


@pytest.mark.parametrize("name", ["bm25", "int8", "ubinary"])
def test_what_shares_nothing_with_a_query_is_not_retrieved(name, monkeypatch):
    monkeypatch.setattr(mteb_search, "DOCUMENTS_PER_BLOCK", 2)
    texts = {"a": "ant bee", "b": "bee cat", "empty": "", "z": "dog"}
    corpus = datasets.Dataset.from_dict({"id": list(texts), "text": list(texts.values())})
    queries = datasets.Dataset.from_dict({"id": ["found", "none"], "text": ["bee", "qqqq" if name == "bm25" else ""]})
    others = {"a", "b"} if name == "bm25" else {"a", "b", "z"}
    for more in ({}, {"top_ranked": {"found": list(texts), "none": list(texts)}}):
        found = run_of(search_of(SYSTEMS[name]), corpus, queries, **more)
        assert {query: set(hits) for query, hits in found.items()} == {"found": others, "none": set()}


@pytest.mark.parametrize("name", ["bm25", "int8"])
@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_own_documents_count_as_in_the_evaluation_of_folders(tmp_path, name, choice):
    """Queries are documents of the set, as in ArguAna. One relevant document is at rank 1,001 with the own one."""
    texts = {f"d{number:04d}": "ant" for number in range(1010)} | {"z": "ant bee", "y": "ant bee ant bee ant bee dog"}
    one = RetrievalSet(
        document_ids=list(texts),
        documents=list(texts.values()),
        parents=list(texts),
        chunks=[0] * len(texts),
        query_ids=["z", "y"],
        queries=[texts["z"], texts["y"]],
        qrels={"z": {"d0011": 1}, "y": {"z": 1}},
    )
    repository = tmp_path / NAME
    repository.mkdir()
    card = ["---", "configs:"]
    write_beir(repository / "all", one)
    rows = [{"query-id": q, "corpus-id": d, "score": s} for q, grades in one.qrels.items() for d, s in grades.items()]
    write_rows(repository / "all" / "qrels.jsonl", rows)
    for subset in SUBSETS:
        for config, file in (("corpus", "corpus.jsonl"), ("queries", "queries.jsonl"), ("qrels", "qrels.jsonl")):
            card += [f"- config_name: {subset}-{config}", "  data_files:"]
            card += [f"  - {{split: {split}, path: all/{file}}}" for split in SPLITS]
    (repository / "README.md").write_text("\n".join([*card, "---", ""]))
    task = words_task(tmp_path)
    part, *_ = task.with_own_document(choice).evaluate(SYSTEMS[name])
    assert task.task.ignore_identical_ids is False
    folder = RetrievalTask("ours", lambda: read_beir(repository / "all"), metrics=METRICS, own_document=choice)
    (expected,) = folder.evaluate(SYSTEMS[name])
    assert part.metrics == pytest.approx(expected.metrics)
    assert part.metrics["ndcg@10"] == pytest.approx(0.5 if choice == "drop" else 0.5 / np.log2(3))
    kept = run_of(
        Search(SYSTEMS[name], NO_PROMPTS, None, drops_own=choice == "drop"),
        *(
            datasets.Dataset.from_dict(rows)
            for rows in ({"id": list(texts), "text": list(texts.values())}, {"id": ["z"], "text": ["ant bee"]})
        ),
        top_k=1000,
    )
    assert (len(kept["z"]), "z" in kept["z"], "d0011" in kept["z"]) == (1000, choice == "keep", choice == "drop")


def test_changed_files_and_another_folder_are_read_again(data, tmp_path):
    """The cache of `datasets` knows a folder by its name, and not what is in it."""
    first = words_task(data)
    before = first.evaluate(BM25)
    shutil.copytree(data / NAME, tmp_path / NAME)
    second, where = words_task(tmp_path), tmp_path / NAME / "english-test" / "queries.jsonl"
    assert second.revision == first.revision
    rows = [json.loads(line) for line in where.read_text().splitlines()]
    where.write_text("".join(json.dumps({**row, "text": "qqqq"}) + "\n" for row in rows))
    assert second.revision != first.revision
    after = second.evaluate(BM25)
    changed = PAIRS.index(("test", "english"))
    assert after[changed].metrics["ndcg@10"] == 0 < before[changed].metrics["ndcg@10"]
    assert [part.metrics for part in first.evaluate(BM25)] == [part.metrics for part in before]
    results = tmp_path / "results"
    subject = Subject("words", "bm25", "bm25")
    for task in (first, second):
        run_tasks([task], [BM25], Results(subject, results))
    (outcome,) = Results(subject, results).outcomes
    assert outcome.parts[changed].metrics["ndcg@10"] == 0


def test_vectors_of_other_files_do_not_go_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(mteb_search, "DOCUMENTS_PER_BLOCK", 5)
    shutil.copytree(data / NAME, tmp_path / NAME)
    with open(tmp_path / NAME / "french-dev" / "corpus.jsonl", "a") as file:
        file.write("\n")
    one, other = (
        words_task(folder, scratch=tmp_path / "scratch")._search(SYSTEMS["int8"]) for folder in (data, tmp_path)
    )
    assert one._folder("", "", 1) != other._folder("", "", 1)


def test_a_wrong_order_of_ties_or_a_cosine_of_packed_bits_would_show(data, parts, monkeypatch):
    corpus, queries, qrels = loaded_split(data)
    search = search_of(SYSTEMS["binary"])

    def figures():
        cuts = (3, 5, 10, 15)
        return [run_metrics(run_of(search, corpus, queries, k), qrels, ("recall",))["recall"] for k in cuts]

    right = figures()
    with monkeypatch.context() as patch:
        patch.setattr(mteb_search, "tie_places", lambda ids: np.argsort(np.argsort(ids)))
        assert max(abs(a - b) for a, b in zip(figures(), right, strict=True)) > 1e-3
    assert figures() == right

    class Bytes(WordEncoder):
        def encode(self, texts, *, quantization="int8", **options):
            packed = super().encode(texts, quantization="ubinary", **options)
            return packed.astype(np.float32)

    of_bytes = words_task(data).evaluate(System("bytes", Bytes(dims=16)))
    gaps = [
        abs(wrong.metrics["ndcg@10"] - good.metrics["ndcg@10"])
        for wrong, good in zip(of_bytes, parts["ubinary"], strict=True)
    ]
    assert min(gaps) > 1e-4


def test_blocks_of_documents_and_vectors_on_disk_change_nothing(data, parts, monkeypatch):
    monkeypatch.setattr(mteb_search, "DOCUMENTS_PER_BLOCK", 5)
    monkeypatch.setattr(mteb_search, "_QUERIES_PER_BLOCK", 3)
    monkeypatch.setattr(embedding_store, "_BYTES_IN_MEMORY", 0)
    for name in ("int8", "ubinary", "bm25"):
        found = words_task(data).evaluate(SYSTEMS[name])
        assert [part.metrics for part in found] == [part.metrics for part in parts[name]]


def test_an_interrupted_corpus_goes_on_where_it_was(data, tmp_path, parts, monkeypatch):
    monkeypatch.setattr(mteb_search, "DOCUMENTS_PER_BLOCK", 5)
    task = words_task(data, scratch=tmp_path)

    class Killed(WordEncoder):
        def encode(self, texts, **options):
            if self.encoded >= 20:
                raise KeyboardInterrupt
            return super().encode(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        task.evaluate(System("words", Killed(dims=16)))
    (folder,) = tmp_path.iterdir()
    done = json.loads((folder / "progress.json").read_text())["done"]
    assert 0 < done < 36
    other = System("words", WordEncoder(dims=16), Settings("binary"))
    assert [part.metrics for part in task.evaluate(other)] == [part.metrics for part in parts["binary"]]
    again, whole = WordEncoder(dims=16), WordEncoder(dims=16)
    found = task.evaluate(System("words", again))
    words_task(data).evaluate(System("words", whole))
    assert [part.metrics for part in found] == [part.metrics for part in parts["int8"]]
    assert again.encoded < whole.encoded
    assert not list(tmp_path.iterdir())


def test_the_runner_encodes_a_text_once_and_a_finished_task_never_again(data, tmp_path, parts):
    encoder = WordEncoder(dims=16)
    systems = [System("words", encoder, Settings(quantization)) for quantization in ("int8", "ubinary")]
    subject = Subject("words", "words", "words")
    run_tasks([words_task(data)], systems, Results(subject, tmp_path / "results"))
    folders = [read_beir(data / NAME / f"{subset}-{split}") for split, subset in PAIRS]
    texts = {text for one in folders for text in one.documents}
    assert encoder.encoded == len(texts) + len({text for one in folders for text in one.queries})
    results = Results(subject, tmp_path / "results")
    run_tasks([words_task(data)], systems, results)
    assert encoder.encoded == len(texts) + len({text for one in folders for text in one.queries})
    for outcome, name in zip(sorted(results.outcomes, key=lambda one: one.setting), ("int8", "ubinary"), strict=True):
        assert [part.metrics for part in outcome.parts] == [part.metrics for part in parts[name]]
    run_tasks([words_task(data, prompts=Prompts("query: {text}"))], systems, results)
    assert encoder.encoded > len(texts) + len({text for one in folders for text in one.queries})


def test_a_text_past_the_limit_is_named_unless_cut(data):
    short = System("words", WordEncoder(dims=16, max_length=1))
    with pytest.raises(BadInput, match=r"WordsRetrieval, english, dev: 'q0' has 2 tokens, the model takes 1"):
        words_task(data).evaluate(short)
    cut = dataclasses.replace(short, settings=Settings(truncate=True))
    assert len(words_task(data).evaluate(cut)) == len(PAIRS)
    in_context = dataclasses.replace(short, settings=Settings(context=True))
    with pytest.raises(BadInput, match=r"WordsRetrieval, english, dev: 'q0' has 2 tokens.* give --truncate"):
        words_task(data).evaluate(in_context)


class Listening(WordEncoder):
    """Keeps what it was asked to encode."""

    def __init__(self):
        super().__init__(max_length=100)
        self.heard = []

    def encode(self, texts, **options):
        self.heard += texts
        return super().encode(texts, **options)


def test_prompts_stand_around_queries_and_documents(data):
    plain, prompted = Listening(), Listening()
    words_task(data).evaluate(System("words", plain))
    prompts = Prompts("Instruct: {instruction}\nQuery:{text}", "passage: {text}")
    words_task(data, prompts=prompts).evaluate(System("words", prompted))
    assert not any("Instruct" in text or "passage" in text for text in plain.heard)
    assert {text.split("\nQuery:")[0] for text in prompted.heard} >= {"Instruct: Find the animals"}
    assert all(text.startswith(("Instruct: Find the animals\nQuery:", "passage: ")) for text in prompted.heard)


def test_a_models_own_prompt_of_queries_counts_unless_there_is_a_template(data):
    class WithPrompt(Listening):
        def encode_queries(self, texts, **options):
            return self.encode([f"own: {text}" for text in texts], **options)

    for template, expected in (("{text}", "own: "), ("find {text}", "find ")):
        encoder = WithPrompt()
        words_task(data, prompts=Prompts(template)).evaluate(System("words", encoder))
        prompted = [text for text in encoder.heard if len(text.split()) > 2]
        assert len(prompted) == 10 * len(PAIRS) and all(text.startswith(expected) for text in prompted)


def test_missing_data_is_told_and_can_be_given_later(data, tmp_path):
    task = words_task(tmp_path)
    page = r"https://huggingface.co/datasets/ours/words \(revision 1\)"
    with pytest.raises(BadInput, match=rf"words: no folder {tmp_path}/words; download the files of {page}"):
        task.evaluate(BM25)
    (tmp_path / NAME).mkdir()
    for broken in (task, dataclasses.replace(task, data=None)):
        with pytest.raises(
            BadInput, match=rf"its data cannot be loaded \(.*download the files of {page} into FOLDER/words"
        ):
            broken.evaluate(BM25)
    assert len(dataclasses.replace(task, data=data).evaluate(BM25)) == len(PAIRS)
    with pytest.raises(BadInput, match=r"ar: no folder .*MIRACLRetrievalHardNegatives; download the files of https"):
        verb.evaluate_task("bm25", "miracl", tasks=["ar"], data=tmp_path)


def test_result_files_are_mtebs_and_no_settings_share_one(data, tmp_path, parts):
    kept = words_task(data, results=tmp_path, model_name="ours/words")
    for name in ("int8", "binary", "bm25"):
        kept.evaluate(SYSTEMS[name])
    folder = tmp_path / "results" / "ours__words" / "words"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("WordsRetrieval.json"))
    assert files == ["WordsRetrieval.json", "experiments/quantization_binary/WordsRetrieval.json"]
    for file, name in zip(files, ("int8", "binary"), strict=True):
        result = mteb.TaskResult.from_disk(folder / file)
        for part in parts[name]:
            (found,) = [each for each in result.scores[part.split] if each["hf_subset"] == part.subset]
            # mteb rounds to five digits.
            assert found["main_score"] == pytest.approx(part.metrics["recall@10"], abs=6e-6)
        benchmark = MtebBenchmark("words", [kept])
        assert benchmark.averages({"words": parts[name]})["mean"] == pytest.approx(result.get_score(), abs=6e-6)
    meta = json.loads((folder / "model_meta.json").read_text())
    assert (meta["name"], meta["revision"], meta["embed_dim"], meta["max_tokens"]) == ("ours/words", "words", 16, 20)
    assert meta["training_datasets"] is None and meta["framework"] == ["JAX"]
    assert (tmp_path / "results" / "ours__words" / "lucene" / "WordsRetrieval.json").exists()


def test_a_results_folder_holds_the_leaderboards_files(data, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "open_benchmark", lambda *_: MtebBenchmark("words", [words_task(data)]))
    found = verb.evaluate_task(WordEncoder(dims=16), "words", quantization=["binary", "int8"], output=tmp_path / "out")
    assert [one["averages"].keys() for one in found["settings"]] == [{"mean", "mean_test_splits"}] * 2
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("WordsRetrieval.json")]
    model = "out/leaderboard/results/local__WordEncoder/words"
    experiment = "experiments/quantization_binary"
    assert sorted(files) == [f"{model}/WordsRetrieval.json", f"{model}/{experiment}/WordsRetrieval.json"]
    assert not list((tmp_path / "out" / "scratch").iterdir())


def test_a_model_of_others_is_described_as_what_it_is():
    class Foreign(WordEncoder):
        quantizations = ("none", "binary")

    for encoder in (Foreign(), CachingEncoder(Foreign())):
        meta = model_meta(System("org/model", encoder, Settings("none", truncate=True)), NO_PROMPTS)
        assert (meta.name, meta.experiment_kwargs, meta.use_instructions) == ("org/model", None, None)
        assert meta.framework == ["Sentence Transformers", "PyTorch"]
    prompted = model_meta(System("words", WordEncoder(), Settings("int8", 8)), Prompts("query: {text}"))
    assert prompted.use_instructions and prompted.embed_dim == 8
    assert set(prompted.experiment_kwargs) == {"dims", "query_prompt", "document_prompt"}


def test_languages_scored_one_by_one_come_together_in_a_result_file(data, tmp_path):
    for subset in SUBSETS:
        words = WordsRetrieval()
        words.hf_subsets = [subset]
        task = MtebTask(subset, words, data, results=tmp_path)
        task.evaluate(system())
        (file,) = tmp_path.rglob("WordsRetrieval.json")
        whole = file.read_text()
    assert file.parts[-3:-1] == ("local__words", "words")
    result = mteb.TaskResult.from_disk(file)
    assert {split: [each["hf_subset"] for each in scores] for split, scores in result.scores.items()} == {
        split: list(SUBSETS) for split in SPLITS
    }
    file.write_text(whole[:100])  # killed while it was written
    task.evaluate(system())
    assert mteb.TaskResult.from_disk(file).hf_subsets == ["french"]


@pytest.mark.filterwarnings("ignore")  # of mteb and numpy, about tasks that are no retrieval
def test_every_mock_task_of_mteb_that_searches_runs():
    for one in (search_of(System("words", WordEncoder(max_length=100), Settings("ubinary"))), search_of(BM25)):
        found = mteb.mock_run(one)
        assert found.all_passed, found.to_markdown()
        assert sum(isinstance(status, mteb.TaskResult) for _, status in found.items()) == 9


def test_instructions_conversations_and_candidates_as_in_mtebs_own_search():
    """Of the mock tasks' scores all but those that hang on float ties."""
    system = System("words", WordEncoder(max_length=100), Settings("none"))
    one = OwnEncoder(system, NO_PROMPTS, model_meta(system, NO_PROMPTS))
    compared = 0
    for task in MOCK_TASK_TEST_GRID:
        if isinstance(task, AbsTaskRetrieval):
            split = task.eval_splits[0]
            ours, theirs = (
                task.evaluate(each, split, encode_kwargs={"show_progress_bar": False})
                for each in (one, SearchEncoderWrapper(one))
            )
            compared += len(ours)
            for subset, scores in ours.items():
                for metric in ("ndcg_at_10", "map_at_10", "mrr_at_10", "recall_at_1"):
                    assert scores[metric] == pytest.approx(theirs[subset][metric], abs=1e-6)
    assert compared >= 9


GOLDEN = {
    "mteb-multilingual": """
        AILAStatutes ArguAna BelebeleRetrieval CovidRetrieval HagridRetrieval LEMBPasskeyRetrieval
        LegalBenchCorporateLobbying MIRACLRetrievalHardNegatives MLQARetrieval SCIDOCS SpartQA StackOverflowQA
        StatcanDialogueDatasetRetrieval TRECCOVID TempReasonL1 TwitterHjerneRetrieval WikipediaRetrievalMultilingual
        WinoGrande
        """,
    "mteb-code": """
        AppsRetrieval COIRCodeSearchNetRetrieval CodeEditSearchRetrieval CodeFeedbackMT CodeFeedbackST
        CodeSearchNetCCRetrieval CodeSearchNetRetrieval CodeTransOceanContest CodeTransOceanDL CosQA StackOverflowQA
        SyntheticText2SQL
        """,
    "miracl": "ar bn de en es fa fi fr hi id ja ko ru sw te th yo zh",
    "miracl-full": "ar bn de en es fa fi fr hi id ja ko ru sw te th yo zh",
}
OTHER_METRICS = {"LEMBPasskeyRetrieval": "ndcg@1", "StatcanDialogueDatasetRetrieval": "recall@10"}
LENGTHS = [f"test_{length}" for length in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)]
SEVERAL = {
    "LEMBPasskeyRetrieval": LENGTHS,
    "MLQARetrieval": ["test", "validation"],
    "StatcanDialogueDatasetRetrieval": ["dev", "test"],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_tasks_are_those_that_the_paper_averages(name):
    benchmark = open_benchmark(name)
    assert sorted(task.name for task in benchmark.tasks) == GOLDEN[name].split()
    for task in benchmark.tasks:
        assert task.main_metric == OTHER_METRICS.get(task.name, "ndcg@10")
        splits = SEVERAL.get(task.name, [])
        assert sorted(task.task.eval_splits) == sorted(splits) or (not splits and len(task.task.eval_splits) == 1)
    if name.startswith("miracl"):
        assert {task.task.metadata.name for task in benchmark.tasks} == {
            "miracl": {"MIRACLRetrievalHardNegatives"},
            "miracl-full": {"MIRACLRetrieval"},
        }[name]
        assert [task.task.hf_subsets for task in benchmark.tasks] == [[task.name] for task in benchmark.tasks]


def test_subsets_are_those_of_the_leaderboard():
    tasks = {task.name: task.task for task in open_benchmark("mteb-multilingual").tasks}
    several = {name: len(task.hf_subsets) for name, task in tasks.items() if len(task.hf_subsets) > 1}
    assert several == {
        "BelebeleRetrieval": 376,
        "MIRACLRetrievalHardNegatives": 18,
        "MLQARetrieval": 49,
        "StatcanDialogueDatasetRetrieval": 2,
        "WikipediaRetrievalMultilingual": 16,
    }


def test_an_unknown_benchmark_names_the_known():
    with pytest.raises(
        BadInput, match="no benchmark 'mteb'; give one of mteb-multilingual, mteb-code, miracl, miracl-f"
    ):
        open_benchmark("mteb")


def part(split, subset, **metrics):
    return Part(split, subset, {name.replace("_", "@"): value for name, value in metrics.items()}, 1, 1)


def test_averages_over_all_splits_and_over_test_splits():
    benchmark = open_benchmark("mteb-multilingual")
    parts = {
        "StatcanDialogueDatasetRetrieval": [
            part("dev", "english", recall_10=0.2, ndcg_10=0.9),
            part("dev", "french", recall_10=0.4, ndcg_10=0.9),
            part("test", "english", recall_10=0.6, ndcg_10=0.9),
            part("test", "french", recall_10=1.0, ndcg_10=0.9),
        ],
        "LEMBPasskeyRetrieval": [part("test_256", "default", ndcg_1=1.0), part("test_512", "default", ndcg_1=0.5)],
        "HagridRetrieval": [part("dev", "default", ndcg_10=0.3)],
    }
    found = benchmark.averages(parts)
    assert found == pytest.approx({"mean": (0.55 + 0.75 + 0.3) / 3, "mean_test_splits": (0.8 + 0.75 + 0.3) / 3})
    assert benchmark.averages({"HagridRetrieval": parts["HagridRetrieval"]}) == {"mean": 0.3}
    assert benchmark.averages({}) == {}
