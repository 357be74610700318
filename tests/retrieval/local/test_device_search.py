"""Eight devices find what NumPy finds: every document, every bit of its score, every tie."""

import json
import pathlib

import pytest
from helpers import simulated

pytestmark = pytest.mark.slow

SETS = ("full_range", "ties", "copies")


@pytest.fixture(scope="module")
def agree():
    program = pathlib.Path(__file__).with_name("eight_devices.py")
    found = json.loads(simulated.run(str(program)).splitlines()[-1])
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 10, 1000])
@pytest.mark.parametrize("how", ["streamed", "kept"])
def test_the_same_as_numpy(agree, name, k, how):
    assert agree[f"{name}, {k} {how}"]


@pytest.mark.parametrize("name", ["ties", "copies"])
def test_the_devices_own_ranking_is_not(agree, name):
    assert not agree[f"control {name}"]
