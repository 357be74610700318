"""Runs tiny trainings in separate processes, alone or several as one job, on simulated devices."""

import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from helpers import simulated

SETUP = """
import dataclasses, json, os, pathlib, signal, sys, time
for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
    sys.modules[name] = None  # importing any of them fails
from helpers import tiny
from pplx_jax.data.tokens.kinds import KIND_OF_FOLDER
from pplx_jax.training import train_stage, trainer as loop
from pplx_jax.training.train_stage import train
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.core.errors import Preempted
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.processes import Processes, joined

def run(setting, folder, name, *, mesh=Mesh(), seed=3, **fields):
    vocabulary = load_vocabulary(setting / "vocabulary.model")
    table = TokenTable.open(setting / name, kind=KIND_OF_FOLDER[name], vocabulary=vocabulary)
    train(folder, tiny.training(name, **fields), tiny.tiny_config(vocabulary), table, vocabulary, mesh=mesh, seed=seed)

setting, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
"""


def start(
    code: str, setting: pathlib.Path, output: pathlib.Path, *, devices: int = 1, **environment: str
) -> subprocess.Popen:
    """Starts a process that runs SETUP and then `code`, which can use `setting` (token files) and `output`."""
    return start_python(["-c", SETUP + code, str(setting), str(output)], devices=devices, **environment)


def start_python(arguments: list[str], *, devices: int = 1, **environment: str) -> subprocess.Popen:
    """Starts Python on this number of simulated devices."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**simulated.environment(devices), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_job(
    code: str, setting: pathlib.Path, output: pathlib.Path, *, count: int, devices: int, **environment: str
) -> list[subprocess.Popen]:
    """Starts `count` processes of `devices` each on loopback; `joined(Processes())` makes them one job."""
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports()}", "JAX_NUM_PROCESSES": str(count)}
    return [
        start(code, setting, output, devices=devices, JAX_PROCESS_ID=str(index), **address, **environment)
        for index in range(count)
    ]


def start_verb(words: list[str], *, count: int, devices: int) -> list[subprocess.Popen]:
    """Starts `count` processes that run one command of the program as one job."""
    together = [f"--coordinator=127.0.0.1:{free_ports()}", f"--num_processes={count}"]
    command = ["-m", "pplx_jax", *words, *together]
    return [start_python([*command, f"--process_id={index}"], devices=devices) for index in range(count)]


def free_ports() -> int:
    """A port that is free, as is the one after it: below those that the system gives to whoever asks for any."""
    while True:
        port = random.randrange(20000, 32000, 2)
        try:
            for each in (port, port + 1):
                socket.create_server(("127.0.0.1", each)).close()
            return port
        except OSError:
            continue


def finish(processes: list[subprocess.Popen], timeout: float = 300) -> list[str]:
    """Waits for the processes and returns what each wrote to standard output. Fails with their errors if one failed."""
    ended = [process.communicate(timeout=timeout) for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(processes), "\n".join([str(codes), *(errors[-3000:] for _, errors in ended)])
    return [output for output, _ in ended]


def ends(processes: list[subprocess.Popen], timeout: float = 300) -> tuple[list[int], list[str]]:
    """Waits for the processes and returns exit codes and standard errors. No process is left running."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def wait_until(processes: list[subprocess.Popen], happened: Callable[[], Any], timeout: float = 300) -> None:
    """Waits for a moment in the work of a job.

    Raises:
      AssertionError: a process ended before that.
    """
    deadline = time.monotonic() + timeout
    while not happened():
        if any(process.poll() is not None for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.terminate()
            raise AssertionError(ends(processes))
        time.sleep(0.02)
