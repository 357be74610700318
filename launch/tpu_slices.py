"""TPU slices by the names of Google Cloud: hosts, chips per host, node labels, machine types.

The values are those of Google's `xpk` 1.16 for v5e, v5p and v6e; its exact pins (urllib3<2.6, kubernetes==35) conflict
with ours, so it cannot be a dependency. One difference: a 2x4 slice is one host of 8 chips here, two of 4 chips there.
"""

import dataclasses
import math
import re

from pplx_jax.core.errors import BadInput

PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # all topologies of v5e and v6e
SMALL_V5P = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
_MAX_V5P_CHIPS, _MAX_V5P_AXIS = 8960, 256
_CHIPS_PER_HOST = 4  # in a slice of several hosts
_LABELS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
_MACHINES = {"v5e": "ct5lp-hightpu-{}t", "v5p": "ct5p-hightpu-{}t", "v6e": "ct6e-standard-{}t"}


@dataclasses.dataclass(frozen=True)
class TpuSlices:
    """One or more slices of a kind, joined by the data-centre network.

    Attributes:
      kind: "v5e", "v5p" or "v6e".
      topology: chips along each axis of a slice: "16x16", or "4x4x8" for v5p.
      num_slices: number of slices.

    Raises:
      BadInput: the kind, or this topology of it, does not exist.
    """

    kind: str
    topology: str
    num_slices: int = 1

    def __post_init__(self):
        if self.kind not in _LABELS:
            raise BadInput(f"--tpu={self.kind}: the kinds are {', '.join(_LABELS)}")
        if self.kind == "v5p":
            if not re.fullmatch(r"\d+x\d+x\d+", self.topology) or not self._is_v5p:
                raise BadInput(
                    f"--topology={self.topology}: v5p has {', '.join(SMALL_V5P)}, and AxBxC in rising order and "
                    f"multiples of 4, such as 4x4x8, up to {_MAX_V5P_CHIPS} chips"
                )
        elif self.topology not in PLANE:
            raise BadInput(f"--topology={self.topology}: {self.kind} has {', '.join(PLANE)}")
        if self.num_slices < 1:
            raise BadInput(f"--num_slices={self.num_slices}; set it to 1 or more")
        if self.num_slices > 1 and self.hosts == 1:
            raise BadInput(
                f"--num_slices={self.num_slices}: slices of one host cannot be joined; use one slice of {self.topology}"
            )

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(int(axis) for axis in self.topology.split("x"))

    @property
    def _is_v5p(self) -> bool:
        multiples = all(axis >= 4 and axis % 4 == 0 for axis in self._axes)
        large = multiples and self._axes[-1] <= _MAX_V5P_AXIS and self.chips <= _MAX_V5P_CHIPS
        return self.topology in SMALL_V5P or (large and list(self._axes) == sorted(self._axes))

    @property
    def chips(self) -> int:
        """Chips in one slice."""
        return math.prod(self._axes)

    @property
    def all_chips(self) -> int:
        """Chips in all slices."""
        return self.chips * self.num_slices

    @property
    def chips_per_host(self) -> int:
        """Chips on each host. A slice of up to 8 chips of v5e or v6e is a single host."""
        if self.kind == "v5p":
            return _CHIPS_PER_HOST
        return self.chips if self.chips <= 8 else _CHIPS_PER_HOST

    @property
    def hosts(self) -> int:
        """Hosts of one slice."""
        return self.chips // self.chips_per_host

    @property
    def node_label(self) -> str:
        """The value of cloud.google.com/gke-tpu-accelerator."""
        return _LABELS[self.kind]

    @property
    def machine_type(self) -> str:
        """The machine type of each host."""
        return _MACHINES[self.kind].format(self.chips_per_host)
