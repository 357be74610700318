"""Rates of TPU chips, their links and their hosts. Sources: Google Cloud's TPU pages (system architecture of each
version) and, for one-way link rates and the data-centre network, "How to Scale Your Model"
(jax-ml.github.io/scaling-book), chapter 2.
"""

import dataclasses
import math
import re

from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one TPU version: a chip, or one of the two cores that JAX sees of a tpu7x chip.

    Attributes:
      peak_flops: bfloat16 operations per second.
      cycles_per_second: clock rate of the compiler's cycle estimates.
      hbm_bytes_per_second: bandwidth of its memory.
      hbm_limit_bytes: memory that the compiler lets a program use.
      link_bytes_per_second: rate of one inter-chip link, one way.
      torus_axes: number of axes of the torus; a chip has two links along each.
      full_axis: smallest number of chips along an axis whose ends are connected.
      dcn_bytes_per_second: the chip's share of the host's link to the data-centre network, one way.
      host_bytes: memory of a host of four chips.
    """

    peak_flops: float
    cycles_per_second: float
    hbm_bytes_per_second: float
    hbm_limit_bytes: int
    link_bytes_per_second: float
    torus_axes: int
    full_axis: int
    dcn_bytes_per_second: float
    host_bytes: float


CHIPS = {
    "v5e": Chip(197e12, 1.5e9, 819e9, int(15.75 * 2**30), 4.5e10, 2, 16, 3.125e9, 192e9),
    "v5p": Chip(459e12, 1.75e9, 2765e9, int(95.74 * 2**30), 9e10, 3, 4, 6.25e9, 448e9),
    "v6e": Chip(918e12, 1.75e9, 1640e9, int(31.25 * 2**30), 9e10, 2, 16, 12.5e9, 720e9),
    "tpu7x": Chip(1153.5e12, 1.75e9, 3690e9, int(94.75 * 2**30), 9e10, 3, 4, 6.25e9, 960e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices, named `version:AxBxC` as in JAX."""

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
    def is_one_host(self) -> bool:
        """Whether it is a slice of eight chips that Google Cloud offers as one host; libtpu describes two of four."""
        return self.version in ("v5e", "v6e") and self.shape == (2, 4)

    @property
    def host_bytes(self) -> float:
        """Memory of one host; hosts of other sizes have as much for each chip."""
        return self.chip.host_bytes * min(math.prod(self.shape), 8 if self.is_one_host else 4) / 4

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of chips along each axis of one slice."""
        return tuple(map(int, self.name.partition(":")[2].split("x")))
