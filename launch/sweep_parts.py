"""The parts of a sweep. Each part is a list of points; a point is {binding: value}."""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pplx_jax.core.errors import BadInput

Point = dict[str, Any]


class Part(Protocol):
    """One factor of a sweep."""

    def points(self) -> list[Point]:
        """Returns the points, in an order that depends only on the fields."""
        ...


@dataclasses.dataclass(frozen=True)
class Product:
    """Every combination of values; the last binding varies fastest.

    Attributes:
      values: binding -> its values.
    """

    values: Mapping[str, Sequence[Any]]

    def __post_init__(self):
        _require_values(self.values)

    def points(self) -> list[Point]:
        """Returns every combination once."""
        combinations = itertools.product(*self.values.values())
        return [dict(zip(self.values, combination, strict=True)) for combination in combinations]


@dataclasses.dataclass(frozen=True)
class Zip:
    """Values that belong together: the first of each binding, then the second of each.

    Attributes:
      values: binding -> its values, the same number for every binding.
    """

    values: Mapping[str, Sequence[Any]]

    def __post_init__(self):
        _require_values(self.values)
        lengths = {name: len(values) for name, values in self.values.items()}
        if len(set(lengths.values())) > 1:
            raise BadInput(f"every binding of a Zip must have the same number of values, got {lengths}")

    def points(self) -> list[Point]:
        """Returns one point for each position in the lists of values."""
        return [dict(zip(self.values, row, strict=True)) for row in zip(*self.values.values(), strict=True)]


@dataclasses.dataclass(frozen=True)
class Random:
    """Independent random draws. More `draws` with the same seed start with the same points.

    Attributes:
      draws: number of points; equal points become one trial.
      seed: seed of the random numbers.
      uniform: binding -> (low, high), a float between them.
      log_uniform: binding -> (low, high), a positive float whose logarithm is uniform.
      integer: binding -> (low, high), an integer, both ends included.
      choice: binding -> values.
    """

    draws: int
    seed: int = 0
    uniform: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    log_uniform: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    integer: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    choice: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.draws < 1:
            raise BadInput(f"draws={self.draws}; draw 1 or more")
        _require_values(self.choice)
        for kind in ("uniform", "log_uniform", "integer"):
            for name, ends in getattr(self, kind).items():
                lowest = 0.0 if kind == "log_uniform" else -math.inf
                if len(ends) != 2 or not lowest < ends[0] <= ends[1]:
                    raise BadInput(f"{kind}: {name} needs (low, high) with {lowest:g} < low <= high, got {ends}")

    def points(self) -> list[Point]:
        """Returns `draws` points; floats are rounded to 3 digits to keep commands readable."""
        generator = random.Random(self.seed)
        return [self._draw(generator) for _ in range(self.draws)]

    def _draw(self, generator: random.Random) -> Point:
        # Only random() is used: Python promises the same sequence in every version for this method alone.
        point: Point = {}
        for name, (low, high) in self.uniform.items():
            point[name] = _three_digits(low + (high - low) * generator.random(), low, high)
        for name, (low, high) in self.log_uniform.items():
            point[name] = _three_digits(low * (high / low) ** generator.random(), low, high)
        for name, (low, high) in self.integer.items():
            point[name] = low + int((high - low + 1) * generator.random())
        for name, values in self.choice.items():
            point[name] = values[int(len(values) * generator.random())]
        return point


def _three_digits(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.3g}"), float(low)), float(high))


def _require_values(values: Mapping[str, Sequence[Any]]) -> None:
    for name, choices in values.items():
        if not isinstance(choices, list | tuple) or not choices:
            raise BadInput(f"values of {name} must be a list of one or more values, got {choices!r}")
