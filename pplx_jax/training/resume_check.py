"""What a stage computes, kept with its checkpoints, so that no other recipe goes on from them."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pplx_jax.configuration.table import is_changeable
from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.models.transformer import Qwen3Config

if TYPE_CHECKING:
    from pplx_jax.training.trainer import Training


def computed(training: "Training", config: Qwen3Config, seed: int) -> dict[str, Any]:
    """Settings of the stage by name ("Training.steps"), as JSON gives them back.

    What may differ between two starts (`configuration.table.CHANGEABLE`) and what JSON cannot say are left out.
    """
    said: dict[str, Any] = {"seed": seed, "data": repr(training.data or Mixture())}
    for part in (training, training.stage, training.optimizer, config):
        for name, value in _settings(part):
            try:
                said[name] = json.loads(json.dumps(value))
            except TypeError:
                continue
    return said


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        name, value = f"{type(part).__name__}.{field.name}", getattr(part, field.name)
        if not is_changeable(name):
            yield name, value


def require_same(folder: pathlib.Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Settings that only one of the two has are those of another version, and pass.

    Raises:
      BadInput: `what` in the folder was computed by other settings.
    """
    differing = [name for name in wanted if name in found and found[name] != wanted[name]]
    if differing:
        told = "; ".join(f"{name} {found[name]!r}, this recipe has {wanted[name]!r}" for name in differing)
        raise BadInput(f"{folder}: {what} is of {told}: give back what it was or choose a new --workdir")
