"""Benchmarks are found without a table: shipped families, and one that a user defines in a package of their own."""

import json
import sys
import textwrap

import pytest
from helpers.word_encoder import WordEncoder

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation import suites
from pplx_jax.evaluation.evaluate import evaluate_task
from pplx_jax.evaluation.registry import benchmark_names, open_benchmark

MY_BENCHMARK = """
    import dataclasses

    from pplx_jax.data.io.beir import RetrievalSet
    from pplx_jax.evaluation.core.benchmark import main_value
    from pplx_jax.evaluation.core.retrieval_task import RetrievalTask

    def animals():
        ids = ["d1", "d2"]
        return RetrievalSet(ids, ["a red fox", "a blue whale"], ids, [0, 0], ["q"], ["red fox"], {"q": {"d1": 1}})

    @dataclasses.dataclass(frozen=True)
    class MyBenchmark:
        data: object = None
        name: str = "mine"

        @property
        def tasks(self):
            return [RetrievalTask("animals" if self.data is None else self.data.name, animals)]

        def averages(self, parts):
            return {"ndcg@10": sum(main_value(part, "ndcg@10") for part in parts.values()) / len(parts)}

    broken = dict
"""


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """A package outside ours, importable as `my_lab`."""
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "benchmarks.py").write_text(textwrap.dedent(MY_BENCHMARK))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_every_family_is_found_by_its_module():
    names = benchmark_names()
    assert {"toolret", "conteb", "mteb-code", "miracl", "bergen", "query-to-document"} <= names.keys()
    families = {
        function.__module__.removeprefix(suites.__name__ + ".").partition(".")[0] for function in names.values()
    }
    assert families == {"toolret", "conteb", "mteb", "bergen", "query_to_document"}


def test_a_benchmark_of_another_package_by_its_name(my_lab, tmp_path):
    found = evaluate_task(WordEncoder(), "my_lab.benchmarks:MyBenchmark", output=tmp_path / "results")
    assert found["metrics"]["ndcg@10"] == 1.0 and (found["queries"], found["documents"]) == (1, 2)
    kept = json.loads((tmp_path / "results" / "results.json").read_text())
    assert kept["benchmark"] == "mine" and kept["settings"][0]["averages"] == {"ndcg@10": 1.0}
    assert evaluate_task("bm25", "my_lab.benchmarks:MyBenchmark")["metrics"]["ndcg@10"] == 1.0
    assert open_benchmark("my_lab.benchmarks:MyBenchmark", tmp_path / "files").tasks[0].name == "files"


def test_a_benchmark_as_an_object(my_lab):
    from my_lab.benchmarks import MyBenchmark

    assert evaluate_task(WordEncoder(), benchmark=MyBenchmark())["metrics"]["ndcg@10"] == 1.0
    for arguments in ({}, {"task": "toolret", "benchmark": MyBenchmark()}):
        with pytest.raises(BadInput, match="give --task, or bind evaluate_task.benchmark"):
            evaluate_task(WordEncoder(), **arguments)


def test_the_command_line_finds_a_module_of_the_working_directory(my_lab, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(my_lab)])
    command = ["eval", "--model=bm25", "--task=my_lab.benchmarks:MyBenchmark", "--json"]
    assert cli.main(command) == cli.BAD_INPUT  # control: it is not found elsewhere
    assert "No module named 'my_lab'" in json.loads(capsys.readouterr().out)["error"]
    monkeypatch.chdir(my_lab)
    assert cli.main(command) == cli.DONE
    assert json.loads(capsys.readouterr().out)["metrics"]["ndcg@10"] == 1.0


def test_a_gin_file_binds_a_benchmark_of_another_package(my_lab, tmp_path, capsys):
    (tmp_path / "mine.gin").write_text(
        "from my_lab.benchmarks import MyBenchmark\n"
        "evaluate_task.benchmark = @MyBenchmark()\n"
        "MyBenchmark.name = 'ours'\n"
    )
    assert cli.main(["eval", "--model=bm25", f"--gin_file={tmp_path / 'mine.gin'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "ours" and found["metrics"]["ndcg@10"] == 1.0


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("my_lab.nothing:MyBenchmark", "No module named 'my_lab.nothing'; give MODULE:NAME"),
        ("my_lab.benchmarks:Other", "has no attribute 'Other'; give MODULE:NAME"),
        ("my_lab.benchmarks:broken", "returns no benchmark: it has no name, tasks, averages"),
        (":", "give MODULE:NAME"),
    ],
)
def test_what_is_no_benchmark_is_refused(my_lab, task, line):
    with pytest.raises(BadInput, match=line):
        open_benchmark(task)
