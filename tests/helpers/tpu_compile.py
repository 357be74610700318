"""Compiles for TPUs that are not here, in a process of its own: libtpu reads its settings once, at the first use."""

import importlib.util
import os
import subprocess
import sys

import pytest

from pplx_jax.plan.libtpu import ENVIRONMENT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (there is none for this platform)"
)
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def run(program: str, *arguments: str) -> str:
    """What the program prints; its error where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stdout
