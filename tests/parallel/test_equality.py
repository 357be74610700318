"""Eight devices under every preset compute what one computes: losses, gradients, parameters, for every stage."""

import json
import pathlib

import numpy as np
import pytest
from helpers import simulated

pytestmark = pytest.mark.slow

PRESETS = ("fsdp", "fsdp_tensor", "long_context", "multislice")
STAGES = ("diffusion", "pair", "contextual", "triplet")


@pytest.fixture(scope="module")
def found():
    program = pathlib.Path(__file__).with_name("equality.py")
    return json.loads(simulated.run(str(program), "single", *PRESETS).splitlines()[-1])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_eight_devices_compute_what_one_does(found, preset, stage):
    one, eight = found["found"]["single"][stage], found["found"][preset][stage]
    np.testing.assert_allclose(eight["numbers"], one["numbers"], rtol=1e-5)
    size = np.abs(one["gradient"]).max()
    np.testing.assert_allclose(eight["gradient"], one["gradient"], rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(eight["params"], one["params"], rtol=1e-5, atol=1e-5)


def test_random_parameters_are_the_same_on_any_mesh(found):
    assert found["initial"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_steps_were_steps(found, stage):
    losses = [loss for loss, _ in found["found"]["single"][stage]["numbers"]]
    assert len(set(losses)) == len(losses) and np.abs(found["found"]["single"][stage]["gradient"]).max() > 1e-5


def test_another_order_of_documents_and_local_negatives_are_noticed(found):
    controls = found["controls"]
    true = found["found"]["single"]["pair"]["numbers"][0][0]
    assert controls["true"][0] == pytest.approx(true, rel=1e-5)
    for name in ("rolled", "local"):
        assert abs(controls[name][0] - true) > 1e-2 * abs(true), name
