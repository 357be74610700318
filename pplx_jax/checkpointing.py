"""Orbax checkpoints of a stage: parameters, optimizer, step and data position as one item."""

import asyncio
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pplx_jax.errors import BadInput

CHECKPOINTS = "checkpoints"
MODEL = "model.json"
# Beside the model's own, in the parameters of a stage whose loss learns something: no part of the model.
LOSS_PARAMS = "loss"
_ROOM_TO_SPARE = 1 << 20  # bytes, for metadata
_CHUNK_BYTES = 1 << 22  # of an array, encoded and written as one file


class Checkpoints:
    """The checkpoints of one stage, in FOLDER/checkpoints/STEP/.

    Saves are asynchronous and atomic: a step's folder takes its name only once it is whole.

    Args:
      folder: the stage's folder.
      keep: how many of the latest to keep.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        self.root = pathlib.Path(folder).absolute() / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.root, options=options)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts saving `state` as `step`; returns once the arrays are copied.

        Raises:
          OSError: ENOSPC, before anything is written, where the disk has no room for it.
        """
        _require_room(self.root, state)
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, like: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The latest step and its state on the shardings of `like`, or None where there is no checkpoint.

        Raises:
          BadInput: the checkpoint is damaged or of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return step, dict(self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
        except (MemoryError, RuntimeError):
            raise
        except Exception as error:  # Orbax raises the bare class where the bytes of an array are damaged
            raise _damaged(self.root / str(step), error) from error

    def close(self) -> None:
        """Waits for a save under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _require_room(root: pathlib.Path, state: Any) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    if shutil.disk_usage(root).free < needed + _ROOM_TO_SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))


def _damaged(path: pathlib.Path, error: Exception) -> BadInput:
    reason = re.sub(r"\s+", " ", str(error))[:200]
    return BadInput(
        f"checkpoint {path} is damaged or of another model ({reason}); remove that folder to go on from the one "
        "before it"
    )


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Finishes an array before it begins the next: encoded chunks wait for the disk in memory."""

    async def serialize(self, values, infos, args=None):
        for place, value in enumerate(values):
            for future in await super().serialize([value], [infos[place]], [args[place]] if args else None):
                await asyncio.to_thread(future.result)
        return []


def save_params(folder: pathlib.Path, step: int, params: Any) -> None:
    """Writes parameters alone as a checkpoint, waiting until it is whole (merged and imported models).

    Host arrays are encoded one after another and never copied, so that this takes at most the largest one's memory.

    Raises:
      OSError: ENOSPC, before anything is written, where the disk has no room for it.
    """
    tree = {"params": jax.tree.map(np.asarray, params)}
    root = pathlib.Path(folder).absolute() / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    _require_room(root, tree)
    # Orbax's usual format holds all encoded bytes until the end.
    in_place = _OneByOne(deepcopy_host_arrays=False)  # nothing changes the arrays while this waits
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, in_place)),
    )
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    manager = ocp.CheckpointManager(root, options=options, item_handlers=handler)
    with contextlib.closing(manager):
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
        manager.save(step, args=ocp.args.PyTreeSave(tree, save_args=chunks))


def load_params(folder: str | pathlib.Path) -> dict[str, Any]:
    """The model's parameters of a folder's latest checkpoint, as a nested dict of float32 NumPy arrays.

    Raises:
      BadInput: no such folder, no checkpoint in it, or a damaged one.
    """
    root = pathlib.Path(folder).absolute() / CHECKPOINTS
    steps = sorted(int(path.name) for path in root.glob("*") if path.name.isdigit())
    if not steps:
        raise BadInput(f"{folder} holds no checkpoint; give the folder of a stage, or train it first")
    path: Any = root / str(steps[-1]) / "default"  # orbax is annotated with a path type of its own
    try:
        # Restored as NumPy, whole, on the host: the caller decides where it goes.
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            tree = handler.metadata(path).tree["params"]
            tree = {name: part for name, part in tree.items() if name != LOSS_PARAMS}
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype(np.float32)), tree
            )
            arguments = ocp.args.PyTreeRestore(
                item={"params": tree}, restore_args={"params": as_numpy}, partial_restore=True
            )
            return handler.restore(path, args=arguments)["params"]
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise _damaged(root / str(steps[-1]), error) from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON under its final name only once it is whole."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """Reads JSON.

    Raises:
      BadInput: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path} is missing; is {path.parent} a folder that a stage or an export wrote?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON ({error}); write it again by rerunning what made it") from error
