"""Whether all processes of a job run the same code with the same settings, and see the same folder."""

import contextlib
import functools
import hashlib
import importlib.metadata
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

_VISIBLE_SECONDS = 15.0  # the longest time until a shared file system shows a file that another host wrote
_ORIGIN = re.compile(r"\s+# [^'\"]*$")  # where a binding comes from
_PLAIN = (str, int, float, bool)


def what_runs(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Returns what must be equal on all processes, by name: versions, function, and arguments of plain types.

    Paths may differ between hosts; `unseen_by` checks the folder behind them.

    Args:
      function: the function that all processes call.
      arguments: its arguments by name; `config_text` is the resolved recipe.
    """
    recipe = [_ORIGIN.sub("", line) for line in str(arguments.get("config_text", "")).splitlines()]
    flags = {name: value for name, value in arguments.items() if name != "config_text" and isinstance(value, _PLAIN)}
    return {
        "version of pplx-jax": f"{importlib.metadata.version('pplx-jax')} (files {_digest_of_package()})",
        "version of jax": importlib.metadata.version("jax"),
        "function": function.__qualname__,
        "recipe": "\n".join(line for line in recipe if not line.startswith("Processes.")),
        **{f"flag --{name}": str(value) for name, value in flags.items()},
    }


def difference(own: Mapping[str, str], other: Any) -> str | None:
    """Returns the first difference between what two processes run (see `what_runs`), in words; None if there is none.

    Args:
      own: what process 0 runs.
      other: what another process sent.
    """
    other = other if isinstance(other, dict) else {}
    for name in [*own, *(name for name in other if name not in own)]:
        ours, theirs = own.get(name), other.get(name)
        if ours != theirs:
            if name == "recipe":
                ours, theirs = _lines_only_in(ours, theirs), _lines_only_in(theirs, ours)
            return f"the {name} is {theirs or 'missing'} there and {ours or 'missing'} here"
    return None


def _lines_only_in(text: Any, other: Any) -> str:
    """Returns the first line of a text that the other one lacks."""
    return next((line for line in str(text).splitlines() if line not in str(other).splitlines()), "")


@functools.cache
def _digest_of_package() -> str:
    found = hashlib.sha256()
    root = pathlib.Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def unseen_by(folder: pathlib.Path, is_first: bool, barrier: Callable[[str, Any], list[Any]]) -> list[int]:
    """Returns the processes that do not see a file that process 0 writes into a folder. Collective.

    The folder is left as it was: a created one is removed again.

    Args:
      folder: the folder that all processes share.
      is_first: whether this is process 0.
      barrier: exchanges a value of every process.
    """
    probe, created = None, False
    if is_first:
        with contextlib.suppress(OSError):  # the work itself refuses such a folder, with its own message
            created = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".seen-{secrets.token_hex(8)}"
            probe.write_text("The processes of a job look for this file.\n", encoding="utf-8")
    name = barrier("a probe of the shared folder", probe and probe.name)[0]
    everywhere = barrier("the probe", name is None or is_first or appears(folder / name))
    if probe is not None:
        probe.unlink(missing_ok=True)
        if created and folder.is_dir():  # a folder in a bucket ends with its last object
            folder.rmdir()
    return [index for index, sees in enumerate(everywhere) if not sees]


def appears(path: pathlib.Path) -> bool:
    """Returns whether a file that another process has written is there; waits while a file system remembers that it was
    not."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
