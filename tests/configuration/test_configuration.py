"""Recipes: how they are laid out, what is refused and in which words, what is written back."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol

import pytest

from pplx_jax.configuration import Table, load
from pplx_jax.configuration.table import PARTS, VERBS
from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Optimizer:
    peak: float
    decay: float = 0.1
    schedule: str | None = None


class Stage(Protocol):
    batch_size: int

    def loss(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class PairStage:
    batch_size: int = 8
    prefixes: tuple[int, ...] = ()

    def loss(self) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class Training:
    stage: Stage
    optimizer: Optimizer
    steps: int
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise BadInput(f"steps must be positive, got {self.steps}")


def run(workdir, stages: Sequence[Training], note="", model=None, mesh: PairStage | None = None):
    """A verb."""


def other(workdir, k=3):
    """A verb without a recipe."""


TABLE = Table(
    (f"{__name__}:run", f"{__name__}:other"),
    (f"{__name__}:Optimizer", f"{__name__}:PairStage", f"{__name__}:Training", "no_such_module:Absent"),
)

STAGES = """\
Training.optimizer = @Optimizer()
Training.seed = %SEED
a/Training.stage = @PairStage()
a/Training.steps = %gin.REQUIRED
b/Training.stage = @PairStage()
b/PairStage.batch_size = 32  # twice as many
"""

RECIPE = """\
include 'gin/stages.gin'

SEED = 7
run.stages = [@a/Training(), @b/Training()]
a/Training.steps = 600
b/Training:
    steps = 300
Optimizer.peak = 1e-3
b/Optimizer.peak = 5e-4
"""


@pytest.fixture
def write(tmp_path):
    """Writes gin/stages.gin and gin/recipe.gin, and loads the recipe with tmp_path as the gin root."""

    def load_recipe(recipe=RECIPE, *params, stages=STAGES):
        (tmp_path / "gin").mkdir(exist_ok=True)
        (tmp_path / "gin/stages.gin").write_text(stages)
        (tmp_path / "gin/recipe.gin").write_text(recipe)
        return load(["gin/recipe.gin"], params, search_paths=[tmp_path], table=TABLE)

    return load_recipe


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(BadInput) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestScopes:
    def test_a_stage_is_a_scope(self, write):
        first, second = write().arguments["run"]["stages"]
        assert first == Training(PairStage(8), Optimizer(1e-3), steps=600, seed=7)
        assert second == Training(PairStage(32), Optimizer(5e-4), steps=300, seed=7)
        assert type(first) is Training and type(first.optimizer) is Optimizer

    def test_params_come_last_and_may_set_macros(self, write):
        params = ("SEED=9", "Optimizer.peak=1.0", "b/Training.steps=6")
        first, second = write(RECIPE, *params).arguments["run"]["stages"]
        assert (first.seed, second.seed) == (9, 9)
        assert (first.steps, second.steps) == (600, 6)
        assert (first.optimizer.peak, second.optimizer.peak) == (1.0, 5e-4)  # a scoped one wins over a later unscoped

    def test_a_stage_left_out_by_a_param_is_no_mistake(self, write):
        config = write(RECIPE, "run.stages=[@a/Training()]")
        assert len(config.arguments["run"]["stages"]) == 1
        assert not [key for key in config.settings if key.startswith("b/")]

    def test_loads_do_not_leak_into_each_other(self, write):
        assert write(RECIPE, "b/Optimizer.decay=0.5").arguments["run"]["stages"][1].optimizer.decay == 0.5
        assert write().arguments["run"]["stages"][1].optimizer.decay == 0.1

    def test_references_inside_a_macro_are_built_in_its_scope(self, write):
        recipe = RECIPE + "run.model = %BEST\nBEST = @Optimizer()\nBEST/Optimizer.decay = 0.9\n"
        assert write(recipe).arguments["run"]["model"] == Optimizer(1e-3, decay=0.9)

    def test_nothing_at_all(self):
        assert load(table=TABLE).arguments == {}
        assert load([], ["other.k = 4"], table=TABLE).arguments == {"other": {"k": 4}}


class TestSearch:
    def test_from_any_folder(self, write, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        assert "a/Training.steps = 600  # gin/recipe.gin:5" in write().resolved()

    def test_the_current_folder_wins(self, tmp_path, monkeypatch):
        (tmp_path / "mine.gin").write_text("other.k = 8\n")
        monkeypatch.chdir(tmp_path)
        assert load(["mine.gin"], table=TABLE).arguments["other"]["k"] == 8

    def test_absolute_paths(self, tmp_path):
        (tmp_path / "mine.gin").write_text("other.k = 8\n")
        assert load([str(tmp_path / "mine.gin")], table=TABLE).arguments["other"]["k"] == 8


class TestRefusals:
    """Each message names the file, the line and what to do about it."""

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("Optimiser.peak = 1", "nothing is called Optimiser; did you mean Optimizer?"),
            ("run.model = @Optimiser()", "nothing is called Optimiser; did you mean Optimizer?"),
            ("Optimiser:\n    peak = 1", "nothing is called Optimiser; did you mean Optimizer?"),
            ("Optimizer.peek = 1", "Optimizer has no parameter peek; did you mean peak?"),
            ("Optimizer.xyz = 1", "Optimizer has no parameter xyz; it has peak, decay, schedule"),
            (
                "Training.seed = %SEDE",
                "Training.seed uses %SEDE, a macro that nothing defines; did you mean SEED?",
            ),
            ("SEDE = 3", "the macro SEDE is never used; did you mean SEED?"),
            ("c/Optimizer.peak = 1.0", "c/Optimizer.peak sets nothing: nothing refers to c/Optimizer"),
            (
                "Training.optimizer = @Optimizer",
                "Training.optimizer wants Optimizer, got @Optimizer; write @Optimizer()",
            ),
            ("run.model = @run()", "nothing is called run"),
            ("Optimizer.peak = '1e-3'", "Optimizer.peak wants float, got '1e-3'"),
            ("b/Training.steps = 2.5", "b/Training.steps wants int, got 2.5"),
            ("Optimizer.decay = %A\nA = 'much'", "Optimizer.decay wants float, got 'much'"),
            ("b/Training.steps = True", "b/Training.steps wants int, got True"),
            ("Optimizer.schedule = 3", "Optimizer.schedule wants str | None, got 3"),
            ("Training.optimizer = 5", "Training.optimizer wants Optimizer, got 5"),
            ("a/Training.optimizer = @PairStage()", "a/Training.optimizer wants Optimizer, got @PairStage()"),
            ("Optimizer.schedule = @PairStage()", "Optimizer.schedule wants str | None, got @PairStage()"),
            ("a/Training.stage = @Optimizer()", "a/Training.stage wants Stage, got @Optimizer()"),
            ("a/Training.stage = 'pair'", "a/Training.stage wants Stage, got 'pair'"),
            ("run.mesh = 'fsdp'", "run.mesh wants PairStage | None, got 'fsdp'"),
            ("run.mesh = @Optimizer()", "run.mesh wants PairStage | None, got @Optimizer()"),
            ("run.stages = @a/Training()", "run.stages wants Sequence[Training], got @a/Training()"),
            ("run.stages = [@a/Training(), 3]", "run.stages wants Sequence[Training], got [@a/Training(), 3]"),
            ("run.stages = [@b/Optimizer()]", "run.stages wants Sequence[Training], got [@b/Optimizer()]"),
            ("PairStage.prefixes = [4, 8]", "PairStage.prefixes wants tuple[int, ...], got [4, 8]"),
            (
                "Optimizer.peak = fast",
                "not a gin statement: `Optimizer.peak = fast`: Failed to parse token 'fast'",
            ),
            ("Optimizer.peak 3", "not a gin statement: `Optimizer.peak 3`: Couldn't parse statement"),
            ("Optimizer.peak =", "not a gin statement: `Optimizer.peak =`: Unable to parse value."),
            ("b/Training.steps = 0", "b/Training: steps must be positive, got 0"),
            ("Optimizer.schedule = %gin.REQUIRED", "a/Optimizer.schedule is required and no gin file"),
            ("Optimizer.schedule = %REQUIRED", "a/Optimizer.schedule is required and no gin file"),
            ("SEED = %gin.REQUIRED", "%SEED is required and no gin file or --gin_param sets it"),
            ("Optimizer.schedule = %M\nM = @Optimizer()", "%M contains itself"),
            ("include 'gin/recipe.gin'", "gin/recipe.gin includes itself"),
            ("include 'gin/stage.gin'", "no gin file gin/stage.gin; did you mean gin/stages.gin?"),
            ("import nowhere", "the module nowhere is not installed"),
            ("import os.nowhere as nowhere", "the module os.nowhere is not installed"),
            ("import os\nrun.model = @os.getcwdd()", "nothing is called os.getcwdd; did you mean os.getcwd?"),
            ("import os\nrun.model = @os.path()", "os.path is not a class or function"),
            ("import os\nimport math as os", "os is imported twice; rename one with `as`"),
            ("from os import nowhere", "the module os has nothing called nowhere"),
            ("from nowhere import Stage", "Stage needs the module nowhere, which is not installed"),
        ],
    )
    def test_line(self, write, line, message):
        text = refusal(write, RECIPE + line + "\n")
        place, _, rest = text.partition(": ")
        assert rest.startswith(message), text
        assert place in ("gin/recipe.gin:10", "gin/recipe.gin:11"), text

    @pytest.mark.parametrize("text", ["run.stages = [@a/Training(),\n", "b/Training:\nsteps = 3\n", "= 3\n"])
    def test_syntax(self, write, text):
        assert refusal(write, RECIPE + text).startswith("gin/recipe.gin:1")

    def test_a_missing_module_is_named(self, write):
        assert "needs the module no_such_module" in refusal(write, RECIPE + "run.model = @Absent()\nAbsent.x = 1")

    def test_a_misspelt_scope(self, write):
        text = refusal(write, RECIPE.replace("b/Optimizer", "bb/Optimizer"))
        assert text == (
            "gin/recipe.gin:9: bb/Optimizer.peak sets nothing: nothing refers to bb/Optimizer; "
            "did you mean b/Optimizer?"
        )

    def test_required_but_unset(self, write):
        text = refusal(write, RECIPE.replace("a/Training.steps = 600\n", ""))
        assert text == "gin/stages.gin:4: a/Training.steps is required and no gin file or --gin_param sets it"

    def test_without_default_and_unset(self, write):
        text = refusal(write, RECIPE.replace("Optimizer.peak = 1e-3\nb/", "b/"))
        assert text == "gin/stages.gin:1: a/Optimizer.peak has no default and nothing sets it"

    def test_a_macro_defined_in_an_included_file(self, write):
        text = refusal(write, RECIPE, stages=STAGES + "STEPS = 4\n")
        assert text == "gin/stages.gin:7: the macro STEPS is never used"

    def test_params_are_numbered(self, write):
        assert refusal(write, RECIPE, "SEED=1", "SEDE=2").startswith("--gin_param:2: the macro SEDE is never used")
        assert refusal(write, RECIPE, "b/Training.steps=0").startswith("--gin_param:1: b/Training: steps must")

    def test_a_param_that_changes_nothing(self, write):
        assert refusal(write, RECIPE, "SEED=1", "Training.steps=9") == (
            "--gin_param:2: Training.steps sets nothing: a/Training.steps (gin/recipe.gin:5), "
            "b/Training.steps (gin/recipe.gin:7) win; write those"
        )
        assert refusal(write, RECIPE, "b/Training.steps=9", "Training.steps=9").startswith("--gin_param:2: ")
        recipe = RECIPE + "Training.seed = %OTHER\nOTHER = 1\na/Training.seed = 2\nb/Training.seed = 3\n"
        assert refusal(write, recipe, "OTHER=4").startswith("--gin_param:1: OTHER sets nothing: a/Training.seed (")
        only_a = "run.stages=[@a/Training()]"
        assert refusal(write, RECIPE, only_a, "Training.steps=9") == (
            "--gin_param:2: Training.steps sets nothing: a/Training.steps (gin/recipe.gin:5) wins; write that"
        )

    def test_a_param_that_another_overrides_or_leaves_out_is_no_mistake(self, write):
        for params in (
            ("Training.steps=9", "a/Training.steps=8", "b/Training.steps=7"),
            ("a/Training.steps=9", "a/Training.steps=8"),
            ("run.stages=[@a/Training()]", "b/Training.steps=9"),
        ):
            assert write(RECIPE, *params).arguments["run"]["stages"][0].steps in (8, 600)
        write(RECIPE + "Optimizer.decay = 1.0\na/Optimizer.decay = 2.0\nb/Optimizer.decay = 3.0\n")  # nor in a file

    def test_a_missing_file(self, tmp_path):
        text = refusal(load, ["gin/recipes/nowhere.gin"], search_paths=[tmp_path], table=TABLE)
        assert text == "no gin file gin/recipes/nowhere.gin"

    def test_a_file_that_is_not_text(self, tmp_path):
        (tmp_path / "bad.gin").write_bytes(b"\xff\xfe\x00")
        assert refusal(load, ["bad.gin"], search_paths=[tmp_path], table=TABLE).startswith("cannot read bad.gin")


class TestResolved:
    def test_every_line_says_who_set_it(self, write):
        assert write(RECIPE, "b/Optimizer.decay=0.2").resolved() == (
            "SEED = 7  # gin/recipe.gin:3\n"
            "\n"
            "run.stages = [@a/Training(), @b/Training()]  # gin/recipe.gin:4\n"
            "run.note = ''  # default\n"
            "run.model = None  # default\n"
            "run.mesh = None  # default\n"
            "\n"
            "Training.optimizer = @Optimizer()  # gin/stages.gin:1\n"
            "Training.seed = %SEED  # gin/stages.gin:2\n"
            "\n"
            "a/Training.stage = @PairStage()  # gin/stages.gin:3\n"
            "a/Training.steps = 600  # gin/recipe.gin:5\n"
            "\n"
            "Optimizer.peak = 0.001  # gin/recipe.gin:8\n"
            "Optimizer.decay = 0.1  # default\n"
            "Optimizer.schedule = None  # default\n"
            "\n"
            "PairStage.batch_size = 8  # default\n"
            "PairStage.prefixes = ()  # default\n"
            "\n"
            "b/Training.stage = @PairStage()  # gin/stages.gin:5\n"
            "b/Training.steps = 300  # gin/recipe.gin:7\n"
            "\n"
            "b/Optimizer.peak = 0.0005  # gin/recipe.gin:9\n"
            "b/Optimizer.decay = 0.2  # --gin_param:1\n"
            "\n"
            "b/PairStage.batch_size = 32  # gin/stages.gin:6\n"
        )

    def test_it_loads_to_the_same_recipe(self, write, tmp_path):
        config = write(RECIPE, "run.stages=[@b/Training(), @a/Training()]", "run.note='two\\nlines # and %all'")
        (tmp_path / "config.gin").write_text(config.resolved())
        again = load([str(tmp_path / "config.gin")], table=TABLE)
        assert again.arguments == config.arguments
        assert again.fingerprint == config.fingerprint
        assert [line.partition("  # ")[0] for line in again.resolved().splitlines()] == [
            line.partition("  # ")[0] for line in config.resolved().splitlines()
        ]

    def test_imports_are_kept(self, write, tmp_path):
        config = write(RECIPE + "from fractions import Fraction\nrun.model = @Fraction()\nFraction.numerator = 3\n")
        assert config.resolved().startswith("from fractions import Fraction  # gin/recipe.gin:10\n\nSEED")
        assert config.arguments["run"]["model"] == 3
        (tmp_path / "config.gin").write_text(config.resolved())
        assert load([str(tmp_path / "config.gin")], table=TABLE).fingerprint == config.fingerprint

    def test_fingerprint_is_of_what_is_asked_for(self, write):
        recipe = write()
        assert write(RECIPE.replace("SEED", "S"), stages=STAGES.replace("SEED", "S")).fingerprint == recipe.fingerprint
        assert write("# a comment\n" + RECIPE, "Optimizer.decay=0.1").fingerprint == recipe.fingerprint
        assert write(RECIPE, "Optimizer.decay=0.2").fingerprint != recipe.fingerprint
        assert write(RECIPE, "SEED=8").fingerprint != recipe.fingerprint

    def test_fingerprint_leaves_out_where_it_runs_and_how_often_it_logs(self):
        recipe = load(["gin/recipes/quickstart_scratch.gin"])
        for changed in ("Mesh.data=8", "pair/Logging.every_steps=3", "Logging.profile_steps=(2, 3)"):
            assert load(["gin/recipes/quickstart_scratch.gin"], [changed]).fingerprint == recipe.fingerprint, changed
        for changed in ("pair/Training.steps=3", "Training.packing_groups=2", "run.seed=4"):
            assert load(["gin/recipes/quickstart_scratch.gin"], [changed]).fingerprint != recipe.fingerprint, changed

    def test_settings_expand_macros_and_name_the_line(self, write):
        settings = write(RECIPE, "b/Training.steps=5").settings
        assert settings["b/Training.steps"] == ("5", "--gin_param:1")
        assert settings["b/Training.seed"] == ("7", "gin/stages.gin:2")
        assert settings["b/Optimizer.decay"] == ("0.1", "default")


def test_the_projects_table_names_each_thing_once():
    names = [path.partition(":")[2] for path in (*VERBS, *PARTS)]
    assert len(set(names)) == len(names)
    assert all(path.startswith("pplx_jax.") for path in (*VERBS, *PARTS))
    assert all(callable(Table().target(name)) for name in names)


def test_only_this_package_imports_gin():
    package = pathlib.Path(__file__).parents[2] / "pplx_jax"
    users = {
        str(path.relative_to(package).parent)
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import gin", "from gin"))
    }
    assert users == {"configuration"}
