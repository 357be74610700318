"""Expands a gin file such as those in `gin/sweeps/` into trials, each checked against its recipe.

    sweep.gin_files = ('gin/recipes/quickstart.gin',)    # --gin_file on the command line replaces them
    sweep.parts = [@rates/Product(), @sizes/Zip()]       # every pair of points
    sweep.constraints = ('{pair/Optimizer.warmup_steps} < {pair/Training.steps}',)

    rates/Product.values = {'pair/Optimizer.peak_learning_rate': (1e-3, 2e-3)}

A key is the left side of a binding, as in `--gin_param`; it may be the name of a macro. A value is a gin literal. A
string that begins with @, % or [@ is passed to gin unchanged: '[@pair/Training()]'.
"""

import ast
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.sweep_conditions import holds
from launch.sweep_parts import Point
from pplx_jax.configuration import Config, Table, load
from pplx_jax.configuration.statements import SEARCH_PATHS
from pplx_jax.core.errors import BadInput
from pplx_jax.core.spelling import nearest

TABLE = Table(
    ("launch.sweep:sweep",),
    ("launch.sweep_parts:Product", "launch.sweep_parts:Zip", "launch.sweep_parts:Random"),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      parameters: the bindings that the sweep sets, binding -> value.
      gin_files: the recipe.
      gin_params: all bindings, those of the sweep last.
      config: the recipe with these bindings.
    """

    parameters: Mapping[str, Any]
    gin_files: tuple[str, ...]
    gin_params: tuple[str, ...]
    config: Config


def sweep(parts: list, gin_files: tuple = (), constraints: tuple = ()) -> tuple[list[Point], tuple, tuple]:
    """Returns what a sweep file binds: all points, before the constraints; the recipe; the constraints."""
    points = [part.points() for part in parts]
    names = [list(of_part[0]) for of_part in points]
    twice = {name for one, other in itertools.combinations(names, 2) for name in {*one} & {*other}}
    if twice:
        raise BadInput(f"sweep.parts: {sorted(twice)[0]} is set by two parts; set it in one")
    joined = [{key: value for point in row for key, value in point.items()} for row in itertools.product(*points)]
    return joined, gin_files, constraints


def expand(sweep_file: str, gin_files: Sequence[str] = (), gin_params: Sequence[str] = ()) -> list[Trial]:
    """Returns the trials of a sweep without duplicates, in an order that depends only on the file.

    Args:
      sweep_file: a gin file, found like a recipe.
      gin_files: the recipe; if empty, that of the sweep.
      gin_params: bindings of every trial.

    Raises:
      BadInput: the file is not a sweep, a trial is not a valid recipe (the message gives the line of the sweep), a
        binding of the sweep is also in `gin_params`, or no trial is left.
    """
    swept = load([sweep_file], table=TABLE)
    if "sweep" not in swept.arguments:
        raise BadInput(f"{sweep_file} does not bind sweep.parts; see gin/sweeps for examples")
    points, own_files, constraints = sweep(**swept.arguments["sweep"])
    places = _Places(swept)
    files = tuple(gin_files) or tuple(own_files)
    if not files:
        raise BadInput(f"{sweep_file} has no recipe in sweep.gin_files; give one with --gin_file")
    for param in gin_params:
        key = param.partition("=")[0].strip()
        if points and key in points[0]:
            raise BadInput(f"--gin_param {key}: {places.of_key(key)} sweeps it; leave it out of one")

    trials: dict[str, Trial] = {}
    for point in points:
        config = _load(files, gin_params, point, places)
        if all(_satisfies(config, point, condition, places) for condition in constraints):
            params = (*gin_params, *_bindings(point))
            trials.setdefault(config.fingerprint, Trial(point, files, params, config))
    if not trials:
        raise BadInput(f"{sweep_file}: its constraints leave no trial of {len(points)}")
    return list(trials.values())


def _bindings(point: Point) -> list[str]:
    return [f"{key}={_gin_text(value)}" for key, value in point.items()]


def _gin_text(value: Any) -> str:
    return value if isinstance(value, str) and value.startswith(("@", "%", "[@")) else repr(value)


def _load(files: Sequence[str], gin_params: Sequence[str], point: Point, places: "_Places") -> Config:
    try:
        return load(files, (*gin_params, *_bindings(point)))
    except BadInput as error:
        keys = list(point)

        def told(match: re.Match[str]) -> str:
            number = int(match[1]) - len(gin_params) - 1
            return places.of_key(keys[number]) if number >= 0 else match[0]

        raise BadInput(re.sub(r"--gin_param:(\d+)", told, str(error))) from error


def _satisfies(config: Config, point: Point, condition: str, places: "_Places") -> bool:
    def value_of(key: str) -> Any:
        if key in point:
            return point[key]
        if key not in config.settings:
            raise BadInput(f"nothing is called {key}{nearest(key, [*point, *config.settings])}")
        return _literal(config.settings[key].value)

    try:
        return holds(condition, value_of)
    except BadInput as error:
        raise BadInput(f"{places.of_text(condition, 'sweep.constraints')}: {error}") from error


def _literal(text: str) -> Any:
    """Returns the value of a setting, or the text itself if it is not a literal (a reference)."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


class _Places:
    """Lines of the keys of a sweep. gin knows only the first line of a binding; a key may be some lines below."""

    def __init__(self, swept: Config):
        self._settings = swept.settings

    def of_key(self, key: str) -> str:
        """Returns file:line of the first dictionary with this key."""
        values = {name: _literal(setting.value) for name, setting in self._settings.items()}
        return self.of_text(key, *(name for name, value in values.items() if isinstance(value, dict) and key in value))

    def of_text(self, text: str, *names: str) -> str:
        """Returns file:line of a string inside one of the settings."""
        place = next((self._settings[name].place for name in names if name in self._settings), None)
        if place is None:
            return "the sweep"
        file, _, first = place.rpartition(":")
        path = next(folder / file for folder in SEARCH_PATHS if (folder / file).is_file())
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        found = (n for n in range(int(first), len(lines) + 1) if text in lines[n - 1])
        return f"{file}:{next(found, first)}"
