"""Eight devices, and two processes of four, give the vectors of one device, bit for bit."""

import json
import pathlib

import numpy as np
import pytest
from helpers import job, simulated

from pplx_jax.kernels.quantization import quantize

pytestmark = pytest.mark.slow

PROGRAM = str(pathlib.Path(__file__).with_name("meshes.py"))
EXACT = ("data", "data_fsdp-placed")
SHARED_SUMS = ("tensor_sequence",)
TWO_PROCESSES = ("data_fsdp-torus", "data-shared")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    simulated.run(PROGRAM, str(folder), "one", *EXACT, *SHARED_SUMS)
    return folder


@pytest.fixture(scope="module")
def printed(folder):
    arguments = [PROGRAM, str(folder), *TWO_PROCESSES]
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{job.free_ports()}", "JAX_NUM_PROCESSES": "2"}
    started = [
        job.start_python(arguments, devices=4, JAX_PROCESS_ID=str(index), **address) for index in range(2)
    ]  # fmt: skip
    return [json.loads(output.splitlines()[-1]) for output in job.finish(started)]


def read(folder, name) -> np.ndarray:
    return np.load(folder / f"{name}.npy")


@pytest.mark.parametrize("name", EXACT)
def test_eight_devices_give_the_vectors_of_one(folder, name):
    assert read(folder, "one").any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(read(folder, name), read(folder, "one"))


@pytest.mark.parametrize("name", SHARED_SUMS)
def test_devices_that_share_a_sum_differ_in_its_last_bits_only(folder, name):
    found, one = read(folder, name), read(folder, "one")
    assert not np.array_equal(found, one)  # and so the test above compares bits
    np.testing.assert_allclose(found, one, rtol=0, atol=1e-6 * np.abs(one).max())
    np.testing.assert_array_equal(quantize(found, "int8"), quantize(one, "int8"))


@pytest.mark.parametrize("name", TWO_PROCESSES)
def test_two_processes_give_the_vectors_of_one_device(folder, printed, name):
    assert printed[0][name][0] == printed[1][name][0]
    np.testing.assert_array_equal(read(folder, name), read(folder, "one"))


def test_two_processes_have_equal_shares(printed):
    (_, first), (_, second) = (printed[index]["data-shared"] for index in range(2))
    _, all_tokens = printed[0]["data_fsdp-torus"]
    assert first + second == all_tokens
    assert abs(first - second) < all_tokens / 5
