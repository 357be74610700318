"""The benchmark over a folder of sets: its figures are those of `eval`, its table has a line a set."""

import importlib.util
import json
import pathlib
import sys

import pytest
from helpers.word_encoder import WordEncoder

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.sources.corpus_writer import write_beir
from pplx_jax.evaluation import evaluate as verb

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "retrieval.py"
spec = importlib.util.spec_from_file_location("retrieval_benchmark", PATH)
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)

WORDS = "ant bee cat dog eel fox gnu hen".split()


@pytest.fixture
def folder(tmp_path):
    for name, words in (("animals", WORDS), ("few", WORDS[:3])):
        ids = [f"d{n}" for n in range(len(words))]
        texts = [f"the {word} is near the {other}" for word, other in zip(words, [*words[1:], words[0]], strict=True)]
        queries = {f"q{n}": f"{word} is" for n, word in enumerate(words)}
        qrels = {f"q{n}": {f"d{n}": 1} for n in range(len(words))}
        data = RetrievalSet(ids, texts, ids, [0] * len(ids), list(queries), list(queries.values()), qrels)
        (tmp_path / "sets").mkdir(exist_ok=True)
        write_beir(tmp_path / "sets" / name, data)
    return tmp_path / "sets"


def test_models_stand_beside_bm25(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verb, "load_encoder", lambda path, **prompts: WordEncoder(fingerprint=path))
    command = ["retrieval.py", str(folder), "--model=words", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", [*command, "--json"])
    assert benchmark.main() == 0
    systems = json.loads(capsys.readouterr().out)["systems"]
    assert list(systems) == ["bm25", "words"]
    for name, model in (("bm25", "bm25"), ("words", WordEncoder())):
        for task in systems[name]["tasks"]:
            assert task["metrics"] == verb.evaluate_task(model, folder / task["task"], truncate=True)["metrics"]
    assert [one["task"] for one in systems["words"]["comparison"]["tasks"]] == ["animals", "few"]
    assert "comparison" not in systems["bm25"]
    monkeypatch.setattr(sys, "argv", command)
    assert benchmark.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| set | queries | documents | bm25 | words |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| animals", "| few", "| mean"]
    assert "± " in lines[2] and ", p " in lines[2]
    assert (tmp_path / "out" / "words" / "report.html").exists()


def test_what_it_refuses(folder, monkeypatch, capsys):
    for arguments, line in (
        (["--model=a/x", "--model=b/x"], "two systems are called x"),
        (["--sets=none"], "has no task none; it has animals, few"),
    ):
        monkeypatch.setattr(sys, "argv", ["retrieval.py", str(folder), *arguments])
        assert benchmark.main() == 2
        assert line in capsys.readouterr().err
