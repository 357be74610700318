"""A lock on a folder, so that two processes do not write the same run."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import is_bucket


@contextlib.contextmanager
def sole_owner(folder: pathlib.Path) -> Iterator[None]:
    """Locks an existing folder for the block. The lock ends with the process, however it ends, and leaves no file.

    A bucket, or a file system without locks, is not locked.

    Raises:
        BadInput: another process holds the lock.
    """
    if is_bucket(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{folder}: another process is at work in this folder; wait until it ends, or choose another --workdir"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
