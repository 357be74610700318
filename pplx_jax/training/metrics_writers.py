"""Where the metrics of a stage go besides metrics.jsonl: TensorBoard, Weights & Biases, or a lab's own writer."""

import dataclasses
import importlib.util
import pathlib
import secrets
from typing import Any, Literal, NamedTuple, Protocol

from absl import logging

from pplx_jax.core.errors import require
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.native_logs import silent_native_stderr
from pplx_jax.core.packages import require_packages


class LoggedStage(NamedTuple):
    """What a writer is told about the stage.

    Attributes:
      folder: of the stage, WORKDIR/STAGE; a writer may keep files of its own there.
      name: of the stage.
      resume_step: the step that this start resumes from, 0 for the first one. Steps after it that an earlier start has
        written come again, with the same numbers.
      config: the resolved configuration, as gin text.
    """

    folder: pathlib.Path
    name: str
    resume_step: int
    config: str


class OpenWriter(Protocol):
    """A writer at work."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the finite numbers of a logged step."""

    def close(self) -> None:
        """Called at the end of the stage, also after a failure."""


class Writer:
    """A declaration of where metrics go: `Logging.writers` lists them.

    To add one, write a frozen dataclass that inherits from this class, in any package, and define `open`. Only process
    0 opens writers. An error in `write` stops that writer with a warning, and the training goes on.
    """

    def check(self) -> None:
        """Called before anything is trained.

        Raises:
          BadInput: the writer cannot work here; the user has to fix something, such as a missing package.
        """

    def open(self, stage: LoggedStage) -> OpenWriter:
        """Returns the writer of one start of a stage."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TensorBoard(Writer):
    """Writes TensorBoard events into STAGE/tensorboard (clu); nothing if TensorFlow is not installed."""

    def open(self, stage: LoggedStage) -> OpenWriter:
        if importlib.util.find_spec("tensorflow") is None:
            logging.info("TensorFlow is not installed: no TensorBoard events")
            return _Nothing()
        with silent_native_stderr():
            from clu import metric_writers  # imports TensorFlow

            return _Events(metric_writers.SummaryWriter(str(stage.folder / "tensorboard")))


@dataclasses.dataclass(frozen=True)
class WeightsAndBiases(Writer):
    """Logs to Weights & Biases, one run per stage, grouped by workdir. Needs the extra `wandb`.

    All starts of a stage continue one run, whose id is in STAGE/wandb.json.

    Attributes:
      project: of the runs.
      entity: user or team; None for the default of the login.
      mode: "online" needs a login (`wandb login` or WANDB_API_KEY); "offline" writes STAGE/wandb, to be sent later by
        `wandb sync`; None takes WANDB_MODE, or online.
    """

    project: str = "pplx-jax"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None

    def __post_init__(self):
        require(self.mode in (None, "online", "offline"), self, "mode", "'online', 'offline' or None")

    def check(self) -> None:
        require_packages("WeightsAndBiases", "wandb", extra="wandb")

    def open(self, stage: LoggedStage) -> OpenWriter:
        import wandb

        identity = stage.folder / "wandb.json"
        if not identity.exists():
            write_json(identity, {"id": secrets.token_hex(8)})
        workdir = stage.folder.absolute().parent.name
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            id=read_json(identity)["id"],
            resume="allow",
            group=workdir,
            name=f"{workdir}/{stage.name}",
            config={"stage": stage.name, "gin": stage.config},
            dir=str(stage.folder),
        )
        return _WandbRun(run)


class _Nothing:
    def write(self, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class _Events:
    def __init__(self, events: Any):
        self._events = events

    def write(self, step: int, values: dict[str, float]) -> None:
        self._events.write_scalars(step, values)

    def close(self) -> None:
        self._events.close()


class _WandbRun:
    def __init__(self, run: Any):
        self._run = run

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
