"""The parameters of a model in its checkpoints: how they are written alone and read, and which checkpoint counts."""

import contextlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pplx_jax.checkpoints.orbax import CHECKPOINTS, EMA, LOSS_PARAMS, damaged_checkpoint, require_room
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json, write_text
from pplx_jax.core.output_folder import replaced_folder
from pplx_jax.core.parameter_trees import digest
from pplx_jax.core.paths import absolute, as_path, is_bucket

SELECTED = "selected.json"
_CHUNK_BYTES = 1 << 22  # of an array, in one file: reading holds a few of them besides the array


def save_params(folder: pathlib.Path, step: int, params: Any) -> None:
    """Writes only parameters as a checkpoint (merged and imported models); returns when it is complete.

    In a job of several processes, the first one calls it alone. An earlier checkpoint of this step is replaced.

    Host arrays are written without a copy. Their digest is saved next to the checkpoint as STEP.sha256, because this
    format has no checksum.

    Raises:
      OSError: ENOSPC, before anything is written, if the disk is too full.
    """
    tree = {"params": jax.tree.map(np.asarray, params)}
    root = absolute(as_path(folder)) / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    require_room(root, tree)
    # Memory stays that of the arrays: without compression, chunks are written from where they are; OCDBT would hold all
    # encoded chunks until the end; and nothing changes the arrays during this call, so that they need no copy.
    in_place = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, in_place)),
    )
    # Not with a manager or a checkpointer of Orbax: they would wait for the other processes of the job, and count a
    # save that these do not make, which blocks the next save that all of them make.
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with contextlib.closing(handler), replaced_folder(root / str(step)) as checkpoint:
        item: Any = checkpoint / "default"  # Orbax's annotations name a path type that is not pathlib's
        item.mkdir()
        handler.save(item, args=ocp.args.PyTreeSave(tree, save_args=chunks))
    write_text(_digest_file(root / str(step)), digest(tree["params"]) + "\n")


def keep_parameters(folder: pathlib.Path) -> None:
    """Replaces the checkpoints of a finished stage by one with only the model's parameters.

    Its readers see the same model. The optimizer, and scalars of the loss, are lost.
    """
    steps, selected = saved_steps(folder), selected_step(folder)
    step = steps[-1] if selected is None else selected
    root = absolute(as_path(folder)) / CHECKPOINTS
    if not _digest_file(root / str(step)).exists():  # that only `save_params` writes
        save_params(folder, step, load_params(folder, step))
    for other in steps:
        if other != step:
            shutil.rmtree(root / str(other))


def select_checkpoint(folder: pathlib.Path, step: int) -> None:
    """Makes a checkpoint the model of its folder, in place of the latest one."""
    write_json(folder / SELECTED, {"step": step})


def selected_step(folder: pathlib.Path) -> int | None:
    """Returns the step that `select_checkpoint` named; None for the latest."""
    return int(read_json(folder / SELECTED)["step"]) if (folder / SELECTED).exists() else None


def checkpoint_steps(folder: str | pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints of a folder, in order; none if it has no checkpoint."""
    root = absolute(as_path(folder)) / CHECKPOINTS
    return sorted(int(path.name) for path in root.glob("*") if path.name.isdigit() and _is_complete(path))


def saved_steps(folder: str | pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints of a model folder, in order.

    Raises:
      BadInput: there is none.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise BadInput(f"{folder} holds no checkpoint; give the folder of a stage, or train the stage first")
    return steps


def load_params(folder: str | pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Returns the model's parameters in a checkpoint as a nested dict of float32 NumPy arrays.

    Args:
      folder: of the model.
      step: of the checkpoint; None for the one that `select_checkpoint` named, else the latest.

    If the stage keeps a moving average of its parameters, the average is what is returned. A run that is still training
    may delete the latest checkpoint while it is read; then a later one is read.

    Raises:
      BadInput: there is no such folder, it has no checkpoint, or the checkpoint is damaged; this includes values that
        differ from those that `save_params` wrote.
    """
    root = absolute(as_path(folder)) / CHECKPOINTS
    given = selected_step(root.parent) if step is None else step
    while True:
        chosen = saved_steps(folder)[-1] if given is None else given
        try:
            return _read_params(root / str(chosen))
        except BadInput:
            if given is not None or saved_steps(folder)[-1] == chosen:
                raise


def _read_params(checkpoint: pathlib.Path) -> dict[str, Any]:
    path: Any = checkpoint / "default"  # Orbax's annotations name a path type that is not pathlib's
    try:
        # Restored as complete NumPy arrays on the host: the caller decides on which devices they go.
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            found = handler.metadata(path).tree
            name = EMA if EMA in found else "params"
            tree = found[name]
            tree = {part: leaves for part, leaves in tree.items() if part != LOSS_PARAMS}
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype(np.float32)), tree
            )
            arguments = ocp.args.PyTreeRestore(item={name: tree}, restore_args={name: as_numpy}, partial_restore=True)
            params = handler.restore(path, args=arguments)[name]
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise damaged_checkpoint(checkpoint, error) from error
    _require_digest(checkpoint, params)
    return params


def _is_complete(checkpoint: pathlib.Path) -> bool:
    """Returns whether a checkpoint is complete. On a disk, it has its name only then. In a bucket, Orbax writes a file
    last, and `save_params` writes the digest last."""
    marks = (checkpoint / "commit_success.txt", _digest_file(checkpoint))
    return not is_bucket(checkpoint) or any(mark.exists() for mark in marks)


def _digest_file(checkpoint: pathlib.Path) -> pathlib.Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def _require_digest(checkpoint: pathlib.Path, params: Any) -> None:
    """Raises BadInput if `save_params` wrote other parameters; checkpoints without a digest pass."""
    saved = _digest_file(checkpoint)
    if saved.exists() and saved.read_bytes().strip() != digest(params).encode():
        raise BadInput(
            f"checkpoint {checkpoint} is damaged: its parameters do not have the digest in {saved.name}; "
            "remove that folder, and copy or write that model again"
        )
