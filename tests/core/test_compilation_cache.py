"""The folder of compiled programs: where it is, who may move it, and that a cached program computes the same bits."""

import os
import subprocess
import sys
import time

import pytest
from helpers import simulated

from pplx_jax.cli.main import main
from pplx_jax.core import compilation_cache
from pplx_jax.core.compilation_cache import FOLDER, use_compilation_cache

# Two steps of training at XLA's usual optimization, which the other tests leave out, and embeddings.
PROGRAM = """
import hashlib, sys
from pplx_jax.core.compilation_cache import use_compilation_cache
use_compilation_cache()
import dataclasses, jax, jax.monitoring, numpy as np
counts = {}
def count(name, **_):
    counts[name.rpartition("/")[2]] = counts.get(name.rpartition("/")[2], 0) + 1
jax.monitoring.register_event_listener(count)
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.optimizers import Optimizer
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.train_state import make_step, new_state
config = Qwen3Config(
    vocab_size=512, width=64, mlp_width=160, layers=2, query_heads=4, kv_heads=2, head_dim=16, dtype=sys.argv[1]
)
stage, mesh, optimizer = DiffusionStage(8, 96), Mesh().build(jax.devices()[:1]), Optimizer(1e-2, 0).build(4)
tokens = np.random.default_rng(0).integers(4, 512, (8, 96)).astype(np.int32)
batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.tile(np.arange(96), (8, 1))}
with jax.set_mesh(mesh):
    state = new_state(initial_params(config, 0), optimizer, mesh)
    step = make_step(stage, config, optimizer, steps=4, seed=0, mask_id=1, mesh=mesh)
    for _ in range(3):
        state, metrics = step(state, batch)
leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.optimizer, metrics))]
print(hashlib.sha256(b"".join(leaves)).hexdigest(), counts.get("cache_hits", 0), counts.get("cache_misses", 0))
"""


def run(cache, dtype, devices=1):
    """(digest of parameters, optimizer and metrics after three steps; programs read; programs written)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": simulated.environment(1)["PYTHONPATH"]}
    environment |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", FOLDER: ""}
    if cache is not None:
        del environment[FOLDER]
        environment["PPLX_JAX_CACHE"] = str(cache)
    done = subprocess.run([sys.executable, "-c", PROGRAM, dtype], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    digest, hits, misses = done.stdout.split()
    return digest, int(hits), int(misses)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_cache_with_a_cold_and_with_a_warm_one_training_computes_the_same_bits(tmp_path, dtype):
    digest, hits, misses = run(None, dtype)
    assert hits == misses == 0
    cold, warm = run(tmp_path, dtype), run(tmp_path, dtype)
    assert cold[:2] == (digest, 0) and cold[2] > 0
    assert warm[0] == digest and warm[1] > 0 and warm[2] == 0
    # Control: a process with more devices has programs of its own, which divide the work differently, as it shows.
    other = run(tmp_path, dtype, devices=4)
    assert other[0] != digest and other[1] == 0


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in (FOLDER, *compilation_cache._SETTINGS):
        monkeypatch.setenv(name, "")  # so that what the test sets is removed after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("PPLX_JAX_CACHE", str(tmp_path / "cache"))
    return os.environ


def test_the_folder_is_in_the_cache_folder_and_private(environment, tmp_path):
    use_compilation_cache()
    assert environment[FOLDER].startswith(f"{tmp_path}/cache/compiled/")
    assert os.stat(environment[FOLDER]).st_mode & 0o077 == 0
    assert environment["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(2 << 30)


def test_verbs_use_it_and_a_plan_compiles_anew(environment, tmp_path):
    assert main(["plan", "--topology=none"]) == 2
    assert FOLDER not in environment
    assert main(["embed", "--model=none", "--input=none", f"--output={tmp_path / 'out'}"]) == 2
    assert environment[FOLDER].startswith(f"{tmp_path}/cache/compiled/")


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_what_the_user_sets_stays(environment, tmp_path, given):
    environment[FOLDER] = given
    use_compilation_cache()
    assert environment[FOLDER] == given and not (tmp_path / "cache").exists()


def test_another_kind_of_cpu_has_another_folder(environment, monkeypatch):
    use_compilation_cache()
    first = environment.pop(FOLDER)
    monkeypatch.setattr(compilation_cache.platform, "machine", lambda: "riscv64")
    use_compilation_cache()
    assert environment[FOLDER] != first


def test_a_folder_that_cannot_be_written_is_no_error(environment, tmp_path):
    (tmp_path / "cache").write_text("a file")
    use_compilation_cache()
    assert FOLDER not in environment


def test_what_a_killed_process_left_is_removed(environment):
    use_compilation_cache()
    folder = environment.pop(FOLDER)
    for name in ("whole-cache", "whole-atime", "half-cache", "now-cache"):
        with open(os.path.join(folder, name), "wb"):
            pass
    for name in ("whole-cache", "half-cache"):
        os.utime(os.path.join(folder, name), (time.time() - 3600,) * 2)
    use_compilation_cache()
    assert sorted(os.listdir(folder)) == ["now-cache", "whole-atime", "whole-cache"]
