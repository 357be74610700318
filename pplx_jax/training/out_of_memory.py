"""Explains that a device has run out of memory: what fills it, and which settings need less."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pplx_jax.core.errors import Failed
from pplx_jax.core.parameter_trees import named_leaves
from pplx_jax.parallel.model_info import bytes_on_chip
from pplx_jax.training.settings import Training
from pplx_jax.training.train_state import TrainState

_GIB = 2**30
_LARGEST = 5  # arrays that the message names


class OutOfMemory(Failed):
    """A device has run out of memory, while compiling a step or while running it."""


@dataclasses.dataclass
class DeviceMemory:
    """What a stage puts on its devices, as far as it is known.

    Attributes:
      state: its arrays, or their shapes and shardings.
      batch: the arrays of the latest batch, or their shapes and shardings.
      temporary_bytes: of the compiled step, on a device.
    """

    state: TrainState
    batch: Any = None
    temporary_bytes: int | None = None


def less_memory(training: Training, mesh_sizes: Mapping[str, int], sequences: int, state_dominates: bool) -> list[str]:
    """Returns the changes with which a step needs less memory, the cheapest first.

    Args:
      training: the stage.
      mesh_sizes: size of each mesh axis.
      sequences: number of sequences in a batch.
      state_dominates: whether parameters and optimizer fill most of a device.
    """
    stage, name, found = training.stage, type(training.stage).__name__, []
    if state_dominates and mesh_sizes["data"] > 1:
        found.append("move devices from Mesh.data to Mesh.fsdp: parameters and optimizer are spread over the latter")
    if hasattr(stage, "microbatches"):
        cost = "" if stage.predicts_tokens else " (one more forward pass)"
        found.append(f"compute a batch in more parts: {name}.microbatches={2 * stage.microbatches}{cost}")
    if training.remat_policy:
        setting = f"{stage.name}/Training.remat_policy=()"
        found.append(f"save fewer activations: {setting} (the backward pass recomputes them)")
    if sequences // max(mesh_sizes["slice"] * mesh_sizes["data"] * mesh_sizes["fsdp"], 1) <= 1:
        found.append("a device has one sequence already: share its tokens, Mesh.sequence (the preset long_context)")
    found.append(
        "share each product: Mesh.tensor (the preset fsdp_tensor); or take more devices, or a smaller batch "
        f"({name}.batch_size, in a new workdir)"
    )
    return found


@contextlib.contextmanager
def explained(training: Training, mesh: jax.sharding.Mesh, memory: DeviceMemory) -> Iterator[None]:
    """Raises `OutOfMemory` in place of XLA's error within a `with` block."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(_message(str(error), training, mesh, memory)) from error


def _message(said: str, training: Training, mesh: jax.sharding.Mesh, memory: DeviceMemory) -> str:
    state = memory.state
    parts = {"parameters": state.params, "average": state.ema, "optimizer": state.optimizer, "batch": memory.batch}
    parts = {part: named_leaves(tree) for part, tree in parts.items() if tree is not None}
    totals = {part: sum(map(bytes_on_chip, leaves.values())) for part, leaves in parts.items()}
    held = [f"{part} {_gib(total)}" for part, total in totals.items()]
    if memory.temporary_bytes is None:
        held.append("temporaries of the step unknown, it is not compiled")
    else:
        held.append(f"temporaries of the step {_gib(memory.temporary_bytes)}")
    arrays = [
        (bytes_on_chip(leaf), part, name, leaf) for part, leaves in parts.items() for name, leaf in leaves.items()
    ]
    largest = [
        f"{part} {name} {leaf.dtype}{list(leaf.shape)} {_gib(size)}"
        for size, part, name, leaf in sorted(arrays, key=lambda array: -array[0])[:_LARGEST]
    ]
    sequences = parts["batch"]["tokens"].shape[0] if "batch" in parts else 0
    of_state = sum(totals.values()) - totals.get("batch", 0)
    changes = less_memory(training, dict(mesh.shape), sequences, of_state > (memory.temporary_bytes or 0))
    return "\n".join(
        [
            f"{training.stage.name}: a device is out of memory: {_first_sentences(said)}",
            f"  A device holds: {', '.join(held)}.",
            f"  The largest arrays there: {'; '.join(largest)}.",
            "  To need less, in this order:",
            *(f"    {change}" for change in changes),
            "  Mesh, microbatches and remat_policy may change when the same workdir is resumed. `pplx-jax plan` "
            "computes the memory of a step without devices.",
        ]
    )


def _first_sentences(said: str) -> str:
    """Returns what the compiler or the allocator says, up to its table of buffers, in one line."""
    text = said.split("\n\n")[0].partition("RESOURCE_EXHAUSTED:")[2]
    return re.sub(r"\s+", " ", text).strip()[:400]


def _gib(size: float) -> str:
    return f"{size / _GIB:.3g} GiB"
