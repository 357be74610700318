"""What a user of gin expects of a recipe: classes of the user's own package, imports, references, constants."""

import sys
import textwrap

import gin
import pytest

from pplx_jax.configuration import Config, Table, load
from pplx_jax.core.errors import BadInput

STAGES = """
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class MyStage:
        batch_size: int = 8
        name: str = "mine"

        def __post_init__(self):
            if self.batch_size < 1:
                raise ValueError(f"batch_size must be positive, got {self.batch_size}")

    @dataclasses.dataclass(frozen=True)
    class Holder:
        inner: MyStage
        make: object = None

    def double(value: int) -> int:
        return 2 * value

    def many(**values):
        return values
"""
REGISTERED = """
    import enum
    import gin

    @gin.configurable
    class Decorated:
        def __init__(self, width=3, depth=gin.REQUIRED):
            self.width, self.depth = width, depth

    @gin.configurable("short_name", denylist=["closed"])
    def _with_a_long_name(x=1, closed=2):
        return x

    @gin.register
    class Registered:
        def __init__(self, width=3):
            self.width = width

    @gin.configurable
    def called_by_code(factor=1):
        return factor

    @gin.constants_from_enum
    class Colour(enum.Enum):
        RED = 1
"""


def run(model=None, seed: int = 0, other=None):
    """A verb."""


TABLE = Table((f"{__name__}:run",))


@pytest.fixture(scope="module", autouse=True)
def my_lab(tmp_path_factory):
    """A package outside the project."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "my_lab").mkdir()
    for name, text in (("__init__", ""), ("stages", STAGES), ("registered", REGISTERED)):
        (folder / "my_lab" / f"{name}.py").write_text(textwrap.dedent(text))
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture
def read(tmp_path):
    """Loads a recipe, checks that its resolved text gives the same one, and returns it."""

    def load_recipe(text, *params) -> Config:
        (tmp_path / "recipe.gin").write_text(text)
        config = load(["recipe.gin"], params, search_paths=[tmp_path], table=TABLE)
        (tmp_path / "resolved.gin").write_text(config.resolved())
        again = load(["resolved.gin"], search_paths=[tmp_path], table=TABLE)
        assert again.fingerprint == config.fingerprint
        assert load(["recipe.gin"], params, search_paths=[tmp_path], table=TABLE).resolved() == config.resolved()
        return config

    return load_recipe


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from my_lab.stages import MyStage", "MyStage"),
        ("from my_lab.stages import MyStage as Own", "Own"),
        ("from my_lab import stages", "stages.MyStage"),
        ("from my_lab import stages as s", "s.MyStage"),
        ("import my_lab.stages", "my_lab.stages.MyStage"),
        ("import my_lab.stages as s", "s.MyStage"),
        ("from __gin__ import dynamic_registration\nimport my_lab.stages", "my_lab.stages.MyStage"),
    ],
)
def test_a_class_of_the_users_package(read, statement, name):
    config = read(f"{statement}\nrun.model = @a/{name}()\na/{name}.batch_size = 3\n{name}.name = 'x'\n")
    built = config.arguments["run"]["model"]
    assert (type(built).__name__, built.batch_size, built.name) == ("MyStage", 3, "x")
    assert config.settings[f"a/{name}.batch_size"].value == "3"
    assert statement.splitlines()[-1] in config.resolved()


def test_two_spellings_are_one_class(read):
    config = read(
        "import my_lab.stages as s\nfrom my_lab.stages import MyStage\nrun.model = @s.MyStage()\nMyStage.name = 'x'\n"
    )
    assert config.arguments["run"]["model"].name == "x"


def test_what_a_class_refuses_is_told_at_the_binding(read):
    with pytest.raises(BadInput, match=r"^recipe.gin:3: a/MyStage: batch_size must be positive, got 0$"):
        read("from my_lab.stages import MyStage\nrun.model = @a/MyStage()\na/MyStage.batch_size = 0\n")


class TestRegisteredByItsModule:
    @pytest.mark.parametrize(
        ("statement", "name"),
        [
            ("import my_lab.registered", "Decorated"),
            ("import my_lab.registered", "registered.Decorated"),
            ("import my_lab.registered", "my_lab.registered.Decorated"),
            ("from my_lab.registered import Decorated", "Decorated"),
            ("import my_lab.registered", "Registered"),
            ("from my_lab.registered import Registered", "Registered"),
        ],
    )
    def test_a_class(self, read, statement, name):
        depth = f"{name}.depth = 5\n" * name.endswith("Decorated")
        config = read(f"{statement}\nrun.model = @a/{name}()\na/{name}.width = 7\n{depth}")
        assert config.arguments["run"]["model"].width == 7
        assert config.settings[f"a/{name}.width"] == ("7", "recipe.gin:3")

    def test_another_name(self, read):
        assert read("import my_lab.registered\nrun.model = @short_name()\nshort_name.x = 5\n").arguments["run"] == {
            "model": 5,
            "seed": 0,
            "other": None,
        }

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("run.model = @Decorated()", "recipe.gin:2: Decorated.depth has no default and nothing sets it"),
            ("short_name.closed = 1", "recipe.gin:2: short_name has no parameter closed; it has x"),
            ("Decorated.with = 1", "recipe.gin:2: Decorated has no parameter with; did you mean width?"),
        ],
    )
    def test_refusals(self, read, line, message):
        with pytest.raises(BadInput, match=message):
            read(f"import my_lab.registered\n{line}\n")

    def test_what_its_own_code_calls_takes_bindings(self, read):
        config = read(
            "import my_lab.registered\nrun.seed = 1\nb/called_by_code.factor = 4\ncalled_by_code.factor = 3\n"
        )
        assert config.settings["called_by_code.factor"] == ("3", "recipe.gin:4")
        assert sys.modules["my_lab.registered"].called_by_code() == 3
        with gin.config_scope("b"):
            assert sys.modules["my_lab.registered"].called_by_code() == 4

    def test_a_constant(self, read):
        text = "import my_lab.registered\nrun.model = %Colour.RED\n"
        assert read(text).arguments["run"]["model"] is sys.modules["my_lab.registered"].Colour.RED


class TestReferences:
    def test_uncalled(self, read):
        config = read(
            "from my_lab.stages import MyStage\nfrom my_lab.stages import Holder\n"
            "run.model = @Holder()\nHolder.inner = @MyStage()\n"
            "Holder.make = @b/MyStage\nb/MyStage.batch_size = 5\nMyStage.name = 'x'\n"
        )
        model = config.arguments["run"]["model"]
        made = model.make(name="y")
        assert (made.batch_size, made.name, model.inner.batch_size) == (5, "y", 8)
        assert isinstance(made, sys.modules["my_lab.stages"].MyStage)

    def test_uncalled_where_an_object_is_needed(self, read):
        text = "from my_lab.stages import MyStage\nfrom my_lab.stages import Holder\nrun.model = @Holder()\n"
        with pytest.raises(
            BadInput, match=r"recipe.gin:4: Holder.inner wants MyStage, got @MyStage; write @MyStage\(\)"
        ):
            read(text + "Holder.inner = @MyStage\n")

    def test_a_function(self, read):
        text = "from my_lab.stages import double\nrun.seed = @a/double()\na/double.value = %N\nN = 4\n"
        assert read(text).arguments["run"]["seed"] == 8

    def test_inside_containers(self, read):
        text = (
            "from my_lab.stages import MyStage\nrun.model = {'one': [@a/MyStage()], 'two': (@MyStage(), %N)}\nN = 2\n"
        )
        model = read(text + "a/MyStage.batch_size = 2\n").arguments["run"]["model"]
        assert (model["one"][0].batch_size, model["two"][0].batch_size, model["two"][1]) == (2, 8, 2)

    def test_any_keyword(self, read):
        assert read("from my_lab.stages import many\nrun.model = @many()\nmany.b = 2\nmany.a = 1\n").arguments["run"][
            "model"
        ] == {"a": 1, "b": 2}

    def test_a_singleton_is_built_once(self, read):
        config = read(
            "from my_lab.stages import MyStage\n"
            "run.model = @shared/gin.singleton()\nrun.other = @shared/gin.singleton()\n"
            "shared/gin.singleton.constructor = @MyStage\nMyStage.batch_size = 3\n"
        )
        one, other = (config.arguments["run"][name] for name in ("model", "other"))
        assert one is other and one.batch_size == 3

    def test_each_reference_builds_one_object(self, read):
        text = "from my_lab.stages import MyStage\nrun.model = @MyStage()\nrun.other = @MyStage()\n"
        arguments = read(text).arguments["run"]
        assert arguments["model"] == arguments["other"] and arguments["model"] is not arguments["other"]

    def test_nested_scopes(self, read):
        text = "from my_lab.stages import MyStage\nrun.model = @a/b/MyStage()\na/MyStage.name = 'x'\n"
        model = read(text + "a/b/MyStage.batch_size = 2\n").arguments["run"]["model"]
        assert (model.name, model.batch_size) == ("x", 2)


def test_gin_itself_reads_the_resolved_text(read):
    text = "import my_lab.registered\nshort_name.x = @a/Decorated()\na/Decorated.depth = %N\nN = 4\n"
    resolved = read(text).resolved()
    gin.clear_config()
    gin.parse_config(resolved)
    gin.finalize()
    assert gin.get_configurable("short_name")().depth == 4


def test_a_name_of_an_earlier_recipe_is_unknown_in_the_next(read):
    read("from my_lab.stages import MyStage\nrun.model = @MyStage()\n")
    with pytest.raises(BadInput, match="recipe.gin:1: nothing is called MyStage"):
        read("run.model = @MyStage()\n")
