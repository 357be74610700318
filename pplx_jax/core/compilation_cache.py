"""JAX's persistent compilation cache, which the command line turns on: a program is compiled once per machine.

JAX's key of a program has the program itself, the versions of JAX and XLA, XLA's flags, the number of devices and the
kind of the hardware. The folder is that of one kind of CPU, too, so that a home folder on several machines is safe.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import time

from pplx_jax.core.buckets import cache_folder

FOLDER = "JAX_COMPILATION_CACHE_DIR"  # JAX reads it when it is imported
_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    # With a limit JAX takes a lock for each file, so that no process reads what another still writes.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 << 30),
}
_ABANDONED_SECONDS = 600


def use_compilation_cache() -> None:
    """Names a folder for compiled programs in this process's environment. Call it before JAX is imported.

    A value of `FOLDER` that is set already stays, and an empty one means no cache. There is none either if the folder
    cannot be written.
    """
    if FOLDER in os.environ:
        return
    folder = cache_folder() / "compiled" / _cpu()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # writing to it is running code here
        _remove_abandoned(folder)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ[FOLDER] = os.fspath(folder)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def _cpu() -> str:
    """Returns 16 hex digits of this machine's instruction sets and the number of cores that this process may use."""
    facts = [platform.machine(), str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)]
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        facts += next((sorted(line.split()) for line in lines if line.startswith(("flags", "Features"))), [])
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes programs that a killed process has not written to the end. JAX would warn of them at every use."""
    for path in folder.glob("*-cache"):
        complete = path.with_name(f"{path.name.removesuffix('-cache')}-atime")  # JAX writes it second
        with contextlib.suppress(FileNotFoundError):
            if not complete.exists() and path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                path.unlink()
