"""A separate process for work with libtpu, which reads its settings once, at the first use.

`python -m pplx_jax.plan.worker` reads a pickled (name of a function, arguments) from standard input, and prints what
the function returns as one JSON object.
"""

import importlib
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from pplx_jax.core.errors import BadInput
from pplx_jax.plan.libtpu import ENVIRONMENT

_SAYS_EVERY = 30.0  # seconds


def call(function: str, *arguments: Any) -> Any:
    """Calls a function in a process of its own; logs every 30 seconds that it is still running.

    Args:
      function: "module:name"; it returns what JSON can hold.
      arguments: its arguments, which can be pickled.

    Raises:
      BadInput: the function raised it.
      RuntimeError: the function raised another error.
    """
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "pplx_jax.plan.worker"],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    sent: bytes | None = pickle.dumps((function, arguments))
    try:
        while True:
            try:
                out, err = process.communicate(sent, timeout=_SAYS_EVERY)
                break
            except subprocess.TimeoutExpired:
                sent = None  # it is sent once
                logging.info("plan: still running after %.0f s", time.monotonic() - started)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"{function} failed: {err.decode(errors='replace')[-4000:]}")
    answer = json.loads(out.decode().splitlines()[-1])
    if "bad_input" in answer:
        raise BadInput(answer["bad_input"])
    return answer["found"]


def main() -> None:
    name, arguments = pickle.load(sys.stdin.buffer)
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    try:
        answer = {"found": function(*arguments)}
    except BadInput as error:
        answer = {"bad_input": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
