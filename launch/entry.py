"""What every job runs: leaves the trial's record in its workdir, links what it shares, then becomes `pplx-jax`.

    PPLX_TRIAL='{"workdir": ..., "record": {...}}' python launch/entry.py run --gin_file=...

The same file is the entry point of the container and of a local job, so only the standard library is used. Every host
of a slice does the same at the same time: each step is harmless when another has done it.
"""

import ctypes
import json
import os
import pathlib
import signal
import socket
import sys
from typing import Any

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
BAD_INPUT = 2
# The code that runs may be newer than what was recorded; everything else settles what the trial is.
_MAY_DIFFER = ("package",)


def prepare(note: dict[str, Any]) -> str | None:
    """Readies the workdir of a trial; returns what is wrong with it, if anything."""
    workdir = pathlib.Path(note["workdir"])
    if not workdir.is_absolute():
        return f"{workdir} is relative, and jobs run elsewhere; give an absolute --workdir"
    file = workdir / "trial.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name, value in note["record"].items() if before.get(name) != value]
        differing = [name for name in differing if name not in _MAY_DIFFER]
        if differing:
            return f"{workdir} belongs to another trial (see {file}: {', '.join(differing)}); choose a new --workdir"
    workdir.mkdir(parents=True, exist_ok=True)
    for name in note.get("links", ()):
        _link(pathlib.Path(note["base"]) / name, workdir / name)
    temporary = workdir / f"trial.json.{socket.gethostname()}.{os.getpid()}.partial"
    temporary.write_text(json.dumps(note["record"], indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
    return None


def _link(source: pathlib.Path, place: pathlib.Path) -> None:
    if not source.exists() or place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except FileExistsError:
        pass  # another host was first


def stop_with_parent(parent: int) -> None:
    """Has Linux send SIGTERM when the parent is gone: XManager stops the shell of a local job, not what it runs."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # gone before Linux was asked
        os.kill(os.getpid(), signal.SIGTERM)


def main(words: list[str]) -> int:
    """Does not return where all is well."""
    parent = os.getppid()
    if os.environ.get("PPLX_STOP_WITH_PARENT"):
        stop_with_parent(parent)  # before trial.json says that the job is there
    complaint = prepare(json.loads(os.environ["PPLX_TRIAL"])) if "PPLX_TRIAL" in os.environ else None
    if complaint:
        print(f"pplx-jax: error: {complaint}", file=sys.stderr)
        return BAD_INPUT
    os.chdir(PACKAGE)  # where recipes are looked up
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    os.execv(sys.executable, [sys.executable, "-m", "pplx_jax", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
