"""Profiles selected steps for TensorBoard's profiler or Perfetto, and marks what a profile shows of a step."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging


@contextlib.contextmanager
def step_scope(step: int) -> Iterator[None]:
    """Marks a step for the profiler, and refuses implicit transfers between host and devices in it.

    A hidden transfer makes the host wait for the devices at every step. Explicit ones (`jax.device_put`,
    `jax.device_get`) are allowed.
    """
    with jax.profiler.StepTraceAnnotation("train", step_num=step), jax.transfer_guard("disallow"):
        yield


class StepProfile:
    """A hook that records `steps` (first, last) into `folder`; none if `steps` is empty."""

    def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
        self._folder, self._steps, self._running = folder, steps, False

    def before_step(self, step: int) -> None:
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def on_log(self, step: int, numbers: dict[str, float]) -> None:
        pass

    def after_step(self, step: int, state: Any) -> None:
        if self._running and step == self._steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        logging.info("profile of steps %d to %d: tensorboard --logdir %s", *self._steps, self._folder)
