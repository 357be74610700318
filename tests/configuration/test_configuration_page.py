"""docs/configuration.md: its recipes load, and its messages are what the code says."""

import pathlib
import re
import sys

import pytest

from pplx_jax.configuration import load
from pplx_jax.core.errors import BadInput

PAGE = (pathlib.Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
FILES = {
    name: text for text in re.findall(r"^```\w*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for name in re.findall(r"\A# (\S+\.(?:gin|py))$", text, re.MULTILINE)
}  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    yield
    _forget()


def _forget():
    """Other tests have packages of this name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def test_its_recipes_load():
    run = load(["my_recipe.gin"]).arguments["run"]
    assert [training.steps for training in run["stages"]] == [210, 85]
    pair = load(["sharp.gin"]).arguments["run"]["stages"][1]
    assert (type(pair.stage).__name__, pair.stage.temperature) == ("SharpPairStage", 0.015)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Optimiser.b1 = 0.8", "nothing is called Optimiser; did you mean Optimizer?"),
        ("SEDE = 1", "the macro SEDE is never used; did you mean SEED?"),
        ("pear/Optimizer.b1 = 0.8", "pear/Optimizer.b1 sets nothing: nothing refers to pear/Optimizer"),
        ("pair/Training.steps = 2.5", "pair/Training.steps wants int, got 2.5"),
        ("pair/Training.steps = 0", "pair/Training: Training.steps=0; set it to 1 or more"),
    ],
)
def test_its_messages(line, message):
    assert f"{message}" in PAGE
    with pathlib.Path("my_recipe.gin").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(BadInput, match=r"^my_recipe.gin:\d+: ") as refused:
        load(["my_recipe.gin"])
    assert message in str(refused.value)


def test_the_places_it_shows():
    text = load(["my_recipe.gin"], ["pair/Training.steps=9"]).resolved()
    shown = [line for line in PAGE.splitlines() if re.search(r" = .*  # (?:default|my_recipe|--gin_param)", line)]
    assert len(shown) == 3
    for line in shown:
        assert f"{line}\n" in text
