"""Sweep files to trials: how many, in which order, none twice, within their constraints, and what is refused where."""

import itertools
import math
import pathlib

import hypothesis
import pytest
from hypothesis import strategies

from launch import sweep
from launch.sweep_conditions import holds
from launch.sweep_parts import Product, Random, Zip
from pplx_jax.core.errors import BadInput

ROOT = pathlib.Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "gin" / "sweeps").glob("*.gin"))
names = strategies.text("abcdef", min_size=1, max_size=3)
values = strategies.lists(strategies.integers(-5, 5), min_size=1, max_size=4, unique=True)


@hypothesis.given(strategies.dictionaries(names, values, min_size=1, max_size=3))
def test_a_product_is_every_combination_once(axes):
    points = Product(axes).points()
    assert len(points) == math.prod(len(choices) for choices in axes.values())
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert all(point[name] in choices for point in points for name, choices in axes.items())
    last = list(axes)[-1]
    assert [point[last] for point in points[: len(axes[last])]] == axes[last]  # it varies fastest


@hypothesis.given(strategies.integers(1, 6), strategies.sets(names, min_size=1, max_size=3))
def test_a_zip_keeps_what_belongs_together(length, keys):
    axes = {key: [f"{key}{number}" for number in range(length)] for key in sorted(keys)}
    points = Zip(axes).points()
    assert points == [{key: f"{key}{number}" for key in axes} for number in range(length)]


@hypothesis.given(
    strategies.integers(0, 99), strategies.integers(1, 20), strategies.integers(1, 20), strategies.floats(1e-6, 1.0)
)
def test_random_draws_stay_within_and_begin_alike(seed, draws, more, low):
    def part(count):
        return Random(
            draws=count,
            seed=seed,
            log_uniform={"rate": (low, 10 * low)},
            uniform={"share": (-low, low)},
            integer={"steps": (3, 5)},
            choice={"kind": ("a", "b")},
        )

    points = part(draws).points()
    assert points == part(draws).points() == part(draws + more).points()[:draws]
    for point in points:
        assert low <= point["rate"] <= 10 * low and -low <= point["share"] <= low
        assert point["steps"] in (3, 4, 5) and point["kind"] in ("a", "b")


def test_draws_cover_their_range_and_another_seed_gives_others():
    part = Random(draws=300, log_uniform={"rate": (1e-4, 1e-2)}, integer={"steps": (1, 3)})
    points = part.points()
    below = sum(point["rate"] < 1e-3 for point in points) / len(points)
    assert 0.4 < below < 0.6  # half of the logarithm's range
    assert {point["steps"] for point in points} == {1, 2, 3}
    assert points != Random(draws=300, seed=1, log_uniform={"rate": (1e-4, 1e-2)}, integer={"steps": (1, 3)}).points()


@hypothesis.given(strategies.integers(-4, 4), strategies.integers(-4, 4))
def test_a_condition_is_arithmetic(a, b):
    known = {"x/y.z": a, "m": b}
    assert holds("{x/y.z} < {m}", known.__getitem__) == (a < b)
    assert holds("2 * {x/y.z} + 1 >= {m} and not {m} == 0", known.__getitem__) == (2 * a + 1 >= b and b != 0)
    assert holds("{m} in (1, 2)", known.__getitem__) == (b in (1, 2))


@pytest.mark.parametrize("condition", ["open('x')", "{a}.real", "__import__", "{a}[0]", "{a} <", "lambda: 1", "a < 1"])
def test_a_condition_is_nothing_else(condition):
    with pytest.raises(BadInput, match="not a condition"):
        holds(condition, {"a": 1}.__getitem__)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Zip({"a": (1, 2), "b": (1,)}), "the same number of values"),
        (lambda: Product({"a": ()}), "one or more"),
        (lambda: Product({"a": "text"}), "one or more"),
        (lambda: Random(draws=0), "draws=0"),
        (lambda: Random(draws=1, log_uniform={"a": (0.0, 1.0)}), "0 < low"),
        (lambda: Random(draws=1, uniform={"a": (2.0, 1.0)}), "low <= high"),
    ],
)
def test_a_part_refuses_what_it_cannot_mean(make, words):
    with pytest.raises(BadInput, match=words):
        make()


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    """Writes a sweep of the quickstart's recipe, found by name from the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        lines = ["sweep.gin_files = ('gin/recipes/quickstart_scratch.gin',)", *text.strip().splitlines()]
        pathlib.Path("sweep.gin").write_text("\n".join(line.strip() for line in lines) + "\n")
        return "sweep.gin"

    return write


def test_parts_are_crossed_and_trials_carry_their_bindings(sweep_file):
    file = sweep_file("""
        sweep.parts = [@a/Product(), @b/Zip()]
        a/Product.values = {'SEED': (0, 1)}
        b/Zip.values = {'PairStage.temperature': (0.02, 0.05), 'pair/Optimizer.peak_learning_rate': (1e-3, 2e-3)}
    """)
    trials = sweep.expand(file, gin_params=["pair/Training.steps=9"])
    assert [tuple(trial.parameters.values()) for trial in trials] == [
        (seed, *pair) for seed, pair in itertools.product((0, 1), ((0.02, 1e-3), (0.05, 2e-3)))
    ]
    assert trials[-1].gin_params == (
        "pair/Training.steps=9",
        "SEED=1",
        "PairStage.temperature=0.05",
        "pair/Optimizer.peak_learning_rate=0.002",
    )
    for trial in trials:
        run = trial.config.arguments["run"]
        pair = run["stages"][1]
        assert (run["seed"], pair.steps) == (trial.parameters["SEED"], 9)
        assert pair.stage.temperature == trial.parameters["PairStage.temperature"]
    assert len({trial.config.fingerprint for trial in trials}) == 4


def test_trials_of_the_same_effect_are_tried_once(sweep_file):
    file = sweep_file("""
        sweep.parts = [@Product()]
        Product.values = {'Merge.weight': (0.5, 0.25, 0.5, 0.250)}
    """)
    assert [trial.parameters["Merge.weight"] for trial in sweep.expand(file)] == [0.5, 0.25]


def test_constraints_see_what_is_swept_and_what_is_not(sweep_file):
    file = sweep_file("""
        sweep.parts = [@Product()]
        sweep.constraints = ('{pair/Training.steps} >= 3 * {pair/Optimizer.warmup_steps}',)
        Product.values = {'pair/Training.steps': (30, 60, 90)}
    """)
    assert [trial.parameters["pair/Training.steps"] for trial in sweep.expand(file)] == [60, 90]  # warm-up is 20


def test_a_value_may_be_gin(sweep_file):
    file = sweep_file("""
        sweep.parts = [@Product()]
        Product.values = {'run.stages': ('[@pair/Training()]', '[@diffusion/Training(), @pair/Training()]')}
    """)
    stages = [trial.config.arguments["run"]["stages"] for trial in sweep.expand(file)]
    assert [[training.stage.name for training in one] for one in stages] == [["pair"], ["diffusion", "pair"]]


@pytest.mark.parametrize(
    "text, complaint",
    [
        (
            "Product.values = {'SEED': (0, 1),\n'PairStage.temprature': (1, 2)}",
            r"sweep.gin:4: .*did you mean temperature",
        ),
        ("Product.values = {\n'pear/Optimizer.b1': (0.8, 0.9)}", r"sweep.gin:4: pear/Optimizer.b1 sets nothing"),
        ("Product.values = {'SEDE': (0, 1)}", r"sweep.gin:3: the macro SEDE is never used"),
        ("Product.values = {'PairStage.temperature': ('hot',)}", r"sweep.gin:3: PairStage.temperature wants float"),
        ("Product.values = {'pair/Training.steps': (4, 0)}", r"sweep.gin:3: .*steps=0"),
        ("Product.valeus = {}", r"sweep.gin:3: .*valeus"),
        ("Product.values = {'SEED': ()}", r"sweep.gin:3: .*one or more"),
        ("Product.values = {'SEED': (0,)}\nsweep.constraints = ('{SEED} > 0',)", "leave no trial"),
        ("Product.values = {'SEED': (0,)}\nsweep.constraints = ('{SED} > 0',)", r"sweep.gin:4: nothing is called SED"),
        ("Product.values = {'SEED': (0,)}\nsweep.constraints = ('{SEED} > ',)", r"sweep.gin:4: not a condition"),
    ],
)
def test_a_mistake_is_told_at_its_line(sweep_file, text, complaint):
    with pytest.raises(BadInput, match=complaint):
        sweep.expand(sweep_file(f"sweep.parts = [@Product()]\n{text}"))


def test_a_binding_is_set_in_one_place(sweep_file):
    file = sweep_file("""
        sweep.parts = [@a/Product(), @b/Product()]
        a/Product.values = {'SEED': (0, 1)}
        b/Product.values = {'SEED': (2, 3)}
    """)
    with pytest.raises(BadInput, match="SEED is set by two parts"):
        sweep.expand(file)
    file = sweep_file("sweep.parts = [@Product()]\nProduct.values = {'SEED': (0, 1)}")
    with pytest.raises(BadInput, match="--gin_param SEED: sweep.gin:3 sweeps it"):
        sweep.expand(file, gin_params=["SEED=4"])


@pytest.mark.parametrize("file, count", [("pair_temperature_and_rate", 9), ("mask_normaliser", 6), ("merge_weight", 8)])
def test_a_shipped_sweep_has_as_many_trials_as_its_header_says(file, count):
    trials = sweep.expand(f"gin/sweeps/{file}.gin")
    assert len(trials) == count
    assert f": {count} trials." in (ROOT / "gin" / "sweeps" / f"{file}.gin").read_text().splitlines()[0]


def test_the_shipped_random_search_keeps_its_constraints():
    trials = sweep.expand("gin/sweeps/contrastive_random.gin")
    header = (ROOT / "gin" / "sweeps" / "contrastive_random.gin").read_text().splitlines()[0]
    assert f"of which {len(trials)} satisfy" in header
    for trial in trials:
        _, pair, contextual, _ = trial.config.arguments["run"]["stages"]
        assert contextual.optimizer.peak_learning_rate < pair.optimizer.peak_learning_rate
        assert 4 * pair.optimizer.warmup_steps <= pair.steps


def test_every_shipped_sweep_is_covered():
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    assert SWEEPS and all(f'"{path.stem}"' in text or f"/{path.stem}.gin" in text for path in SWEEPS)
