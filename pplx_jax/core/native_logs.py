"""Keeps libraries quiet that write to standard error from C++, past every logging setting."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

_TPU_CHIPS = ("accel[0-9]*", "vfio/[0-9]*")  # device files, up to v4 and from v5e on
_ANSWERS = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}


@contextlib.contextmanager
def silent_native_stderr() -> Iterator[None]:
    """Discards what is written to file descriptor 2 meanwhile; exceptions pass as ever.

    For `import tensorflow`, which greets with a page on missing GPUs whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def skip_absent_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Answers libtpu, where it is installed on a machine without TPU chips, what it would ask the network for.

    To be called before JAX is first used; it finds no TPU either way, but would say so at length.
    """
    if not any(any(devices.glob(chips)) for chips in _TPU_CHIPS):
        for name, answer in _ANSWERS.items():
            os.environ.setdefault(name, answer)
