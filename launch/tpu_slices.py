"""TPU slices by the names that Google Cloud gives them: hosts, chips a host, node labels, machine types."""

import dataclasses
import math
import re

from pplx_jax.core.errors import BadInput

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e: all there are
_CHIPS_A_HOST = 4  # of a slice of several hosts
_LABELS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
_MACHINES = {"v5e": "ct5lp-hightpu-{}t", "v5p": "ct5p-hightpu-{}t", "v6e": "ct6e-standard-{}t"}


@dataclasses.dataclass(frozen=True)
class TpuSlices:
    """One or more slices of a kind, joined by the data-centre network.

    Attributes:
      kind: "v5e", "v5p" or "v6e".
      topology: chips along each axis of a slice: "16x16", of v5p "4x4x8".
      num_slices: how many.

    Raises:
      BadInput: no such kind, or no such topology of it.
    """

    kind: str
    topology: str
    num_slices: int = 1

    def __post_init__(self):
        if self.kind not in _LABELS:
            raise BadInput(f"--tpu={self.kind}: the kinds are {', '.join(_LABELS)}")
        if self.kind == "v5p":
            if not re.fullmatch(r"\d+x\d+x\d+", self.topology) or not _is_v5p(self._axes):
                raise BadInput(
                    f"--topology={self.topology}: v5p has 2x2x1 and AxBxC in rising order, of 2 and 4 up to 64 chips "
                    "and of multiples of 4 above, such as 2x2x4 or 4x4x8"
                )
        elif self.topology not in _PLANE:
            raise BadInput(f"--topology={self.topology}: {self.kind} has {', '.join(_PLANE)}")
        if self.num_slices < 1:
            raise BadInput(f"--num_slices={self.num_slices}; set it to 1 or more")
        if self.num_slices > 1 and self.hosts == 1:
            raise BadInput(
                f"--num_slices={self.num_slices}: slices of one host are not joined; take {self.topology} once"
            )

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(int(axis) for axis in self.topology.split("x"))

    @property
    def chips(self) -> int:
        """Of one slice."""
        return math.prod(self._axes)

    @property
    def all_chips(self) -> int:
        """Of all slices."""
        return self.chips * self.num_slices

    @property
    def chips_per_host(self) -> int:
        """A slice of up to 8 chips of v5e and v6e is one host."""
        if self.kind == "v5p":
            return _CHIPS_A_HOST
        return self.chips if self.chips <= 8 else _CHIPS_A_HOST

    @property
    def hosts(self) -> int:
        """Of one slice."""
        return self.chips // self.chips_per_host

    @property
    def node_label(self) -> str:
        """The value of cloud.google.com/gke-tpu-accelerator."""
        return _LABELS[self.kind]

    @property
    def machine_type(self) -> str:
        """Of each host."""
        return _MACHINES[self.kind].format(self.chips_per_host)


def _is_v5p(axes: tuple[int, ...]) -> bool:
    if axes == (2, 2, 1):
        return True
    multiple = 4 if math.prod(axes) > 64 else 2
    return list(axes) == sorted(axes) and axes[0] >= 2 and all(axis % multiple == 0 for axis in axes)
