"""Checkpoints in a bucket, where a folder cannot be renamed at once: complete or ignored, damaged or restored."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.checkpoints.orbax import Checkpoints, Keep
from pplx_jax.checkpoints.saved_params import load_params, save_params
from pplx_jax.core.errors import BadInput

pytestmark = pytest.mark.long

COMMIT = "commit_success.txt"


def state(seed):
    kernel = jnp.asarray(np.random.default_rng(seed).normal(size=(40, 50)).astype(np.float32))
    return {"params": {"dense": {"kernel": kernel}}, "step": jnp.int32(seed)}


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, Keep(latest=keep))
    for step in steps:
        checkpoints.save(step, state(step), {"position": step})
    checkpoints.close()


def restore(folder):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore_latest(state(0))
    finally:
        checkpoints.close()


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), tree)


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """The free space of a disk of this machine says nothing about a bucket."""
    monkeypatch.setattr(shutil, "disk_usage", None)


def test_every_bit_comes_back_and_so_many_are_kept(bucket):
    save(bucket, 1, 2, 10)
    assert names(bucket) == ["10", "2"]
    step, restored, about = restore(bucket)
    assert (step, about) == (10, {"position": 10}) and bits(restored) == bits(state(10))
    assert bits(load_params(bucket)) == bits(state(10)["params"])
    assert bits(load_params(bucket, 2)) == bits(state(2)["params"])


def test_one_without_its_last_file_does_not_count(bucket):
    save(bucket, 1, 2)
    (bucket / "checkpoints" / "2" / COMMIT).unlink()
    assert bits(load_params(bucket)) == bits(state(1)["params"])
    assert restore(bucket)[0] == 1
    save(bucket, 2)
    assert restore(bucket)[0] == 2


def test_a_damaged_one_is_set_aside(bucket, caplog):
    save(bucket, 1, 2)
    for path in (bucket / "checkpoints" / "2" / "default" / "d").iterdir():
        path.write_bytes(b"damage")
    assert restore(bucket)[0] == 1
    assert names(bucket) == ["1", "2.damaged"] and "2 is damaged" in caplog.text


def test_a_save_asks_a_busy_server_again(bucket, bucket_server):
    checkpoints = Checkpoints(bucket)
    bucket_server.refusals = 6
    checkpoints.save(3, state(3), {"position": 3})
    checkpoints.close()
    assert bucket_server.refusals == 0
    bucket_server.refusals = 3
    assert restore(bucket)[0] == 3 and bucket_server.refusals == 0


def test_parameters_alone(bucket):
    params = {"dense": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}}
    save_params(bucket, 5, params)
    assert bits(load_params(bucket)) == bits(params)
    (bucket / "checkpoints" / "5.sha256").write_text("0" * 64 + "\n")
    with pytest.raises(BadInput, match=r"5 is damaged: its parameters do not have the digest"):
        load_params(bucket)


def test_a_folder_without_checkpoints_is_bad_input(bucket):
    with pytest.raises(BadInput, match="holds no checkpoint"):
        load_params(bucket)
