"""The verb `experiment` on small recipes: shared phases, skipped runs, a comparison, and what is refused."""

import json
import pathlib

import numpy as np
import pytest
from helpers.python_code import write_packages

from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.checkpoints.saved_params import checkpoint_steps
from pplx_jax.cli import main as cli
from pplx_jax.data.sources.corpus_writer import write_retrieval_set
from pplx_jax.evaluation.core.results import read_outcomes
from pplx_jax.evaluation.scoring.set_embeddings import context_groups
from pplx_jax.evaluation.suites.beir_folder import open_folder
from pplx_jax.recipes.experiment_scores import reversed_task

whole_runs = pytest.mark.long

BASE = """
include 'gin/models/nano.gin'

STEPS = 3
run.seed = 0
run.corpus = @PythonCorpus()
run.lengths = @Lengths()
run.model = @Qwen3Config()
run.stages = [@autoregressive/Training(), @pair/Training()]
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
Logging.writers = []
Optimizer.peak_learning_rate = 1e-3
Optimizer.warmup_steps = 0
autoregressive/Training.stage = @AutoregressiveStage()
autoregressive/Training.steps = 2
AutoregressiveStage.batch_size = 8
AutoregressiveStage.row_length = 64
pair/Training.stage = @PairStage()
pair/Training.starts_from = 'autoregressive'
pair/Training.steps = %STEPS
PairStage.batch_size = 16
PairStage.row_length = 64
"""
ARMS = {
    "1_first": "# The baseline.\n# In two lines.\n\n# Not this.\ninclude 'base.gin'",
    "2_warm": "# A warmer loss.\ninclude 'base.gin'\nPairStage.temperature = 1.0",
    "3_last": "# The last token.\ninclude 'base.gin'\nQwen3Config.pooling = 'last'\nQwen3Config.causal = True",
}


def shapes() -> str:
    """Classes with methods of the same names, which do not name their class."""
    return "\n\n".join(
        f"class {name}:\n    sides = {sides}\n\n"
        f"    def area(self, scale):\n        result = scale * {sides} + self.sides\n        return result\n\n"
        f"    def border(self, width):\n        result = width - {sides} - self.sides\n        return result\n"
        for sides, name in enumerate(("Circle", "Line", "Lens", "Triangle", "Square"))
    )


def command(folder, *words):
    packages = f"--gin_param=PythonCorpus.roots=('{folder / 'code'}',)"
    return ["experiment", f"--set={folder / 'arms'}", f"--workdir={folder / 'work'}", packages, *words]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_packages(folder / "code", ("alpha", "beta", "gamma"))
    (folder / "code" / "gamma" / "shapes.py").write_text(shapes())
    (folder / "arms").mkdir()
    (folder / "base.gin").write_text(BASE)
    for name, text in ARMS.items():
        (folder / "arms" / f"{name}.gin").write_text(text.replace("base.gin", str(folder / "base.gin")) + "\n")
    (folder / "arms" / "predictions.md").write_text("Warmer is <worse> by 0.01.")
    assert cli.main(command(folder, "--seeds=0,1", "--arms=1_first,2_warm")) == cli.DONE
    return folder


def run_folder(ran, arm, seed):
    return ran / "work" / "arms" / arm / f"seed-{seed}"


@whole_runs
def test_the_comparison_is_that_of_the_scores_by_query(ran):
    compared = json.loads((ran / "work" / "arms" / "results.json").read_text())
    assert (compared["baseline"], compared["seeds"]) == ("1_first", [0, 1])
    assert compared["about"] == {"1_first": "The baseline. In two lines.", "2_warm": "A warmer loss."}
    outcomes = {outcome["outcome"]: outcome for outcome in compared["outcomes"]}
    assert list(outcomes) == [
        *("context, int8", "context, int8-context", "context-reversed, int8-context"),
        *(f"evaluation, {precision}" for precision in ("int8", "float", "binary")),
    ]
    assert outcomes["context, int8"]["queries"] == 10  # of `shapes`
    values = {}
    for arm in ("1_first", "2_warm"):
        for seed in (0, 1):
            of_run = {one.setting: one for one in read_outcomes(run_folder(ran, arm, seed) / "scores")}
            (part,) = of_run["int8"].parts
            values[arm, seed] = dict(zip(part.query_ids, part.per_query["ndcg@10"], strict=True))
    first, second = outcomes["evaluation, int8"]["arms"]
    expected = [
        np.mean([values["2_warm", seed][query] - value for query, value in values["1_first", seed].items()])
        for seed in (0, 1)
    ]
    assert second["difference"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert second["low"] <= second["difference"] <= second["high"] and second["low"] < second["high"]
    assert first["by_seed"]["1"] == pytest.approx(np.mean([*values["1_first", 1].values()]))
    assert "difference" not in first
    table = (ran / "work" / "arms" / "table.txt").read_text()
    assert f"{second['difference']:+.4f}" in table and "seed 1" in table
    page = (ran / "work" / "arms" / "report.html").read_text()
    assert "Warmer is &lt;worse&gt; by 0.01." in page and "In two lines." in page


@whole_runs
def test_equal_phases_are_done_once_and_others_are_not(ran):
    first, warm = run_folder(ran, "1_first", 0), run_folder(ran, "2_warm", 0)
    for path in ("data/corpus", "data/tokens/pair", "data/vocabulary.model", "autoregressive"):
        assert (warm / path).is_symlink() and (warm / path).resolve() == (first / path).resolve()
    assert not (warm / "pair").is_symlink()
    other = run_folder(ran, "1_first", 1)
    assert (other / "data" / "corpus").is_symlink()  # the corpus does not depend on the seed
    assert not any((other / path).is_symlink() for path in ("data/vocabulary.model", "autoregressive", "pair"))
    # The links are relative: the folder can be moved.
    assert not (warm / "autoregressive").readlink().is_absolute()


@whole_runs
def test_finished_stages_keep_their_parameters_only(ran):
    pair = run_folder(ran, "2_warm", 0) / "pair"
    assert checkpoint_steps(pair) == [3]
    on_disk = sum(file.stat().st_size for file in (pair / "checkpoints").rglob("*") if file.is_file())
    assert on_disk < 4 * load_model(pair).config.parameters * 2  # with Adam's two moments it is three times
    assert load_model(pair).config.causal is False


@whole_runs
def test_the_same_command_does_only_what_is_missing(ran, capsys):
    before = (run_folder(ran, "2_warm", 1) / "arm.json").stat().st_mtime_ns
    assert cli.main(command(ran, "--seeds=0", "--json")) == cli.DONE
    assert (run_folder(ran, "2_warm", 1) / "arm.json").stat().st_mtime_ns == before
    assert json.loads((run_folder(ran, "3_last", 0) / "arm.json").read_text())["model"] == "pair"
    config = load_model(run_folder(ran, "3_last", 0) / "pair").config
    assert (config.causal, config.pooling) == (True, "last")
    written = json.loads(capsys.readouterr().out)
    compared = json.loads(pathlib.Path(written["results"]).read_text())
    rows = compared["outcomes"][0]["arms"]
    assert [row["arm"] for row in rows] == list(ARMS)
    assert compared["seeds"] == [0, 1] and [list(row["by_seed"]) for row in rows] == [["0", "1"], ["0", "1"], ["0"]]
    # Another setting of a finished run is another run.
    assert cli.main(command(ran, "--seeds=0", "--gin_param=STEPS=2")) == cli.BAD_INPUT
    assert "has other settings: Training.steps 3, this recipe has 2" in capsys.readouterr().err


@whole_runs
def test_a_failed_arm_does_not_stop_the_others(ran, capsys):
    folder = ran / "failing"
    folder.mkdir()
    text = f"include '{ran / 'base.gin'}'\npair/Optimizer.peak_learning_rate = "
    (folder / "1_nan.gin").write_text(f"{text}1e30\n")
    (folder / "2_fine.gin").write_text(f"{text}1e-3\n")
    words = command(ran, "--seeds=0")
    words[1] = f"--set={folder}"
    assert cli.main(words) == cli.FAILED
    assert "1_nan, seed 0: " in capsys.readouterr().err
    compared = json.loads((ran / "work" / "failing" / "results.json").read_text())
    assert [row["arm"] for row in compared["outcomes"][0]["arms"]] == ["2_fine"]
    # The stage is that of the other set.
    assert (ran / "work" / "failing" / "2_fine" / "seed-0" / "autoregressive").is_symlink()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--set=gin/experiments/nope"], "--set gin/experiments/nope: no folder with gin files"),
        (["--set=gin/experiments/backbone", "--arms=diffusion"], "--arms diffusion: the set has 1_mask_removed"),
        (["--set=gin/experiments/backbone", "--seeds="], "--seeds is empty"),
        (["--set=gin/experiments/backbone", "--gin_param=PairStage.temprature=1"], "temprature"),
    ],
)
def test_what_is_refused(words, message, tmp_path, capsys):
    assert cli.main(["experiment", *words, f"--workdir={tmp_path / 'work'}"]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_file_that_is_no_recipe_is_refused(tmp_path, capsys):
    (tmp_path / "arm.gin").write_text("run.seed = 1\n")
    assert cli.main(["experiment", f"--set={tmp_path}", f"--workdir={tmp_path / 'work'}"]) == cli.BAD_INPUT
    assert "is not a recipe: nothing binds run.stages" in capsys.readouterr().err


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path, capsys):
    words = ["--set=gin/experiments/backbone", "--seeds=3", f"--workdir={tmp_path / 'work'}", "--dry_run", "--json"]
    assert cli.main(["experiment", *words]) == cli.DONE
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["seed"] for run in runs] == [3] * 8
    assert runs[3]["stages"].startswith("autoregressive (") and runs[0]["about"].startswith("The base model")
    assert not (tmp_path / "work").exists()


def test_a_probe_in_reverse_order_turns_the_chunks_of_each_document(tmp_path):
    rows = [
        {"_id": f"{parent}{chunk}", "text": "x", "parent": parent, "chunk": chunk}
        for parent in "ab"
        for chunk in range(3)
    ]
    write_retrieval_set(tmp_path / "probes" / "context", [(row, None if row["chunk"] == 0 else "q") for row in rows])
    (task,) = open_folder(tmp_path / "probes").tasks
    turned = reversed_task(task)
    assert (turned.name, turned.revision != task.revision) == ("context-reversed", True)

    def order(data):
        groups = context_groups(data, np.ones(len(data.documents), int), 8, 99)
        return [[data.document_ids[row] for row in group] for group in groups]

    assert order(task.load()) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert order(turned.load()) == [["a2", "a1", "a0"], ["b2", "b1", "b0"]]
    assert turned.load().documents == task.load().documents
