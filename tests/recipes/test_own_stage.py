"""A stage from another package runs in a recipe, from its gin block to results, report and model card."""

import json
import sys

import pytest
from helpers.python_code import write_packages

from pplx_jax.checkpoints.model_folder import stage_of
from pplx_jax.cli import main as cli

pytestmark = pytest.mark.slow  # a whole recipe

STAGES = '''
"""A stage of our lab: pairs again, at half the scores."""

import dataclasses
from typing import ClassVar

from pplx_jax.data.batches.batch_spec import PairBatch
from pplx_jax.models.embedding import embed, take_slots
from pplx_jax.objectives.contrastive import pair_loss
from pplx_jax.training.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class HalfStage(Stage):
    batch_size: int
    row_length: int = 64

    name: ClassVar[str] = "half"
    starts_from: ClassVar[str] = "pair"
    summary: ClassVar[str] = "pairs at half the scores"

    @property
    def batch(self):
        return PairBatch(self.batch_size, self.row_length, slots=16)

    def loss(self, model, batch, step):
        rows = {name: batch[name] for name in ("tokens", "segment_ids", "positions", "chunk_ids")}
        pooled, _ = embed(model, rows, 16)
        query, document = take_slots(pooled, batch["query"]), take_slots(pooled, batch["document"])
        loss, metrics = pair_loss(query, document, temperature=0.1, margin=0.1)
        return loss / 2, metrics | {"half": step.progress}
'''
RECIPE = """
from my_lab.stages import HalfStage
include 'gin/models/nano.gin'

run.seed = 0
run.corpus = @PythonCorpus()
run.lengths = @Lengths()
run.model = @Qwen3Config()
run.stages = [@pair/Training(), @half/Training()]

Qwen3Config.vocab_size = 370
Qwen3Config.width = 32
Qwen3Config.mlp_width = 32
Qwen3Config.query_heads = 2
Qwen3Config.head_dim = 16
PythonCorpus.held_out = ('gamma',)
Lengths.text = 64
Lengths.query = 16
Lengths.document = 32
Lengths.chunk = 32
Lengths.chunks = 2

Training.optimizer = @Optimizer()
Training.logging = @Logging()
Logging.every_steps = 1
Optimizer.peak_learning_rate = 1e-3
Optimizer.warmup_steps = 0
pair/Training.stage = @PairStage()
pair/Training.steps = 2
PairStage.batch_size = 16
PairStage.row_length = 64
half/Training.stage = @HalfStage()
half/Training.steps = 3
HalfStage.batch_size = 8
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    packages = write_packages(folder / "code", ("alpha", "beta", "gamma"))
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "__init__.py").write_text("")
    (folder / "my_lab" / "stages.py").write_text(STAGES)
    (folder / "recipe.gin").write_text(RECIPE)
    sys.path.insert(0, str(folder))
    try:
        command = ["run", f"--gin_file={folder / 'recipe.gin'}", f"--workdir={folder / 'run'}"]
        assert cli.main([*command, f"--gin_param=PythonCorpus.roots=('{packages}',)"]) == cli.DONE
    finally:
        sys.path.remove(str(folder))
    return folder / "run"


def test_it_is_trained_from_the_stage_that_it_names(workdir):
    finished = json.loads((workdir / "half" / "finished.json").read_text())
    assert (finished["starts_from"], finished["steps"], finished["reads"]) == ("pair", 3, "pair")
    assert finished["metrics"]["half"] == pytest.approx(2 / 3)
    assert stage_of(workdir / "half") == "half"


def test_it_is_a_row_of_results_and_report(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert [name for name in results if name in ("random", "pair", "half")] == ["random", "pair", "half"]
    assert results["half"]["int8"].keys() == {"ndcg@10", "recall@100"}
    assert results["half"] != results["pair"]
    page = (workdir / "report.html").read_text()
    assert "half" in page and page.index(">pair<") < page.index(">half<")


def test_its_model_card_says_how_it_was_trained(workdir, tmp_path):
    assert cli.main(["export-hf", str(workdir / "half"), str(tmp_path / "export")]) == cli.DONE
    card = (tmp_path / "export" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| pair |", "| half |"))]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| pair", "pairs, in-batch negatives", "2"],
        ["| half", "pairs at half the scores", "3"],
    ]
