"""Compiles for TPUs without having them, in a separate process: libtpu reads its settings once, at the first use."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pplx_jax.plan.libtpu import ENVIRONMENT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (there is none for this platform)"
)
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")

EACH = """
import json, sys, traceback
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

def on(topology):
    # A mesh of one device, and the shape of an array on it.
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = jax.sharding.Mesh(devices[:1], ("data",))
    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    return mesh, array
"""
LOOP = """
for case in json.loads(sys.argv[1]):
    try:
        print(json.dumps({"found": measure(*case)}), flush=True)
    except Exception:
        print(json.dumps({"error": traceback.format_exc()[-4000:]}), flush=True)
"""


def compile_all(measure: str, cases: Iterable[tuple]) -> Callable[..., Any]:
    """Runs `measure(topology, *sizes)`, whose code this is, for every case, in one process.

    Returns:
      A function of the words of a case: the numbers that were measured.

    Raises:
      RuntimeError: the process ended; or, from that function, the case did not compile.
    """
    cases = list(dict.fromkeys(cases))
    done = subprocess.run(
        [sys.executable, "-c", EACH + measure + LOOP, json.dumps(cases)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        raise RuntimeError(f"the process ended at {cases[len(lines)]}: {done.stderr[-4000:]}")
    results = dict(zip(cases, lines, strict=True))

    def found(*case):
        if "error" in results[case]:
            raise RuntimeError(results[case]["error"])
        return results[case]["found"]

    return found
