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
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from pplx_jax.core.buckets import remove
from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import named_shapes
from pplx_jax.core.paths import absolute, as_path, is_bucket
from pplx_jax.core.resume_check import require_same_shapes
from pplx_jax.parallel.processes import barrier, is_first, over_processes

CHECKPOINTS = "checkpoints"
LOSS_PARAMS = "loss"  # key of the parameters that the loss of a stage learns; they are not part of the model
EMA = "ema"  # key of the moving average of the parameters in a checkpoint, if the stage has one
_STEP = "step"  # key of the step among the metrics of a checkpoint: Orbax ranks checkpoints by their metrics alone
_METADATA_BYTES = 1 << 20  # at most, on disk


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
        require_room(self.root, state)
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
            raise damaged_checkpoint(self.root / str(step), error) from error
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


def require_room(root: pathlib.Path, state: Any) -> None:
    """Raises OSError, ENOSPC, if the disk has less room than the arrays of `state` take; a bucket always has room."""
    if is_bucket(root):
        return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes"))
    if shutil.disk_usage(root).free < needed + _METADATA_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))


def damaged_checkpoint(path: pathlib.Path, error: Exception) -> BadInput:
    """Returns the error that says that a checkpoint cannot be read, and why."""
    reason = re.sub(r"\s+", " ", str(error))[:200]
    return BadInput(
        f"checkpoint {path} is damaged or of another model ({reason}); remove that folder to resume from the previous "
        "checkpoint"
    )
