"""Keeps libraries quiet that write to standard error from C++, past every logging setting."""

import contextlib
import os
from collections.abc import Iterator


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
