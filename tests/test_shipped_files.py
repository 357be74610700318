"""What the repository ships: its gin files load, its models have the published sizes, its README names real things."""

import pathlib
import re

import pytest

from pplx_jax import cli
from pplx_jax.configuration import load
from pplx_jax.verbs import VERBS

ROOT = pathlib.Path(__file__).parent.parent
RECIPES = sorted((ROOT / "gin" / "recipes").glob("*.gin"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_recipes_to_check():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_resolved_text_is_the_same_recipe(recipe, tmp_path):
    config = load([str(recipe)])
    (tmp_path / "resolved.gin").write_text(config.resolved())
    assert load([str(tmp_path / "resolved.gin")]).fingerprint == config.fingerprint


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_writes_nothing(recipe, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert cli.main(["run", f"--gin_file={recipe}", f"--workdir={workdir}", "--dry_run"]) == cli.DONE
    assert str(workdir / "pair" / "checkpoints") in capsys.readouterr().out
    assert not workdir.exists()


@pytest.mark.parametrize("name, parameters", [("qwen3_0p6b", 596_049_920), ("qwen3_4b", 4_022_468_096)])
def test_a_model_has_as_many_parameters_as_published(name, parameters):
    recipe = ("run.model = @Qwen3Config()", "run.corpus = @PythonCorpus()", "run.lengths = @Lengths()")
    lengths = [f"Lengths.{field} = 1" for field in ("text", "query", "document", "chunk", "chunks")]
    config = load([f"gin/models/{name}.gin"], [*recipe, *lengths, "run.stages = []"])
    assert config.arguments["run"]["model"].parameters == parameters


def test_every_model_file_is_covered():
    named = set(re.findall(r'"(qwen3_\w+)"', pathlib.Path(__file__).read_text(encoding="utf-8"))) | {"nano"}
    assert {path.stem for path in (ROOT / "gin" / "models").glob("*.gin")} == named


def test_the_readme_names_files_that_exist():
    names = set(re.findall(r"`((?:pplx_jax|gin|launch|tests|benchmarks)/[\w./]*)`", README))
    assert names and [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_the_readme_names_commands_that_exist():
    verbs = set(re.findall(r"pplx-jax ([a-z][a-z-]*)", README))
    assert verbs and verbs <= {verb.name for verb in VERBS}
