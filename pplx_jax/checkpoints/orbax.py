"""Orbax checkpoints of a stage: parameters, optimizer, step, data position, seed and configuration in one item."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from pplx_jax.core.buckets import remove
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json, write_text
from pplx_jax.core.output_folder import replaced_folder
from pplx_jax.core.parameter_trees import digest, named_shapes
from pplx_jax.core.paths import absolute, as_path, is_bucket
from pplx_jax.core.resume_check import require_same_shapes
from pplx_jax.parallel.processes import barrier, is_first, over_processes

CHECKPOINTS = "checkpoints"
SELECTED = "selected.json"
MODEL = "model.json"
# The name, among the parameters of a stage, of those that its loss learns: they are not part of the model.
LOSS_PARAMS = "loss"
_STEP = "step"  # among the metrics of a checkpoint, because Orbax ranks by metrics alone
EMA = "ema"  # the name, in a checkpoint, of the moving average of the parameters, if the stage has one
_METADATA_BYTES = 1 << 20  # at most, on disk
_CHUNK_BYTES = 1 << 22  # of an array, in one file: reading holds a few of them besides the array


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints are kept: those that any of these fields selects.

    Attributes:
      latest: the latest N.
      every_steps: those of steps that are multiples of this; 0 for none.
      every_seconds: the first, and then one per this much time; 0 for none.
      best: those with the N highest `best_value`; 0 for none.
      best_value: (metrics saved with a checkpoint, its step) -> what is higher for a better one; equal for no two.
    """

    latest: int = 2
    every_steps: int = 0
    every_seconds: float = 0.0
    best: int = 0
    best_value: Callable[[Mapping[str, float], int], Any] = lambda metrics, step: step


class Restored(NamedTuple):
    """A checkpoint: its step, its arrays, and the metadata saved with them."""

    step: int
    state: dict[str, Any]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage, in FOLDER/checkpoints/STEP/.

    Saves are asynchronous and atomic: a step's folder is renamed when it is complete, and only then is an older one
    deleted. All processes of a job call every method at the same step.

    Args:
      folder: the stage's folder.
      keep: which checkpoints stay.
    """

    def __init__(self, folder: pathlib.Path, keep: Keep = Keep()):  # noqa: B008 - frozen
        self.root = absolute(as_path(folder)) / CHECKPOINTS
        policies: list[Any] = [managers.LatestN(keep.latest)]
        if keep.every_steps:
            policies.append(managers.EveryNSteps(keep.every_steps))
        if keep.every_seconds:
            policies.append(managers.EveryNSeconds(keep.every_seconds))  # type: ignore[arg-type]
        self._scores = keep.best > 0

        def value(saved: Mapping[str, float]) -> Any:
            return keep.best_value({name: saved[name] for name in saved if name != _STEP}, int(saved[_STEP]))

        if self._scores:
            policies.append(managers.BestN(get_metric_fn=value, n=keep.best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            best_fn=value if self._scores else None,  # without it, Orbax saves no metrics
            create=True,
            cleanup_tmp_directories=True,  # of saves that were killed
        )
        self._manager = ocp.CheckpointManager(self.root, options=options)

    def save(
        self,
        step: int,
        state: dict[str, Any],
        about: dict[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving `state` as `step`; returns once the arrays are copied.

        Args:
          step: the number of the checkpoint.
          state: tree of arrays and numbers.
          about: metadata that JSON can hold, saved in the same folder.
          metrics: of the evaluation at this step, for `Keep.best`; empty if there was none.

        Raises:
          OSError: ENOSPC, before anything is written, if the disk is too full; or the error of the previous save.
            Complete checkpoints stay.
        """
        _require_room(self.root, state)
        with _os_errors(self.root):
            scores = {**(metrics or {}), _STEP: step} if self._scores else None
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=scores, custom_metadata=about)

    def check(self) -> None:
        """Raises the error of a save in progress; see `save`."""
        with _os_errors(self.root):
            self._manager.check_for_errors()

    def restore_latest(self, like: dict[str, Any]) -> Restored | None:
        """Returns the latest checkpoint, on the shardings of `like`; None if there is no checkpoint.

        A damaged checkpoint is renamed to STEP.damaged, and the previous one is restored.

        Raises:
          BadInput: the checkpoint is of another model, or all checkpoints are damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged: list[tuple[int, Exception]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, error = self._restore(step, abstract)
            if error is None and restored is not None:
                for bad, why in damaged:
                    self._set_aside(bad, why, instead=step)
                return restored
            damaged.append((step, error or RuntimeError("another process cannot read its part")))
        if damaged:
            step, error = damaged[0]
            raise _damaged(self.root / str(step), error) from error
        return None

    def _restore(self, step: int, abstract: Any) -> tuple[Restored | None, Exception | None]:
        """Returns a checkpoint, or the error of reading it; if any process cannot read it, no process restores it."""
        restored, error = None, None
        try:
            self._require_shapes(step, abstract)
            state = dict(self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))
            restored = Restored(step, state, self._manager.metadata(step).custom_metadata or {})
        except (MemoryError, BadInput):
            raise
        except Exception as caught:  # Orbax raises the bare class where the bytes of an array are damaged
            error = caught
        unreadable = over_processes({"unreadable": float(error is not None)})["unreadable"]
        return (None if unreadable.any() else restored), error

    def close(self) -> None:
        """Waits for a save in progress and raises its error; see `save`."""
        try:
            with _os_errors(self.root):
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    def _require_shapes(self, step: int, abstract: Any) -> None:
        """Raises BadInput if the checkpoint is of another model, and Orbax's error if it is damaged."""
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            path: Any = self.root / str(step) / "default"  # Orbax's annotations name a path type that is not pathlib's
            found = handler.metadata(path).tree

        require_same_shapes(f"checkpoint {self.root / str(step)}", named_shapes(found), named_shapes(abstract))

    def _set_aside(self, step: int, error: Exception, instead: int) -> None:
        path = self.root / str(step)
        aside = path.with_name(f"{step}.damaged")
        reason = re.sub(r"\s+", " ", str(error))[:200]
        logging.warning("%s is damaged (%s): renamed to %s; resuming from step %d", path, reason, aside.name, instead)
        if is_first():
            remove(aside)
            path.rename(aside)
        barrier(f"{aside} is renamed")  # or another process would find the damaged one again
        self._manager.reload()


@contextlib.contextmanager
def _os_errors(root: pathlib.Path) -> Iterator[None]:
    """Raises OSError for a full disk, whatever error a library makes of it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if re.search(r"No space left|ENOSPC|quota exceeded", str(error), re.IGNORECASE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from error
        raise


def _require_room(root: pathlib.Path, state: Any) -> None:
    if is_bucket(root):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    if shutil.disk_usage(root).free < needed + _METADATA_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))


def _damaged(path: pathlib.Path, error: Exception) -> BadInput:
    reason = re.sub(r"\s+", " ", str(error))[:200]
    return BadInput(
        f"checkpoint {path} is damaged or of another model ({reason}); remove that folder to resume from the previous "
        "checkpoint"
    )


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
    _require_room(root, tree)
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
        raise _damaged(checkpoint, error) from error
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
