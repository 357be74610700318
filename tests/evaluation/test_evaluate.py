"""`eval` from end to end: results that resume, several settings from one encoding, comparison, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers.tiny import tiny_config, tiny_vocabulary
from helpers.word_encoder import WordEncoder

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.evaluation import evaluate as verb
from pplx_jax.evaluation.core import comparison, results
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.core.runner import run_tasks
from pplx_jax.evaluation.core.summary import summarize
from pplx_jax.evaluation.registry import benchmark_names
from pplx_jax.evaluation.scoring import caching_encoder
from pplx_jax.evaluation.scoring.system import Settings, System
from pplx_jax.models.parameters import initial_params
from pplx_jax.reports.evaluation_page import render_evaluation

WORDS = "ant bee cat dog eel fox gnu hen ibis jay".split()


def word_set(seed, queries):
    """Documents of three to nine words; a query is three words of one of them, and a word of its own."""
    generator = np.random.default_rng(seed)
    documents = [" ".join(generator.choice(WORDS, 3 + 3 * (n % 3))) for n in range(20)]
    relevant = generator.integers(20, size=queries)
    ids = [f"d{number}" for number in range(20)]
    return RetrievalSet(
        document_ids=ids,
        documents=documents,
        parents=[f"p{number // 4}" for number in range(20)],
        chunks=[number % 4 for number in range(20)],
        query_ids=[f"q{number}" for number in range(queries)],
        queries=[" ".join([*documents[row].split()[:3], f"{seed}-{n}"]) for n, row in enumerate(relevant)],
        qrels={f"q{number}": {f"d{row}": 1} for number, row in enumerate(relevant)},
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, queries in (("large", 40), ("small", 15)):
        write_beir(folder / name, word_set(queries, queries))
    return folder


@pytest.fixture
def model(monkeypatch):
    """What --model loads: the path says its width."""
    loaded = {}

    def load(path, **prompts):
        return loaded.setdefault(str(path), WordEncoder(dims=int(str(path).rpartition("-")[2]), fingerprint=str(path)))

    monkeypatch.setattr(verb, "load_encoder", load)
    return loaded


def run(capsys, *arguments):
    code = cli.main(["eval", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_one_folder_keeps_its_promised_keys(sets, model, capsys):
    code, found, _ = run(capsys, "--model=m-32", f"--task={sets / 'small'}", "--quantization=int8")
    assert code == 0
    assert found["queries"] == 15 and found["documents"] == 20
    assert {"ndcg@10", "recall@100", "recall@1000", "mrr", "map"} <= set(found["metrics"])
    low, high = found["intervals"]["ndcg@10"]
    assert low < found["metrics"]["ndcg@10"] < high


def test_several_settings_come_from_one_encoding(sets, model, tmp_path, capsys):
    settings = ("--quantization=int8,binary", "--dims=8,32", "--context=both", "--truncate")
    code, found, _ = run(capsys, "--model=m-32", f"--task={sets}", *settings, f"--output={tmp_path / 'out'}")
    assert code == 0
    # Passages alone once, in context once (the stand-in encodes chunks by itself), queries once.
    assert model["m-32"].encoded == 2 * 40 + 55
    names = [one["setting"] for one in found["settings"]]
    assert names[:4] == ["int8-8", "int8-32", "binary-8", "binary-32"] and names[4] == "int8-8-context"
    for one in found["settings"]:
        alone = verb.evaluate_task(
            WordEncoder(),
            sets / "large",
            quantization=one["quantization"],
            dims=one["dims"],
            context="with" if one["context"] else "without",
            truncate=True,
        )
        assert one["tasks"][0]["metrics"] == alone["metrics"]
    page = (tmp_path / "out" / "report.html").read_text()
    for heading in ("Tasks", "Quantization, width and context", "Dimensions", "Length", "Model and software"):
        assert f"<h2>{heading}</h2>" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["model"]["dims"] == 32 and kept["model"]["max_length"] == 20 and "numpy" in kept["packages"]
    assert (tmp_path / "out" / "results.md").read_text().startswith("| task")


def test_a_folder_of_sets_has_their_mean(sets, model, capsys):
    _, found, _ = run(capsys, "--model=m-32", f"--task={sets}")
    values = {one["task"]: one["main"] for one in found["tasks"]}
    assert list(values) == ["large", "small"]
    assert found["averages"]["ndcg@10"] == pytest.approx(np.mean(list(values.values())))
    low, high = found["average_intervals"]["ndcg@10"]
    assert low < found["averages"]["ndcg@10"] < high
    assert (found["finished"], found["of"]) == (2, 2)
    assert found["averages"].items() <= found["metrics"].items()
    assert found["metrics"]["recall@100"] == pytest.approx(
        np.mean([one["metrics"]["recall@100"] for one in found["tasks"]])
    )
    assert (found["queries"], found["documents"]) == (15 + 40, 20 + 20)


def test_finished_tasks_are_not_encoded_again(sets, model, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    run(capsys, "--model=m-32", f"--task={sets}", "--tasks=small", output)
    assert model["m-32"].encoded == 20 + 15
    _, found, _ = run(capsys, "--model=m-32", f"--task={sets}", output)
    assert model["m-32"].encoded == 2 * 20 + 15 + 40  # large alone was left
    _, again, _ = run(capsys, "--model=m-32", f"--task={sets}", output)
    assert model["m-32"].encoded == 2 * 20 + 15 + 40
    assert again["settings"] == found["settings"]
    run(capsys, "--model=m-32", f"--task={sets}", "--truncate", output)
    assert model["m-32"].encoded == 2 * (2 * 20 + 15 + 40)  # cut texts are another setting


def test_changed_data_is_scored_again(tmp_path):
    write_beir(tmp_path / "set", word_set(1, 9))
    path = tmp_path / "set" / "queries.jsonl"
    for encoded in (29, 0, 29):
        model = WordEncoder()
        verb.evaluate_task(model, tmp_path / "set", output=tmp_path / "out")
        assert model.encoded == encoded
        if not encoded:
            path.write_text(re.sub('"text": "[^"]*"', '"text": "yak"', path.read_text(), count=1))


def test_an_interruption_keeps_what_is_finished(sets, tmp_path):
    class Stopping(WordEncoder):
        left = 2  # passages and queries of the first set

        def encode(self, texts, **options):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().encode(texts, **options)

    with pytest.raises(KeyboardInterrupt):
        verb.evaluate_task(Stopping(), sets, output=tmp_path)
    assert [path.name for path in tmp_path.glob("tasks/*")] == ["large"]
    model = WordEncoder()
    found, whole = verb.evaluate_task(model, sets, output=tmp_path), verb.evaluate_task(WordEncoder(), sets)
    assert model.encoded == 20 + 15
    for one in (*found["tasks"], *whole["tasks"]):
        del one["seconds"]
    assert found["settings"] == whole["settings"]


def test_another_model_or_benchmark_is_refused(sets, model, tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    run(capsys, "--model=m-32", f"--task={sets / 'small'}", output)
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    for arguments, line in (
        (("--model=m-16", f"--task={sets / 'small'}"), "results of another model, m-32 (m-32), not of m-16 (m-16)"),
        (("--model=bm25", f"--task={sets / 'small'}"), "results of another model"),
        (("--model=m-32", f"--task={sets}"), "holds results of small, not of sets"),
    ):
        code, found, errors = run(capsys, *arguments, output)
        assert code == 2 and line in found["error"] and "Traceback" not in errors
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(BadInput, match="is not a results folder"):
        verb.evaluate_task(WordEncoder(), sets, output=tmp_path / "other")


def test_comparison_of_two_systems(sets, model, tmp_path, capsys):
    run(capsys, "--model=m-4", f"--task={sets}", f"--output={tmp_path / 'narrow'}")
    run(capsys, "--model=bm25", f"--task={sets}", f"--output={tmp_path / 'bm25'}")
    wide = ("--model=m-64", f"--task={sets}", f"--output={tmp_path / 'wide'}")
    _, found, _ = run(capsys, *wide, f"--compare={tmp_path / 'narrow'}")
    compared = found["comparison"]
    assert (compared["against"], compared["setting"]) == ("m-4", "int8")
    assert [one["task"] for one in compared["tasks"]] == ["large", "small"]
    for one, task in zip(compared["tasks"], found["tasks"], strict=True):
        assert one["this"] == pytest.approx(task["main"])
        assert one["difference"] == pytest.approx(one["this"] - one["other"])
    assert compared["mean"]["this"] == pytest.approx(found["averages"]["ndcg@10"])
    assert compared["mean"]["p"] < 0.001 and compared["mean"]["low"] > 0
    _, same, _ = run(capsys, *wide, f"--compare={tmp_path / 'wide'}")
    assert same["comparison"]["mean"]["p"] == 1.0 and same["comparison"]["mean"]["difference"] == 0
    _, lexical, _ = run(capsys, *wide, f"--compare={tmp_path / 'bm25'}")
    assert lexical["comparison"]["setting"] == "bm25"
    code, refused, _ = run(capsys, *wide, f"--compare={sets}")
    assert code == 2 and "is not a results folder" in refused["error"]


def test_parts_weigh_in_comparisons_as_in_figures():
    def outcome(values):
        parts = [
            Part(split, subset, {"m": np.mean(of)}, len(of), 9, [str(n) for n in range(len(of))], {"m": np.array(of)})
            for (split, subset), of in values.items()
        ]
        return results.Outcome("t", "m", "", "int8", Settings(), parts, 0.0)

    ours = outcome({("a", "x"): [1.0, 0.0], ("a", "y"): [1.0], ("b", "x"): [0.5, 0.5, 0.2]})
    theirs = outcome({("b", "x"): [0.0, 0.0, 0.0], ("a", "x"): [0.0, 0.0], ("a", "y"): [0.0]})
    pairs = comparison._pairs(ours, theirs, "folder")
    row = comparison._row(pairs)
    assert row["this"] == row["difference"] == pytest.approx((0.75 + 0.4) / 2) and row["other"] == 0
    with pytest.raises(BadInput, match="other queries"):
        comparison._pairs(ours, outcome({("a", "x"): [0.0]}), "folder")
    with pytest.raises(BadInput, match="other data"):
        comparison._pairs(ours, dataclasses.replace(theirs, revision="new"), "folder")


def test_the_page_has_languages_and_lengths():
    class Benchmark:
        name = "lingual"
        tasks = (type("Task", (), {"name": "t", "main_metric": "m"}),)

        def averages(self, parts):
            return {}

    parts = [Part("test", subset, {"m": 0.5}, 3, 9) for subset in ("de", "fr")]
    parts += [Part(f"test_{length}", "default", {"m": 0.4}, 3, 9) for length in (256, 512, 1024)]
    held = results.Results(results.Subject("lingual", "m", "f"))
    held.add(results.Outcome("t", "m", "", "int8", Settings(), parts, 0.0))
    summary = summarize(held, Benchmark())
    assert summary["settings"][0]["tasks"][0]["interval"] is None
    page = render_evaluation(summary, held.outcomes)
    assert "<h2>Languages and subsets</h2>" in page and "<h2>Lengths that the benchmark sets</h2>" in page


def test_a_run_file_is_of_one_task_and_one_setting(sets, model, tmp_path, capsys):
    path = tmp_path / "out.trec"
    output = f"--output={tmp_path / 'out'}"
    run(capsys, "--model=m-32", f"--task={sets}", output)
    code, _, _ = run(capsys, "--model=m-32", f"--task={sets}", "--tasks=small", f"--run_file={path}", output)
    assert code == 0 and len(path.read_text().splitlines()) == 15 * 20  # written although the task was finished
    for arguments in (("--tasks=small,large",), ("--tasks=small", "--quantization=int8,none")):
        code, found, _ = run(capsys, "--model=m-32", f"--task={sets}", *arguments, f"--run_file={tmp_path / 'no'}")
        assert code == 2 and "choose the task with --tasks" in found["error"]
    encoded = model["m-32"].encoded
    for place in (tmp_path / "no" / "out.trec", tmp_path):
        code, found, _ = run(capsys, "--model=m-32", f"--task={sets}", "--tasks=small", f"--run_file={place}")
        assert code == 2 and "must name a file in an existing folder" in found["error"]
    assert model["m-32"].encoded == encoded  # asked before the work


@pytest.mark.parametrize(
    "arguments, line",
    [
        (
            ("--task=nowhere",),
            "no benchmark and no folder nowhere; give a BEIR folder, MODULE:NAME of your own benchmark, or one of "
            + ", ".join(benchmark_names()),
        ),
        (("--tasks=small,tiny",), "has no task tiny; it has large, small"),
        (("--tasks=smal",), "has no task smal; it has large, small; did you mean small?"),
        (("--tasks=t*",), "has no task t*; it has large, small"),
        (("--task=mteb-*",), "--task mteb-* matches the benchmarks mteb-multilingual, mteb-code; a results folder"),
        (("--task=tolret",), "toolret-by-category-instructions; did you mean toolret?"),
        (("--task=nowhere/*",), "nowhere/*: no file or folder matches this pattern"),
        (("--quantization=int4",), "quantization 'int4' is not one of int8, binary"),
        (("--tasks=,",), "--tasks is empty"),
        (("--tasks=",), "--tasks is empty"),
        (("--quantization=",), "--quantization is empty"),
        (("--dims=",), "--dims is empty"),
        (("--dims=33",), "dims=33 of a model of 32 dimensions"),
        (("--quantization=ubinary", "--dims=12"), "12 dimensions do not fill whole bytes"),
        (("--data=.",), "is a folder with its own files"),
    ],
)
def test_bad_input_is_one_line(sets, model, capsys, arguments, line):
    code, found, _ = run(capsys, "--model=m-32", f"--task={sets}", *arguments)
    assert code == 2 and line in found["error"] and "\n" not in found["error"]


def test_a_damaged_file_is_named(sets, tmp_path):
    verb.evaluate_task(WordEncoder(), sets / "small", output=tmp_path)
    (tmp_path / "tasks" / "small" / "int8.json").write_text('{"format": 1')
    with pytest.raises(BadInput, match="int8.json is damaged.*; delete it"):
        verb.evaluate_task(WordEncoder(), sets / "small", output=tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", '"x"', '{"format": 1}', '{"format": 1, "fingerprint": "f"}', '{"format": 2}']
)
def test_a_model_file_that_is_none_is_named(sets, tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(BadInput, match="model.json .*; evaluate again into a new folder"):
        verb.evaluate_task(WordEncoder(), sets / "small", output=tmp_path)


def test_the_runner_keeps_what_it_has_without_a_folder(sets):
    held = results.Results(results.Subject("b", "words", "words"))
    run_tasks([], [System("words", WordEncoder())], held)
    assert held.outcomes == []


def test_a_model_folder_through_the_command_line(sets, tmp_path, capsys):
    vocabulary = tiny_vocabulary(tmp_path)
    config = tiny_config(vocabulary, max_length=64)
    save_model(tmp_path / "model", config, vocabulary, initial_params(config, 0), stage="contextual", kind="context_v1")
    command = (f"--model={tmp_path / 'model'}", f"--task={sets / 'small'}", "--context=both")
    code, found, errors = run(capsys, *command, f"--output={tmp_path / 'out'}")
    assert code == 0 and ("ETA" in errors or "text 20/20" in errors)
    assert 0 < found["metrics"]["recall@10"] <= 1
    model = json.loads((tmp_path / "out" / "results.json").read_text())["model"]
    assert (model["dtype"], model["max_length"], model["dims"]) == ("float32", 64, 16)
    assert cli.main(["eval", *command, f"--output={tmp_path / 'out'}"]) == 0
    assert "metrics.ndcg@10" in capsys.readouterr().out


@pytest.mark.parametrize("context", ["with", "without"])
@pytest.mark.parametrize("kind", ["query", "document"])
def test_a_text_past_the_limit_is_named_by_its_id(model, tmp_path, capsys, kind, context):
    """Also where texts stand twice, which are encoded once."""
    data = word_set(1, 6)
    long = " ".join(WORDS * 3)
    texts = {"query": data.queries, "document": data.documents}[kind]
    texts[1], texts[4] = texts[0], long
    write_beir(tmp_path / "set", data)
    options = ["--model=m-32", f"--task={tmp_path / 'set'}", f"--context={context}"]
    code, found, _ = run(capsys, *options)
    size = r"30 tokens, the model takes 20 \(1 of [0-9]+ texts are over it\)"
    fix = "give --truncate, --overflow split or a model with a larger limit"
    assert code == 2 and re.fullmatch(f"'{kind[0]}4' has {size}; {fix}", found["error"])
    assert run(capsys, *options, "--truncate")[0] == 0


def test_texts_past_the_limit_are_counted_before_any_is_encoded(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(caching_encoder, "_BLOCK", 2)
    data = word_set(1, 6)
    data.documents[2:] = [f"{' '.join(WORDS * 3)} {number}" for number in range(2, 20)]
    write_beir(tmp_path / "set", data)
    code, found, _ = run(capsys, "--model=m-32", f"--task={tmp_path / 'set'}")
    assert code == 2
    assert "'d2' has 31 tokens, the model takes 20 (18 of 20 texts are over it)" in found["error"]
    assert model["m-32"].encoded == len(data.queries)


def test_overflow_says_how_long_texts_are_encoded(sets, model, tmp_path, capsys, monkeypatch):
    told = set()
    encode = WordEncoder.encode

    def recorded(self, texts, *, overflow="error", **options):
        told.add(overflow)
        return encode(self, texts, overflow=overflow, **options)

    monkeypatch.setattr(WordEncoder, "encode", recorded)
    options = ["--model=m-32", f"--task={sets / 'small'}", f"--output={tmp_path / 'out'}"]
    for option, way in (
        ("--overflow=split", "split"),
        ("--overflow=truncate", "truncate"),
        ("--overflow=error", "error"),
    ):
        told.clear()
        assert run(capsys, *options, option)[0] == 0  # an outcome of another way is not reused
        assert told == {way}
    code, found, _ = run(capsys, *options, "--truncate", "--overflow=split")
    assert code == 2 and "exclude each other" in found["error"]


class Prompted(WordEncoder):
    """A word encoder that takes prompts, and counts the texts that had each."""

    def __init__(self, **fields):
        super().__init__(**fields)
        self.seen = []

    def encode(self, texts, *, prompt=None, **options):
        self.seen += [prompt] * len(texts)
        return super().encode([(prompt or "") + text for text in texts], **options)


def test_a_task_may_have_prompts_of_its_own(sets, tmp_path, capsys, monkeypatch):
    encoder = Prompted(max_length=40)
    encoder.encode_queries = lambda texts, **options: encoder.encode(texts, **options)
    monkeypatch.setattr(verb, "load_encoder", lambda path, **prompts: encoder)
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"small": {"query": "ant ant ant ant ant "}}))
    arguments = ("--model=m", f"--task={sets}", f"--output={tmp_path / 'out'}")
    _, plain, _ = run(capsys, *arguments)
    encoder.seen = []
    code, found, _ = run(capsys, *arguments, f"--prompts={prompts}")
    assert code == 0 and encoder.seen.count("ant ant ant ant ant ") == 15  # the queries of one task only
    assert encoder.seen.count(None) == 20  # the other task is not scored again
    before, after = ({one["task"]: one["metrics"] for one in result["tasks"]} for result in (plain, found))
    assert before["large"] == after["large"] and before["small"] != after["small"]
    encoder.seen = []
    _, again, _ = run(capsys, *arguments, f"--prompts={prompts}")
    assert not encoder.seen and again["tasks"] == found["tasks"]
    for wrong, message in (
        ({"tiny": {"query": "a"}}, "no task 'tiny'; the tasks are large, small"),
        ({"small": {"passage": "a"}}, "no prompt 'passage' of a task"),
        ({"small": {"query": 3}}, "is not a name and a text"),
        (["small"], "is not a JSON object; write TASK ->"),
    ):
        prompts.write_text(json.dumps(wrong))
        code, _, error = run_failing(capsys, *arguments, f"--prompts={prompts}")
        assert code == 2 and message in error


def run_failing(capsys, *arguments):
    code = cli.main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_eval_reads_as_many_tokens_as_are_asked_for(sets, tmp_path, capsys):
    vocabulary = tiny_vocabulary(tmp_path)
    config = tiny_config(vocabulary)
    save_model(tmp_path / "model", config, vocabulary, initial_params(config, 0), stage="pair")
    arguments = [f"--model={tmp_path / 'model'}", f"--task={sets / 'small'}"]
    results = f"--output={tmp_path / 'results'}"
    _, whole, _ = run(capsys, *arguments, results)
    _, short, _ = run(capsys, *arguments, "--max_length=1")
    assert whole["metrics"] != short["metrics"]
    code, _, line = run_failing(capsys, *arguments, results, "--max_length=1")
    assert code == 2 and "holds results of texts up to" in line
    code, _, line = run_failing(capsys, "--model=bm25", arguments[1], "--max_length=1")
    assert code == 2 and "leave it out" in line


def test_eval_uses_the_prompts_of_the_model_unless_others_are_given(sets, tmp_path, capsys):
    """The set with the prompts written into its texts, and a model without prompts, give the same numbers."""
    vocabulary = tiny_vocabulary(tmp_path)
    config = tiny_config(vocabulary)
    params = initial_params(config, 0)
    save_model(tmp_path / "plain", config, vocabulary, params, stage="pair")
    prompts = {"query": "ant dog: ", "document": "bee "}
    save_model(tmp_path / "prompted", config, vocabulary, params, stage="pair", prompts=prompts)
    data = word_set(15, 15)
    texts = {"queries": ["ant dog: " + text for text in data.queries],
             "documents": ["bee " + text for text in data.documents]}  # fmt: skip
    write_beir(tmp_path / "written", dataclasses.replace(data, **texts))
    _, written, _ = run(capsys, f"--model={tmp_path / 'plain'}", f"--task={tmp_path / 'written'}")
    task = f"--task={sets / 'small'}"
    _, own, _ = run(capsys, f"--model={tmp_path / 'prompted'}", task)
    flags = ("--query_prompt=ant dog: ", "--document_prompt=bee ")
    _, given, _ = run(capsys, f"--model={tmp_path / 'plain'}", task, *flags)
    _, plain, _ = run(capsys, f"--model={tmp_path / 'plain'}", task)
    _, removed, _ = run(capsys, f"--model={tmp_path / 'prompted'}", task, "--query_prompt=", "--document_prompt=")
    assert written["metrics"] == own["metrics"] == given["metrics"]
    assert plain["metrics"] == removed["metrics"] != own["metrics"]
