"""A recipe that starts from random weights with weighted tokens: its folder, its score, and refused settings."""

import json

import jax
import numpy as np
import pytest
from helpers.python_code import write_packages

from pplx_jax.checkpoints.model_folder import load_config
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.cli import main as cli
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.term_weights import TermWeights, weighted
from pplx_jax.recipes.weighted_start import token_counts

pytestmark = pytest.mark.slow

TEXTS = ("tokens", "query", "document")
SMALL = (
    "VOCABULARY=370",
    "PythonCorpus.held_out=('gamma',)",
    "run.stages=[@pair/Training()]",
    "run.term_weights=@TermWeights()",
    "TermWeights.smoothing=0.01",
    "Qwen3Config.width=32",
    "Qwen3Config.mlp_width=32",
    "Qwen3Config.query_heads=2",
    "Qwen3Config.head_dim=16",
    "pair/Training.steps=2",
    # At this rate nothing moves, so that what the stage leaves is what it started from.
    "pair/Optimizer.peak_learning_rate=0.0",
    "pair/Optimizer.warmup_steps=1",
    "PairStage.batch_size=8",
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))


def command(packages, workdir, *params):
    bindings = [*SMALL, f"PythonCorpus.roots=('{packages}',)", *params]
    flags = [f"--gin_param={binding}" for binding in bindings]
    return ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={workdir}", *flags]


def test_the_first_stage_starts_from_the_weighted_model(packages, tmp_path):
    workdir = tmp_path / "run"
    assert cli.main(command(packages, workdir)) == cli.DONE
    config, start = load_config(workdir / "initial"), load_params(workdir / "initial")
    tables = [TokenTable.open(workdir / "data" / "tokens" / stage) for stage in ("diffusion", "pair")]
    texts = [table[name].values for table in tables for name in TEXTS if name in table]
    counts = np.bincount(np.concatenate(texts), minlength=config.vocab_size)
    np.testing.assert_array_equal(token_counts(tables, config.vocab_size), counts)
    expected = weighted(jax.device_get(initial_params(config, 0)), TermWeights(smoothing=0.01).of(counts))
    jax.tree.map(np.testing.assert_array_equal, start, expected)
    jax.tree.map(np.testing.assert_array_equal, load_params(workdir / "pair"), start)
    results = json.loads((workdir / "results.json").read_text())
    assert results["initial"] == results["pair"] != results["random"]


def test_a_model_from_elsewhere_is_not_weighted(packages, tmp_path, capsys):
    initial = tmp_path / "initial"
    assert cli.main(command(packages, tmp_path / "run", f"run.initial='{initial}'", "run.model=None")) == cli.BAD_INPUT
    assert str(initial) in capsys.readouterr().err
