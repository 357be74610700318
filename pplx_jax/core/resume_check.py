"""Is this the same run? The one place that decides which settings may differ between two starts of it.

A finished phase, a finished stage and a checkpoint each keep the settings that they were computed with. A later start
compares its own settings with them and refuses a difference by name, unless the setting changes only where the run
executes, how often it logs and saves, or how much memory a step takes. Settings of phases that have not begun are free.
Another number of microbatches may also change the number of sequences in a batch, and so which few tokens are cut.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pplx_jax.core.errors import BadInput

# All fields of these classes may differ,
_FREE_CLASSES = frozenset({"Mesh", "Processes", "Checkpointing", "Logging", "Evaluation"})
# and these fields of any class: those that hold the classes above, those that trade memory for time, the kernel of
# attention, and the one that lets a failed stage go on: it changes nothing before the step that failed.
_FREE_FIELDS = frozenset(
    {
        *("mesh", "processes", "checkpointing", "logging", "evaluation"),
        *("remat_policy", "remat", "unroll", "microbatches", "attention_implementation", "skip_nonfinite"),
    }
)


def may_differ(setting: str) -> bool:
    """Returns whether a setting such as "pair/Logging.every_steps" may differ between two starts of one run."""
    owner, _, field = setting.rpartition("/")[2].partition(".")
    return owner in _FREE_CLASSES or field in _FREE_FIELDS


def settings_of(*parts: Any, **more: Any) -> dict[str, Any]:
    """Returns the settings of objects by name ("Training.steps"), as JSON gives them back, and `more`.

    The fields of a dataclass in a field have names of their own class ("Optimizer.b1"). A value that JSON cannot
    represent is compared by its text. Settings that may differ are left out.
    """
    found = dict(more)
    for name, value in (setting for part in parts for setting in _fields(part)):
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError:
            found[name] = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return found


def require_same(
    folder: pathlib.Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any], fix: str = ""
) -> None:
    """Compares the settings that both have; a setting that only one has is of another version of the code.

    Args:
      folder: where `what` is.
      what: was computed with `found`, in words.
      found: its settings.
      wanted: the settings of this start.
      fix: what else the user can do, for the end of the message.

    Raises:
      BadInput: a setting differs; the message names each that does.
    """
    differing = [name for name in wanted if name in found and found[name] != wanted[name]]
    if differing:
        told = "; ".join(f"{name} {found[name]!r}, this recipe has {wanted[name]!r}" for name in differing)
        raise BadInput(
            f"{folder}: {what} has other settings: {told}. Set them back, or choose a new --workdir to start again{fix}"
        )


def require_same_shapes(
    folder: object, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares the shapes of two sets of arrays by name.

    Raises:
      BadInput: an array is missing, left over or of another shape; the message names the first.
    """
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise BadInput(
            f"{folder} is of another model: {name} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here; use the same model, or choose a new --workdir"
        )


def _fields(part: Any) -> Iterator[tuple[str, Any]]:
    fields = [field.name for field in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else [*vars(part)]
    for field in fields:
        value = getattr(part, field)
        name = f"{type(part).__name__}.{field}"
        if may_differ(name):
            continue
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield name, value
