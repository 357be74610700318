"""Silences libraries that write to standard error from C++, which no logging setting reaches."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator

_TPU_CHIPS = ("accel[0-9]*", "vfio/[0-9]*")  # device files, up to v4 and from v5e on
_ANSWERS = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}

_stderr = 2  # where standard error goes, also while `silent_native_stderr` discards what is written to 2


@contextlib.contextmanager
def silent_native_stderr() -> Iterator[None]:
    """Discards what is written to file descriptor 2 inside the block; exceptions pass.

    For `import tensorflow`, which prints a page about missing GPUs whatever TF_CPP_MIN_LOG_LEVEL is.
    """
    global _stderr
    saved = _stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        _stderr = 2
        os.close(saved)


def write_last_line(text: str) -> None:
    """Writes a line to standard error from any thread of a process that is about to exit."""
    sys.stderr.flush()
    os.write(_stderr, f"{text}\n".encode())


def has_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """Returns whether this machine has TPU chips."""
    return any(any(devices.glob(chips)) for chips in _TPU_CHIPS)


def skip_absent_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Sets environment variables that libtpu would otherwise ask the network for, if the machine has no TPU chips.

    Call it before JAX is first used. libtpu finds no TPU in either case, but without this it logs long errors.
    """
    if not has_tpu(devices):
        for name, answer in _ANSWERS.items():
            os.environ.setdefault(name, answer)
