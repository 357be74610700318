"""Makes a pipeline on this machine end soon after one of its workers has failed.

Beam's own runner reports a failure when the workers have done all the work that they have begun, which may take hours,
and it waits forever for a worker process that was killed. So a worker that meets bad input leaves a marker, at which
the others stop, and a worker process that ends by itself interrupts the pipeline.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pplx_jax.core.errors import BadInput, Failed

_LOCAL_RUNNERS = ("DirectRunner", "SwitchingDirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "PrismRunner")
_ENDED = "Worker subprocess exited"  # begins what the thread that waits for a worker process raises
# Raises KeyboardInterrupt in the thread that waits for the pipeline. SIGINT is ignored in background jobs of a shell.
_WAKES = signal.SIGUSR1
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class FailureMarker:
    """A file that tells the workers of this machine that one of them has failed.

    Attributes:
        path: the file; "" if the workers are on other machines.
        starter: the number of the process that started the pipeline. It reports the failure.
    """

    path: str
    starter: int = 0

    def write(self, reason: object) -> None:
        """Tells the other workers to stop."""
        if self.path:
            with contextlib.suppress(FileNotFoundError):  # the pipeline has ended
                pathlib.Path(self.path).write_text(str(reason), encoding="utf-8", errors="replace")

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items until another worker fails. Writes the marker if they raise BadInput.

        Raises:
            BadInput: of the other worker.
        """
        try:
            for item in items:
                if self.path and pathlib.Path(self.path).exists():
                    raise BadInput(pathlib.Path(self.path).read_text(encoding="utf-8"))
                yield item
        except BadInput as error:
            self.write(error)
            if self.path and os.getpid() != self.starter:
                sys.stderr = open(os.devnull, "w")  # Beam's worker prints the traceback and ends
            raise


NO_MARKER = FailureMarker("")


@contextlib.contextmanager
def failures_of_workers(options: Any) -> Iterator[FailureMarker]:
    """Yields the marker for the workers of a pipeline with these options.

    Raises:
        Failed: a worker process of this machine ended by itself, for example because it was killed. Only the main
            thread is told so.
    """
    from apache_beam.options.pipeline_options import StandardOptions, WorkerOptions

    runner = options.view_as(StandardOptions).runner or _LOCAL_RUNNERS[0]
    if runner.rpartition(".")[2] not in _LOCAL_RUNNERS:
        yield NO_MARKER
        return
    logged = options.view_as(WorkerOptions)
    if logged.default_sdk_harness_log_level is None:  # the failure of a worker is raised here too, in one line
        logged.default_sdk_harness_log_level = "CRITICAL"
    with tempfile.TemporaryDirectory(prefix="pplx-jax-") as folder:
        marker = FailureMarker(str(pathlib.Path(folder) / "failure"), os.getpid())
        ended: list[str] = []
        former = threading.excepthook

        def notice(failure: threading.ExceptHookArgs) -> None:
            if not str(failure.exc_value).startswith(_ENDED):
                former(failure)
            elif not ended:
                ended.append(str(failure.exc_value))
                marker.write(ended[0])
                if in_main_thread:
                    signal.pthread_kill(waiting, _WAKES)

        waiting = threading.get_ident()
        in_main_thread = threading.current_thread() is threading.main_thread()  # no other thread can be interrupted
        handler = signal.signal(_WAKES, signal.default_int_handler) if in_main_thread else None
        threading.excepthook = notice
        try:
            yield marker
        except BaseException:
            if ended:
                raise Failed(
                    f"data cache: a process of Beam was killed or has crashed ({ended[0]}), for example for lack of "
                    "memory; give fewer --direct_num_workers in --beam_options, or divide the files"
                ) from None
            raise
        finally:
            threading.excepthook = former
            if in_main_thread:
                signal.signal(_WAKES, handler)
