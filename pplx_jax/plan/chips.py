"""What a TPU chip and its links do a second. Sources: Google Cloud's TPU pages (system architecture of each version)
and "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapter 2, for links one way and the data-centre network.
"""

import dataclasses
import re

from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip of a version.

    Attributes:
      peak_flops: bfloat16 operations a second.
      cycles_per_second: of the unit that the compiler estimates in.
      hbm_bytes_per_second: to its own memory.
      hbm_limit_bytes: what a program may use, as the compiler enforces it.
      link_bytes_per_second: one inter-chip link, one way.
      torus_axes: axes of its torus; a chip has two links along each.
      full_axis: chips along an axis from which on its ends are joined.
      dcn_bytes_per_second: its share of the host's link to the data-centre network, one way.
    """

    peak_flops: float
    cycles_per_second: float
    hbm_bytes_per_second: float
    hbm_limit_bytes: int
    link_bytes_per_second: float
    torus_axes: int
    full_axis: int
    dcn_bytes_per_second: float


CHIPS = {
    "v5e": Chip(197e12, 1.5e9, 819e9, int(15.75 * 2**30), 4.5e10, 2, 16, 3.125e9),
    "v5p": Chip(459e12, 1.75e9, 2765e9, int(95.74 * 2**30), 9e10, 3, 4, 6.25e9),
    "v6e": Chip(918e12, 1.75e9, 1640e9, int(31.25 * 2**30), 9e10, 2, 16, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several: `version:AxBxC`, as JAX names it."""

    name: str
    num_slices: int = 1

    def __post_init__(self):
        if (
            self.version not in CHIPS
            or not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*){1,2}", self.name)
            or self.num_slices < 1
        ):
            raise BadInput(
                f"topology {self.name!r} in {self.num_slices} slices is none; give --topology as VERSION:SIZE, the "
                f"version one of {', '.join(CHIPS)}, such as v5e:16x16 or v5p:4x4x8, and --num_slices of 1 or more"
            )

    def __str__(self) -> str:
        return self.name if self.num_slices == 1 else f"{self.num_slices} x {self.name}"

    @property
    def version(self) -> str:
        return self.name.partition(":")[0]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.version]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each axis of one slice."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))
