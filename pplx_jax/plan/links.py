"""Transfers between chips: bytes, links, and seconds at the links' rates."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from pplx_jax.plan.chips import Topology
from pplx_jax.plan.hlo import COLLECTIVES, Instruction, Module, Run

_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a device: its slice and its coordinates in the slice."""

    slice: int
    coords: tuple[int, ...]


@dataclasses.dataclass
class Transfer:
    """The collectives of one kind, link and group size in a step.

    Attributes:
      kind: the compiler's name of the collective.
      link: "ici" within a slice, "dcn" between slices.
      devices: number of devices in a group.
      count: number of executions.
      bytes: bytes that each chip receives over the link.
      seconds: time at the link's rate, without waiting.
      overlapped: whether the compiler runs it at the same time as products.
    """

    kind: str
    link: str
    devices: int
    count: float
    bytes: float
    seconds: float
    overlapped: bool


def first_group(text: str, devices: int) -> list[int]:
    """Returns the mesh indices of the devices in a collective's first group; all devices if it names no group."""
    if found := _MESH_GROUPS.search(text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        axes = re.findall(r"'(\w+)'", found.group(2))
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        index = tuple(slice(None) if name in axes else 0 for name in sizes)
        return ids[index].reshape(-1).tolist()
    if found := _IOTA_GROUPS.search(text):
        groups, shape, order = (tuple(int(size) for size in (part or "").split(",") if size) for part in found.groups())
        ids = np.arange(math.prod(shape)).reshape(shape)
        return (ids.transpose(order) if order else ids).reshape(-1)[: groups[-1]].tolist()
    if found := _LISTED_GROUP.search(text):
        return [int(place) for place in found.group(1).split(",")]
    if found := _PAIRS.search(text):
        return [int(found.group(1)), int(found.group(2))]
    return list(range(devices))


def received_bytes(kind: str, result_bytes: float, devices: int) -> float:
    """Returns the bytes that a chip receives in a collective with this result, by the ring algorithm."""
    if devices == 1:
        return 0.0
    share = (devices - 1) / devices
    return (
        result_bytes
        * {
            "all-gather": share,
            "all-reduce": 2 * share,
            "reduce-scatter": devices - 1.0,
            "all-to-all": share,
            "collective-permute": 1.0,
        }[kind]
    )


def _ici_rate(places: Sequence[Place], topology: Topology) -> float:
    """Returns the bytes per second that a chip receives over the torus axes that a group spans.

    An axis whose ends are connected counts in both directions.
    """
    rate = 0.0
    for axis, size in enumerate(topology.shape):
        if len({place.coords[axis] for place in places}) > 1:
            rate += topology.chip.link_bytes_per_second * (2 if size >= topology.chip.full_axis else 1)
    return rate or topology.chip.link_bytes_per_second


def transfers(
    kind: str, result_bytes: float, group: Sequence[Place], topology: Topology
) -> list[tuple[str, float, float]]:
    """Returns (link, bytes, seconds) of a collective: first within the slice, then the rest between slices."""
    slices = len({place.slice for place in group})
    within = [place for place in group if place.slice == group[0].slice]
    found = []
    if len(within) > 1:
        sent = received_bytes(kind, result_bytes, len(within))
        found.append(("ici", sent, sent / _ici_rate(within, topology)))
    if slices > 1:
        part = result_bytes if kind == "collective-permute" else result_bytes / max(len(within), 1)
        sent = received_bytes(kind, part, slices)
        found.append(("dcn", sent, sent / topology.chip.dcn_bytes_per_second))
    return found


def collectives(steps: Sequence[Run], places: Sequence[Place], topology: Topology) -> list[Transfer]:
    """Returns all transfers of a step, by kind and link. A collective split over several fusions counts once."""
    seen: set[tuple[str, str]] = set()
    totals: dict[tuple[str, str, int, bool], Transfer] = {}
    for run in steps:
        kind = next((name for name in COLLECTIVES if run.instruction.opcode in (name, f"{name}-start")), None)
        if kind is None:
            continue
        channel = re.search(r"channel_id=(\d+)", run.instruction.text)
        key = (channel.group(1) if channel else run.instruction.name, kind)
        if key in seen:
            continue
        seen.add(key)
        group = [places[place] for place in first_group(run.instruction.text, len(places))]
        overlapped = run.instruction.opcode.endswith("-start") or "async_collective" in run.instruction.text
        size = run.instruction.largest_bytes if overlapped else run.instruction.bytes
        for link, sent, seconds in transfers(kind, size, group, topology):
            total = totals.setdefault(
                (kind, link, len(group), overlapped), Transfer(kind, link, len(group), 0, 0, 0, overlapped)
            )
            total.count += run.times
            total.bytes += sent * run.times
            total.seconds += seconds * run.times
    return sorted(totals.values(), key=lambda total: -total.bytes)


def buffer_bytes(module: Module) -> int:
    """Returns the largest number of bytes of collectives' results that are alive at the same time in a computation.

    This is an estimate: a result is alive from its instruction to its last use, in the order of the schedule.
    """
    return max((_alive(instructions) for instructions in module.values()), default=0)


def _alive(instructions: Sequence[Instruction]) -> int:
    last = {name: place for place, each in enumerate(instructions) for name in each.operands}
    changes: dict[int, int] = {}
    for place, each in enumerate(instructions):
        if not each.opcode.startswith(COLLECTIVES) and not each.name.startswith("async-collective-start"):
            continue
        if each.opcode.endswith("-done"):
            continue
        done = each.name.replace("-start", "-done")
        stop = max(last.get(each.name, place), last.get(done, place))
        changes[place] = changes.get(place, 0) + each.largest_bytes
        changes[stop] = changes.get(stop, 0) - each.largest_bytes
    return max(itertools.accumulate(changes[place] for place in sorted(changes)), default=0)
