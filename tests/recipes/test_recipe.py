"""A whole recipe through the command line: its outputs, resuming, the same result for a seed, and refused inputs."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import image, tiny
from helpers.python_code import write_packages
from helpers.small_recipe import SCORES, STAGES, STEPS, command

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.table_maker import table_maker
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.recipes.recipe import train_stage
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Training
from pplx_jax.training.train_stage import FINISHED

pytestmark = pytest.mark.slow

PRECISIONS = {"float", "int8", "binary"}
PROBED = ("open", "close")  # methods


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Also classes of the held-out package, for the probe of context."""
    root = write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))
    methods = "".join(f"    def {name}(self, path):\n        return self.index.{name}(path)\n\n" for name in PROBED)
    classes = (f"class {name}Reader(Reader):\n    index = None\n\n{methods}" for name in ("Disk", "Queue", "Stack"))
    (root / "gamma" / "classes.py").write_text("\n\n".join(classes), encoding="utf-8")
    return root


def complaint(arguments, capsys) -> str:
    """The one line a refused command says."""
    assert cli.main(arguments) == cli.BAD_INPUT
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pplx-jax: error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def finished(packages, tmp_path_factory):
    """A workdir whose run was told to stop before the first stage, then after the second, and then went through.

    Its first starts have other settings for the phases that they do not reach.
    """
    workdir = tmp_path_factory.mktemp("run") / "run"
    later = (
        "triplet/Training.steps=9",
        "contextual/Training.packing_groups=2",
        "Mining.negatives=1",
        "Merge.weight=1.0",
    )
    assert cli.main([*command(packages, workdir, *later, "PairStage.batch_size=8"), "--until=data"]) == cli.DONE
    assert {path.name for path in (workdir / "data" / "tokens").iterdir()} == {"diffusion", "pair", "contextual"}
    assert {path.name for path in workdir.iterdir()} == {"config.gin", "data", "phases", "recipe.json"}
    assert cli.main([*command(packages, workdir, *later), "--until=pair"]) == cli.DONE
    assert (workdir / "phases" / "evaluate_pair.json").exists() and (workdir / "report.html").exists()
    assert "merged" not in json.loads((workdir / "results.json").read_text())
    assert not (workdir / "contextual").exists() and not (workdir / "export").exists()
    shutil.copytree(workdir, workdir.with_name("stopped"))
    assert cli.main(command(packages, workdir)) == cli.DONE
    return workdir


def test_a_run_leaves_scores_models_exports_an_index_and_a_report(finished):
    results = json.loads((finished / "results.json").read_text())
    for name in SCORES[1:]:
        for precision in PRECISIONS:
            assert results[name][precision].keys() == {"ndcg@10", "recall@100"}
            assert all(0.0 < value <= 1.0 for value in results[name][precision].values())
    assert results["bm25"].keys() == {"ndcg@10", "recall@100", "probes"}
    assert results["contextual"]["probes"]["context"].keys() == {*PRECISIONS, "with_context", "without_context"}
    for name in ("bm25", "pair", "merged"):
        assert results[name]["probes"]["context"].keys() == (
            {"ndcg@10", "recall@100"} if name == "bm25" else PRECISIONS
        )
    assert [(row["of"], row["over"]) for row in results["gains"] if row["set"] == "context"] == [
        ("pair", "diffusion"),
        ("contextual", "pair"),
        ("contextual, in context", "contextual, alone"),
        ("triplet", "pair"),
        *(("merged", other) for other in ("contextual", "triplet", "bm25")),
    ]
    assert "masked_tokens" not in results["pair"]
    for rate in ("0.15", "0.5"):
        loss, accuracy = (results["diffusion"]["masked_tokens"][rate][name] for name in ("loss", "accuracy"))
        assert loss["change"] == pytest.approx(loss["after"] - loss["before"]) and loss["change"] != 0
        assert loss["low"] <= loss["change"] <= loss["high"] and 0 <= accuracy["after"] <= 1
    gain = next(row for row in results["gains"] if row["of"] == "pair" and row["set"] == "evaluation")
    change = results["pair"]["int8"]["ndcg@10"] - results["diffusion"]["int8"]["ndcg@10"]
    assert gain["ndcg@10"] == pytest.approx(change, abs=1e-5) and gain["low"] < change < gain["high"]
    assert results["contextual"]["with_context"] != results["contextual"]["without_context"]
    assert {"corpus", "vocabulary", "tokenize", *STAGES, "mine", "merge", "export"} <= results["seconds"].keys()
    for stage in STAGES:
        rows = read_metrics(finished / stage / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for stage in ("pair", "contextual"):
        rows = read_metrics(finished / stage / "metrics.jsonl")
        # The evaluation at the last step, on the whole set, which is small, is that of the finished stage.
        for metric in ("ndcg@10", "recall@100"):
            assert rows[-1][f"eval/evaluation/{metric}"] == pytest.approx(results[stage]["int8"][metric])
        if stage == "pair":
            assert rows[-1]["eval/loss/mean"] > 0 and "eval/loss/mean" not in rows[-2]
    in_context = results["contextual"]["with_context"]["int8"]["ndcg@10"]
    rows = read_metrics(finished / "contextual" / "metrics.jsonl")
    assert rows[-1]["eval/evaluation/with_context/ndcg@10"] == pytest.approx(in_context)
    for kind in ("v1", "context_v1"):
        assert (finished / "export" / kind / "model.safetensors").stat().st_size > 0
    page = (finished / "report.html").read_text()
    assert "</html>" in page and "Evaluation during training" in page
    assert "What each stage adds" in page and "Masked tokens" in page


def test_a_finished_run_is_not_done_again(finished, packages):
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    before = json.loads((finished / "results.json").read_text())
    assert cli.main(command(packages, finished)) == cli.DONE
    after = json.loads((finished / "results.json").read_text())
    assert {name: after[name] for name in SCORES} == {name: before[name] for name in SCORES}
    assert after["seconds"] == before["seconds"]
    rewritten = {path.name for path, at in files.items() if path.stat().st_mtime_ns != at}
    assert rewritten <= {"config.gin", "recipe.json", "results.json", "report.html"}


def test_the_index_answers_with_definitions_and_their_lines(finished, capsys):
    assert cli.main(["search", f"--index={finished / 'index'}", "read the file", "--k=3", "--json"]) == cli.DONE
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert len(hits) == 3 and all(hit["text"].startswith("def ") and hit["line"] > 0 for hit in hits)


def test_an_empty_query_is_refused(finished, capsys):
    assert "query" in complaint(["search", f"--index={finished / 'index'}", "  "], capsys)


@pytest.mark.long
def test_a_killed_run_ends_in_the_image_as_an_uninterrupted_one_does(finished, packages, tmp_path):
    """What comes after the kill has only the packages that the image of the pods has: none of the phases needs more."""
    workdir = tmp_path / "run"
    shutil.copytree(finished.with_name("stopped"), workdir)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-m", "pplx_jax", *command(packages, workdir)]
    victim = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not read_metrics(workdir / "contextual" / "metrics.jsonl"):
        assert victim.poll() is None, victim.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (workdir / "phases" / "contextual.json").exists()

    done = image.run_in_the_image(command(packages, workdir))
    assert done.returncode == cli.DONE, done.stderr
    scores = [json.loads((folder / "results.json").read_text()) for folder in (finished, workdir)]
    assert {name: scores[0][name] for name in SCORES} == {name: scores[1][name] for name in SCORES}
    for stage in STAGES:
        one, two = (read_metrics(folder / stage / "metrics.jsonl") for folder in (finished, workdir))
        assert [(row["step"], row["loss"]) for row in one] == [(row["step"], row["loss"]) for row in two]
    for folder in (*STAGES, "merged"):
        assert_equal_params(finished / folder, workdir / folder)


def assert_equal_params(one: pathlib.Path, two: pathlib.Path) -> None:
    import jax

    jax.tree.map(np.testing.assert_array_equal, load_params(one), load_params(two))


def test_a_stage_to_stop_after_that_the_recipe_lacks(packages, tmp_path, capsys):
    assert "--until merge" in complaint([*command(packages, tmp_path / "run"), "--until=merge"], capsys)
    assert not (tmp_path / "run").exists()


def test_a_warm_up_of_the_last_stage_is_refused_before_the_first(packages, tmp_path, capsys):
    said = complaint(command(packages, tmp_path / "run", f"triplet/Optimizer.warmup_steps={STEPS}"), capsys)
    assert f"warmup={STEPS} does not fit in steps={STEPS}; warm up for fewer steps" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_workdir(packages, tmp_path, capsys, place):
    (tmp_path / "file").touch()
    assert "file is in the way and no folder" in complaint(command(packages, tmp_path / place), capsys)


def test_a_stage_does_not_start_from_one_that_is_not_finished(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path / "data")
    tiny.tiny_tables(tmp_path / "data" / "tokens", vocabulary)
    stages = [Training(tiny.STAGES[name], tiny.OPTIMIZER, steps=1) for name in ("diffusion", "pair")]
    recipe = {"stages": stages, "model": tiny.tiny_config(vocabulary)}
    train_stage(tmp_path, "diffusion", "", **recipe)
    (tmp_path / "diffusion" / FINISHED).rename(tmp_path / "kept")
    with pytest.raises(BadInput, match="diffusion is not finished; run train --stage diffusion first"):
        train_stage(tmp_path, "pair", "", **recipe)
    assert not (tmp_path / "pair").exists()
    (tmp_path / "kept").rename(tmp_path / "diffusion" / FINISHED)
    assert train_stage(tmp_path, "pair", "", **recipe)["steps"] == 1


def test_another_table_of_as_many_examples_is_refused(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path / "data")
    folder = tmp_path / "data" / "tokens"
    tiny.tiny_tables(folder, vocabulary)
    stages = [Training(tiny.STAGES["diffusion"], tiny.OPTIMIZER, steps=1)]
    recipe = {"stages": stages, "model": tiny.tiny_config(vocabulary)}
    first = train_stage(tmp_path, "diffusion", "", **recipe)
    tiny.tiny_tables(folder, vocabulary)
    assert train_stage(tmp_path, "diffusion", "", **recipe) == first
    tokens = TokenTable.open(folder / "diffusion")["tokens"]
    changed = Ragged(np.where(np.arange(len(tokens.values)) == 7, 5, tokens.values), tokens.offsets)
    write_table(folder / "diffusion", "text", vocabulary, {"tokens": changed})
    for what in ("the finished stage", "the checkpoint of step 1"):
        with pytest.raises(BadInput, match=f"{what} has other settings: tables '.*', this recipe has"):
            train_stage(tmp_path, "diffusion", "", **recipe)
        (tmp_path / "diffusion" / FINISHED).unlink(missing_ok=True)


def test_lengths_that_the_tables_were_not_made_with_are_refused(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path / "data")
    with table_maker(tmp_path / "data/tokens/diffusion", "text", vocabulary, Lengths(20, 5, 9, 6, 4)) as maker:
        texts = Ragged.from_arrays([np.arange(4, 24)] * 64)
        maker.add({"tokens": texts, "language": np.array([""] * 64)})
    stages = [Training(tiny.STAGES["diffusion"], tiny.OPTIMIZER, steps=1)]
    recipe = {"stages": stages, "model": tiny.tiny_config(vocabulary)}
    with pytest.raises(BadInput, match=r"was made with Lengths.text=20, this recipe has 24; set it back"):
        train_stage(tmp_path, "diffusion", "", **recipe, lengths=Lengths(24, 5, 9, 6, 4))
    assert not (tmp_path / "diffusion").exists()
    assert train_stage(tmp_path, "diffusion", "", **recipe, lengths=Lengths(20, 6, 9, 6, 4))["steps"] == 1


@pytest.mark.parametrize(
    "binding, phase, setting, removed",
    [
        ("SEED=1", "vocabulary", "seed 0, this recipe has 1", "phases/vocabulary.json"),
        ("PythonCorpus.max_characters=1000", "corpus", "PythonCorpus.max_characters 1200", "data/corpus"),
        ("pair/Training.steps=5", "pair", "Training.steps 4, this recipe has 5", "pair"),
        ("Merge.weight=0.9", "merge", "Merge.weight 0.5, this recipe has 0.9", "merged"),
    ],
)
def test_other_settings_of_a_finished_phase_are_refused(finished, packages, capsys, binding, phase, setting, removed):
    before = (finished / "results.json").read_bytes()
    said = complaint(command(packages, finished, binding), capsys)
    assert f"{finished}: the finished phase {phase} has other settings: {setting}" in said
    named = said.partition("or remove ")[2].partition(" to run")[0].split()
    assert str(finished / removed) in named and all(pathlib.Path(path).exists() for path in named)
    assert (phase == "merge") == (str(finished / "triplet") not in named)
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "binding, words",
    [
        ("PythonCorpus.roots=('/nowhere',)", "/nowhere"),
        ("PythonCorpus.held_out=('nothing',)", "held_out"),
        ("Mesh.data=64", "64 devices"),
        ("PairStage.batchsize=4", "batchsize"),
        ("Lengths.query=0", "Lengths.query=0; set it to 1 or more"),
        ("Merge.weight=5.0", "Merge.weight=5.0; set it to"),
        ("VOCABULARRY=4", "VOCABULARRY"),
        ("VOCABULARY=100000", "smaller size"),
    ],
)
def test_bad_input_is_one_line_and_no_results(packages, tmp_path, capsys, binding, words):
    assert words in complaint(command(packages, tmp_path / "run", binding), capsys)
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list(tmp_path.rglob("*.partial"))
