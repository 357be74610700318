"""Several processes as one job: how they start together, share a batch and make decisions together.

Every process runs the same program and sees the same folders. All of them call a collective operation (a step, a save,
a decision) at the same step. Process 0 writes the files that exist once; the others continue or wait at a barrier.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import pathlib
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from pplx_jax.core.errors import BAD_INPUT, PREEMPTED, PROCESS_LOST, BadInput, Preempted, ProcessLost
from pplx_jax.core.paths import as_path
from pplx_jax.parallel.connections import listening, wait_for_port
from pplx_jax.parallel.heartbeat import Heartbeat
from pplx_jax.parallel.same_job import unseen_by, what_runs
from pplx_jax.parallel.tpu_hosts import tpu_hosts

_JAX_HEARTBEAT_SECONDS = 60  # without a `Heartbeat`, JAX ends the other processes after this time

_SAID_BYTES = 512  # size of the address of process 0 as JSON

_job: Heartbeat | None = None


@dataclasses.dataclass(frozen=True)
class Processes:
    """The number of processes and how they find each other; by default a single process.

    Attributes:
      coordinator: HOST:PORT of process 0, the same text for all processes; the next port is used too. "auto": all
        three values are found, see `tpu_hosts`; elsewhere than on Cloud TPU by JAX (Slurm). Default:
        JAX_COORDINATOR_ADDRESS of the environment.
      num_processes: number of processes. Default: JAX_NUM_PROCESSES of the environment.
      process_id: index of this process, from 0. Default: JAX_PROCESS_ID of the environment.
      startup_seconds: the longest wait until all processes are connected.
      silence_seconds: a process that sends no heartbeat for this long counts as dead, and the others exit.
      stuck_seconds: all processes exit if none moves on for this long and those that the others wait for use no
        processor time; 0 for never. Who is behind is logged before that.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    startup_seconds: float = 300.0
    silence_seconds: float = 30.0
    stuck_seconds: float = 600.0

    def resolved(self, environment: Mapping[str, str] | None = None) -> "Processes":
        """Returns these settings with missing values taken from the environment.

        Raises:
          BadInput: the settings are incomplete or invalid.
        """
        environment = os.environ if environment is None else environment

        def number(name: str) -> int | None:
            value = environment.get(name)
            if value is not None and not value.isdigit():
                raise BadInput(f"{name}={value} is not a number; set it to a number, or give the flag instead")
            return None if value is None else int(value)

        found = dataclasses.replace(
            self,
            coordinator=self.coordinator or environment.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=number("JAX_NUM_PROCESSES") if self.num_processes is None else self.num_processes,
            process_id=number("JAX_PROCESS_ID") if self.process_id is None else self.process_id,
        )
        coordinator, count, index = found.coordinator, found.num_processes, found.process_id
        if coordinator == "auto" or count == 1 or (coordinator is None and count is None and index is None):
            return found
        if coordinator is None or count is None or index is None:
            values = {"coordinator": coordinator, "num_processes": count, "process_id": index}
            given = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
            missing = " and ".join(f"--{name}" for name, value in values.items() if value is None)
            raise BadInput(f"{given} without {missing}; several processes need all three")
        if not 0 <= index < count:
            raise BadInput(
                f"process_id {index} of num_processes {count}; number the processes from 0 to num_processes - 1"
            )
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65535:
            raise BadInput(f"coordinator {coordinator} is not HOST:PORT, such as 10.0.0.2:8476")
        return found

    @property
    def several(self) -> bool:
        """Whether there may be other processes."""
        return self.coordinator is not None and self.num_processes != 1


@contextlib.contextmanager
def joined(processes: Processes, about: Mapping[str, str] | None = None) -> Iterator[None]:
    """Joins this process to its job within a `with` block; does nothing for a single process.

    Enter it before the first use of JAX. A failure in the block is sent to the other processes, which then exit.

    Args:
      processes: the job.
      about: what this process runs; the job is refused if it differs between processes. See `what_runs`.

    Raises:
      BadInput: as `Processes.resolved`, or process 0 refused this process or the job, or a port of process 0 is taken.
      ProcessLost: a process did not connect in time.
    """
    global _job
    found, hosts = processes.resolved(), ()
    if found.coordinator == "auto" and (tpu := tpu_hosts(os.environ)):
        hosts = tuple(tpu.names)
        found = dataclasses.replace(
            found, coordinator=tpu.coordinator, num_processes=len(hosts), process_id=tpu.index
        ).resolved()
    if not found.several or _job is not None or jax.distributed.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # On CPU, independent programs may run at the same time, and their collectives would be mixed up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    settings: dict[str, Any] = {
        "initialization_timeout": math.ceil(found.startup_seconds),
        "heartbeat_timeout_seconds": _JAX_HEARTBEAT_SECONDS,
    }
    failure, code = None, PROCESS_LOST
    try:
        if found.coordinator == "auto":
            logging.info("waiting up to %g s for the other processes that JAX finds here", found.startup_seconds)
            jax.distributed.initialize(**settings)
            _job = _connected_after_jax(found, about)
        else:
            host, _, port = str(found.coordinator).rpartition(":")
            index, count = int(found.process_id or 0), int(found.num_processes or 1)
            place: int | socket.socket = int(port) + 1
            if index == 0:
                listening("", int(port)).close()  # JAX would crash if its port were taken
                place = listening(host, int(port) + 1)
            _job = _connected(found, host, place, index, count, str(found.coordinator), about, hosts)
            if index > 0:  # JAX would wait for the whole time, and abort
                wait_for_port(host, int(port), found.startup_seconds, f"process {index} of {count}")
            jax.distributed.initialize(
                found.coordinator,
                count,
                index,
                cluster_detection_method="deactivate",
                **settings,
            )
        # JAX installs its own handler; here `PreemptionNotice` handles SIGTERM.
        signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
        yield
        barrier("the work")  # no process leaves while another one may still fail, or be waited for in JAX's shutdown
    except BaseException as error:
        if isinstance(error, Preempted) and error.together:
            raise
        failure, code = f"failed: {type(error).__name__}: {error}"[:500], PROCESS_LOST
        if isinstance(error, BadInput):
            code = BAD_INPUT
        elif isinstance(error, Preempted):
            failure, code = "was stopped by SIGTERM", PREEMPTED
        raise
    finally:
        if _job is not None:
            _job.close(failure, code)
        _job = None


def joins_processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a parameter `processes` to a function and runs the function within `joined`.

    The names in `_FLAGS` are accepted as keywords too and override the fields of `processes`.
    """

    @functools.wraps(function)
    def run(*arguments: Any, processes: Processes = Processes(), **keywords: Any) -> Any:  # noqa: B008 - frozen
        given = {name: keywords.pop(name) for name in _FLAGS if name in keywords}
        named = signature.bind_partial(*arguments, **keywords).arguments
        found, joins = dataclasses.replace(processes, **given), _job is None
        with joined(found, what_runs(function, named) if found.resolved().several else None):
            if joins and "workdir" in named:
                _require_shared(as_path(named["workdir"]))
            return function(*arguments, **keywords)

    signature = inspect.signature(function)
    # A recipe may bind `processes`, but not the flags, which differ between machines. Without the signature, and with
    # __wrapped__, gin would use the parameters of `function`.
    added = inspect.Parameter("processes", inspect.Parameter.KEYWORD_ONLY, default=Processes(), annotation=Processes)
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), added])
    del vars(run)["__wrapped__"]
    return run


_FLAGS = ("coordinator", "num_processes", "process_id", "startup_seconds")


def is_first() -> bool:
    """Returns whether this is process 0, which writes the files that exist once."""
    return jax.process_index() == 0


def at(place: str) -> None:
    """Says where this process is, for the report if it is behind.

    All processes must say the same places in the same order.
    """
    if _job is not None:
        _job.at(place)


def barrier(name: str) -> None:
    """Waits until every process is at the barrier of this name."""
    if _job is not None:
        _job.barrier(name)
    elif jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def over_processes(numbers: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Returns each number as float32 [processes], one value from every process. Collective."""
    if _job is not None:
        _job.at()
    values = np.array(list(numbers.values()), np.float32)
    found = multihost_utils.process_allgather(values) if jax.process_count() > 1 else values[None]
    return dict(zip(numbers, found.T, strict=True))


def from_first(numbers: Sequence[float]) -> list[float]:
    """Returns the numbers of process 0, to the last bit of float64. Collective; all processes pass as many."""
    if jax.process_count() == 1:
        return list(numbers)
    own = np.frombuffer(np.array(numbers, np.float64).tobytes(), np.uint32)
    return np.frombuffer(np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes(), np.float64).tolist()


def _require_shared(folder: pathlib.Path) -> None:
    """Raises BadInput unless all processes see the same folder. Collective."""
    if _job is None:
        return
    if unseen := unseen_by(folder, _job.index == 0, _job.barrier):
        names = ", ".join(_job.names[index] for index in unseen)
        raise BadInput(
            f"{names} does not see in {folder} what {_job.names[0]} writes there; mount the same file system or bucket "
            "on every host, or give another --workdir"
        )


def _connected(
    processes: Processes,
    host: str,
    port: int | socket.socket,
    index: int,
    count: int,
    token: str,
    about: Mapping[str, str] | None,
    hosts: Sequence[str] = (),
) -> Heartbeat:
    return Heartbeat(
        host,
        port,
        index,
        count,
        token=token,
        about=about,
        hosts=hosts,
        startup_seconds=processes.startup_seconds,
        silence_seconds=processes.silence_seconds,
        stuck_seconds=processes.stuck_seconds,
    )


def _connected_after_jax(processes: Processes, about: Mapping[str, str] | None) -> Heartbeat | None:
    """Returns the heartbeat of processes that JAX found; None if they cannot reach the port of process 0."""
    if jax.process_count() == 1:
        return None
    server, said = None, ""
    if is_first():
        host = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")[0] or socket.getfqdn()
        server = listening(host, 0)
        said = json.dumps([host, server.getsockname()[1], secrets.token_hex()])
    letters = np.frombuffer(said.encode().ljust(_SAID_BYTES), np.uint8)
    host, port, token = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters))))
    try:
        return _connected(processes, host, server or port, jax.process_index(), jax.process_count(), token, about)
    except ProcessLost as error:
        logging.warning(
            "%s. The job goes on; if a process dies, JAX ends the others within %d s and gives only its number",
            error,
            _JAX_HEARTBEAT_SECONDS,
        )
        return None
