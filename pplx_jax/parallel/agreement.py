"""Decisions that all processes of a job make together, such as to save and stop after SIGTERM."""

import signal
import threading
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from pplx_jax.parallel.global_array import global_array


class Agreement:
    """Decisions that all processes make together, without waiting for the devices.

    At every step each process requests some actions. All processes know one step later what any of them requested,
    while the devices work on the step after that. A single process knows it at once.

    Args:
      mesh: the devices in use; every process has some of them.
      requests: number of actions to decide about.
    """

    def __init__(self, mesh: jax.sharding.Mesh, requests: int):
        self._alone = jax.process_count() == 1
        if self._alone:
            return
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._shape = (mesh.size, requests)
        # It depends on the step's result, so that two programs with collectives never run at the same time.
        self._any = jax.jit(lambda asked, step: asked.max(axis=0) + 0 * step, out_shardings=everywhere)
        self._last: jax.Array | None = None

    def __call__(self, step: jax.Array, *requests: bool) -> tuple[bool, ...]:
        """Returns what any process requested one step ago.

        Args:
          step: the step counter of the state, after the step that is running.
          *requests: the requests of this process.
        """
        if self._alone:
            return requests
        asked = np.broadcast_to(np.asarray(requests, np.int32), self._shape)
        before = self._last
        self._last = self._any(global_array(self._shape, self._spread, lambda at: asked[at]), step)
        if before is None:
            return (False,) * len(requests)
        return tuple(bool(value) for value in jax.device_get(before.addressable_data(0)))


class PreemptionNotice:
    """Records SIGTERM instead of ending the process, within a `with` block on the main thread.

    Attributes:
      given: whether SIGTERM was received.
    """

    def __init__(self):
        self.given = False
        self._previous: Any = None

    def __enter__(self) -> "PreemptionNotice":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._notice) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _notice(self, *_: object) -> None:
        self.given = True
        logging.warning("SIGTERM: saving at the end of a step, then exiting")
