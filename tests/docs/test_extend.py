"""The examples of docs/extend.md run: a package `my_lab` is written from the page and used as the page says."""

import importlib
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.cli import main as cli
from pplx_jax.configuration import load
from pplx_jax.data.batches.host_batches import HostBatches
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.training.metrics_writers import LoggedStage
from pplx_jax.training.stages.base import Step

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
MODULES = {
    "stages": "SymmetricStage",
    "corpora": "FaqCorpus",
    "benchmarks": "LabBenchmark",
    "optimizers": "Lion",
    "writers": "CsvWriter",
}
CORPUS = [{"_id": "1", "text": "open a file"}, {"_id": "2", "text": "close a table"}]


def block(language, text):
    [found] = [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text in block]
    return found


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """The package of the page, importable; the working directory is the folder that has it."""
    folder = tmp_path / "my_lab"
    folder.mkdir()
    for module, name in MODULES.items():
        (folder / f"{module}.py").write_text(block("python", f"class {name}"))
    (folder / "recipe.gin").write_text(block("gin", "SymmetricStage"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield lambda module: getattr(importlib.import_module(f"my_lab.{module}"), MODULES[module])
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def write_beir(folder):
    folder.mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "open file"}) + "\n")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")


def test_the_stage_has_a_loss(my_lab, tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    config = tiny.tiny_config(vocabulary)
    table = tiny.tiny_tables(tmp_path / "tables", vocabulary)["pair"]
    stage = my_lab("stages")(batch_size=8, row_length=tiny.LENGTH, slots=8)
    sharding = batch_sharding(Mesh().build())
    with HostBatches(stage.batch, table, None, 0, sharding) as batches:
        arrays = next(batches).arrays
    step = Step(jax.random.key(0), np.float32(0), vocabulary.mask_id)
    loss_of = jax.jit(lambda params, arrays: stage.loss(bind(config, params), arrays, step))
    loss, metrics = loss_of(initial_params(config, 0), arrays)
    assert np.isfinite(loss) and np.isfinite(metrics["positive"])


def test_the_recipe_loads(my_lab):
    run = load(["my_lab/recipe.gin"]).arguments["run"]
    stage = run["stages"][-1].stage
    assert (stage.name, stage.starts_from, stage.batch_size) == ("symmetric", "pair", 256)


def test_the_corpus_is_built_and_read(my_lab, tmp_path):
    write_beir(tmp_path / "faq" / "test")
    (tmp_path / "faq" / "all.jsonl").write_text(json.dumps({"question": "how?", "answer": "so"}) + "\n")
    corpus = my_lab("corpora")(path="faq")
    assert corpus.build(tmp_path / "corpus") == {"searched": 2}
    assert (tmp_path / "corpus" / "evaluation" / "corpus.jsonl").exists()
    [source] = corpus.training_sources(tmp_path / "corpus")
    assert source.kind == "pair" and [pathlib.Path(shard).name for shard in source.shards()] == ["all.jsonl"]


def test_the_benchmark_is_scored(my_lab, tmp_path, capsys):
    write_beir(tmp_path / "lab_sets" / "files")
    [command] = re.findall(r"^    pplx-jax (eval .+)$", PAGE, re.MULTILINE)
    assert cli.main([*command.split(), "--json"]) == cli.DONE
    assert json.loads(capsys.readouterr().out)["metrics"]["ndcg@10"] == 1


def test_the_optimizer_makes_an_update(my_lab):
    optimizer = my_lab("optimizers")(peak_learning_rate=0.1, warmup_steps=0).build(10)
    params = {"kernel": np.ones(3, np.float32)}
    updates, _ = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params))(params)
    assert np.all(np.isfinite(updates["kernel"]))


def test_the_metrics_writer_is_bound_and_writes(my_lab, tmp_path):
    (tmp_path / "own.gin").write_text(
        "from my_lab.writers import CsvWriter\ninclude 'gin/recipes/quickstart_scratch.gin'\n"
        "Logging.writers = [@TensorBoard(), @CsvWriter()]\nCsvWriter.folder = 'tables'\n"
    )
    writer = load(["own.gin"]).arguments["run"]["stages"][0].logging.writers[1]
    assert isinstance(writer, my_lab("writers"))
    writer.check()
    opened = writer.open(LoggedStage(tmp_path / "pair", "pair", 0, ""))
    opened.write(1, {"loss": 0.5})
    opened.write(2, {"skipped": 1.0})
    opened.close()
    assert (tmp_path / "tables" / "pair.csv").read_text() == "1,0.5\n2,\n"
