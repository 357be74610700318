"""Averages several checkpoints of one stage into one model folder."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.merge_folders import require_alike
from pplx_jax.checkpoints.model_folder import AVERAGED_FROM, MODEL, load_model, save_model
from pplx_jax.checkpoints.orbax import CHECKPOINTS
from pplx_jax.checkpoints.saved_params import saved_steps
from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import describes, replaced_folder, require_free
from pplx_jax.core.paths import as_path


def average_checkpoints(
    models: Sequence[pathlib.Path], output: pathlib.Path, latest: int | None = None
) -> dict[str, Any]:
    """Writes the mean of the parameters of several checkpoints to `output`; an earlier average there is replaced.

    All checkpoints weigh the same. One is read at a time and added to a sum in float64: memory is 12 bytes a parameter,
    however many checkpoints there are. The mean is rounded to float32 once.

    Args:
      models: checkpoints of one stage (STAGE/checkpoints/STEP), or folders with a model each.
      output: the model folder to write.
      latest: instead of a list: the number of latest checkpoints of the one stage folder in `models`.

    Returns:
      `output` and the paths in `averaged`.

    Raises:
      BadInput: fewer than two checkpoints; one that is not a model or not of the same stage, vocabulary and
        configuration; `output` holds something other than an average.
    """
    output = as_path(output)
    require_free(output, "average of checkpoints", lambda folder: describes(folder / MODEL, AVERAGED_FROM))
    paths = [as_path(path) for path in models] if latest is None else _latest(models, latest)
    if len(paths) < 2:
        raise BadInput(f"average: {len(paths)} checkpoint; give two or more, or one stage with --latest=2 or more")
    first, total = _sum(paths)
    params = jax.tree.map(lambda leaf: (leaf / len(paths)).astype(np.float32), total)
    averaged = [str(path) for path in paths]
    with replaced_folder(output, last=MODEL) as folder:
        save_model(
            folder,
            first.config,
            first.vocabulary,
            params,
            stage=first.stage,
            kind=first.kind,
            averaged_from=averaged,
            prompts=first.prompts,
        )
    return {"output": str(output), "averaged": averaged}


def _latest(models: Sequence[pathlib.Path], count: int) -> list[pathlib.Path]:
    if len(models) != 1:
        raise BadInput(f"average: --latest takes the checkpoints of one stage, {len(models)} folders are given")
    steps = saved_steps(models[0])
    if not 2 <= count <= len(steps):
        raise BadInput(
            f"average: --latest={count}, and {models[0]} has {len(steps)} checkpoints; give a number from 2 to "
            "that, or keep more while training (Checkpointing.keep, Checkpointing.keep_every_steps)"
        )
    return [as_path(models[0]) / CHECKPOINTS / str(step) for step in steps[-count:]]


def _sum(paths: Sequence[pathlib.Path]) -> tuple[LoadedModel, Any]:
    """Returns the first model without its parameters, and the sum of the parameters of all in float64."""
    model = load_model(paths[0])
    total = jax.tree.map(lambda leaf: leaf.astype(np.float64), model.params)
    first = dataclasses.replace(model, params={})
    for path in paths[1:]:
        del model  # its parameters, before the next ones are read
        model = load_model(path)
        require_alike("average", paths[0], first, path, model)
        if (model.stage, model.kind) != (first.stage, first.kind):
            raise BadInput(
                f"average: {paths[0]} is of the stage {first.stage} and {path} of {model.stage}; average checkpoints "
                "of one stage, or merge two stages"
            )
        jax.tree.map(lambda into, leaf: np.add(into, leaf, out=into), total, model.params)
    return first, total
