"""Processes with several simulated devices on the cores of this machine."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

# What runs for milliseconds is not worth optimizing for seconds.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
if JAXLIB == (0, 10):  # a release that does not know a flag ends the process
    # Fusion emitters compile for more than half of the time, and the division of a program for a third of the rest.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def environment(devices: int) -> dict[str, str]:
    """Returns the environment for `subprocess`, with the project and the helpers of the tests on its path."""
    tests = pathlib.Path(__file__).parents[1]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}",
        # XLA's pool has a thread a device. Two collectives that one device has begun at once take the thread that
        # another would answer them with, and all wait for ever: so more threads than devices.
        "NPROC": str(4 * devices),
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]),
    }


def run(*arguments: str, devices: int = 8, timeout: float = 600) -> str:
    """Runs Python with these arguments and returns its standard output. Fails with its errors if it fails."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(devices), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
