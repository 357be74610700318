"""A profile of chosen steps, for TensorBoard's profiler or Perfetto."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging


class StepProfile:
    """Records the steps from `first` to `last` of one process into `folder`; nothing where `steps` is empty."""

    def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
        self._folder, self._steps, self._running = folder, steps, False

    def before(self, step: int) -> None:
        """To be called before each step."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """To be called after each step, with what it gives."""
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
