"""Which sources a stage reads, and when."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from pplx_jax.core.errors import BadInput

Batches = Literal["mixed", "one_source"]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which sources a stage reads, and how often.

    Attributes:
        weights: source -> relative weight. A source with `languages` divides its weight by theirs; SOURCE.LANGUAGE
            names one of them. Sources without a weight are not read. If empty, all sources are read, in proportion to
            their examples.
        temperature: T. Shares are proportional to weight^(1/T), so with T above 1 rare sources are read more often.
        batches: "mixed" mixes the sources in every batch; in "one_source" every batch comes from one source, and the
            shares are those of batches.
    """

    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0
    batches: Batches = "mixed"

    def __post_init__(self):
        if self.temperature <= 0:
            raise BadInput(f"Mixture.temperature={self.temperature} is not above 0")
        if self.batches not in ("mixed", "one_source"):
            raise BadInput(f"Mixture.batches={self.batches!r}: set it to mixed or one_source")
        if any(weight < 0 for weight in self.weights.values()) or (self.weights and not any(self.weights.values())):
            raise BadInput(f"Mixture.weights={self.weights}: give 0 or more each, and one above 0")

    def shares(self, examples: Mapping[str, int], table_weights: Mapping[str, float]) -> dict[str, float]:
        """Returns the share of every table that is read, by name. Shares sum to 1.

        Args:
            examples: table -> number of examples.
            table_weights: table SOURCE.LANGUAGE -> its weight among the tables of the source.

        Raises:
            BadInput: a weight names an unknown table.
        """
        weights: dict[str, float] = {}
        for name, weight in (self.weights or dict(examples)).items():
            if name in examples:
                parts = {name: 1.0}
            else:
                parts = {table: table_weights[table] for table in examples if table.startswith(f"{name}.")}
            if not parts:
                raise BadInput(f"Mixture.weights: no token files of {name!r}; there are {', '.join(sorted(examples))}")
            total = sum(parts.values())
            for table, part in parts.items():
                weights[table] = weights.get(table, 0.0) + weight * part / total
        tempered = {table: weight ** (1 / self.temperature) for table, weight in weights.items() if weight > 0}
        total = sum(tempered.values())
        return {table: value / total for table, value in sorted(tempered.items())}


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Several mixtures, one after another. A source that several of them name continues where it stopped.

    Attributes:
        mixtures: the mixtures in order.
        steps: number of steps of each but the last, which lasts until the stage ends.
    """

    mixtures: Sequence[Mixture]
    steps: Sequence[int]

    def __post_init__(self):
        if len(self.mixtures) != len(self.steps) + 1 or any(steps < 1 for steps in self.steps):
            raise BadInput(
                f"Curriculum.steps={tuple(self.steps)} of {len(self.mixtures)} mixtures: give the steps (1 or more) of "
                "each but the last"
            )


def phases(data: "Mixture | Curriculum") -> list[tuple[int, Mixture]]:
    """Returns (first step, mixture) of each part of a curriculum."""
    if isinstance(data, Mixture):
        return [(0, data)]
    starts = [sum(data.steps[:place]) for place in range(len(data.mixtures))]
    return list(zip(starts, data.mixtures, strict=True))
