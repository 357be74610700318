"""The entry point of every job: writes `trial.json`, links shared files into the workdir, then executes `pplx-jax`.

    PPLX_TRIAL='{"workdir": ..., "record": {...}}' python launch/entry.py run --gin_file=...

It is the entry point of the container and of a local job, so it uses only the standard library. Every host of a slice
runs it at the same time, so each step may already have been done by another host.
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
# The code may be newer than recorded. All other fields identify the trial.
_MAY_DIFFER = ("package",)


def prepare(note: dict[str, Any]) -> str | None:
    """Prepares the workdir of a trial. Returns an error message, or None."""
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
        pass  # another host made the link


def stop_with_parent(parent: int) -> None:
    """Makes Linux send SIGTERM when the parent exits: XManager stops the shell of a local job, not its children."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # the parent exited before the call
        os.kill(os.getpid(), signal.SIGTERM)


def main(words: list[str]) -> int:
    """Executes `pplx-jax` in place of this process; returns an exit code only if the trial is refused."""
    parent = os.getppid()
    if os.environ.get("PPLX_STOP_WITH_PARENT"):
        stop_with_parent(parent)  # before trial.json shows that the job has started
    complaint = prepare(json.loads(os.environ["PPLX_TRIAL"])) if "PPLX_TRIAL" in os.environ else None
    if complaint:
        print(f"pplx-jax: error: {complaint}", file=sys.stderr)
        return BAD_INPUT
    os.chdir(PACKAGE)  # recipes are found relative to it
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    os.execv(sys.executable, [sys.executable, "-m", "pplx_jax", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
