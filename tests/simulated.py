"""The environment of a process that has several devices on this machine's cores."""

import os
import pathlib


def environment(devices: int) -> dict[str, str]:
    """For `subprocess`; the project is on its path."""
    root = str(pathlib.Path(__file__).parents[1])
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # What runs for milliseconds is not worth optimizing for seconds.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        # XLA's pool has a thread a device. Two collectives that one device has begun at once take the thread that
        # another would answer them with, and all wait for ever: so more threads than devices.
        "NPROC": str(4 * devices),
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
