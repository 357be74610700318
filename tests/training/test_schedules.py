"""Schedules compared with hand-computed points of their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pplx_jax.core import errors
from pplx_jax.training import schedules


def values(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def test_cosine_ramp_by_hand():
    # start + (end - start)(1 - cos(pi p)) / 2 from 0.2 to 0.5: p = 1/4 gives 0.2 + 0.15 (1 - 0.7071068)
    # = 0.2439340, p = 1/2 the middle, 0.35, p = 3/4 0.2 + 0.15 (1.7071068) = 0.4560660.
    points = [0.0, 0.25, 0.5, 0.75, 1.0]
    ramp = [float(schedules.cosine_ramp(0.2, 0.5, point)) for point in points]
    np.testing.assert_allclose(ramp, [0.2, 0.2439340, 0.35, 0.4560660, 0.5], rtol=1e-6)
    assert abs(ramp[1] - 0.275) > 0.02  # control: linear
    downward = [float(schedules.cosine_ramp(0.5, 0.2, point)) for point in points]
    np.testing.assert_allclose(downward, ramp[::-1], rtol=1e-6)


def test_cosine_ramp_is_flat_at_both_ends_and_can_be_traced():
    slope = jax.jit(jax.vmap(jax.grad(lambda p: schedules.cosine_ramp(0.2, 0.5, p))))
    # d/dp = (end - start) pi sin(pi p) / 2: 0, 0.3 x 3.1415927 / 2 = 0.4712389 in the middle, 0.
    np.testing.assert_allclose(slope(jnp.asarray([0.0, 0.5, 1.0])), [0, 0.4712389, 0], rtol=1e-5, atol=1e-6)


def test_warmup_stable_decay_by_hand():
    # 100 steps, 10 of warm-up, the last 20% (from step 80) of decay, peak 5e-4.
    schedule = schedules.warmup_stable_decay(5e-4, 100, 10, 0.2)
    # 5: half way up. 10 to 80: the peak. 85, 90, 95: three, two and one quarter of it. 100: nothing.
    points = [0, 5, 10, 11, 45, 79, 80, 85, 90, 95, 100]
    expected = [0, 2.5e-4, 5e-4, 5e-4, 5e-4, 5e-4, 5e-4, 3.75e-4, 2.5e-4, 1.25e-4, 0]
    np.testing.assert_allclose(values(schedule, points), expected, rtol=1e-5, atol=1e-10)
    # Control: without the stable phase the decay would begin at the end of the warm-up.
    assert values(schedule, [79])[0] > 4.9e-4


def test_warmup_stable_decay_takes_the_last_tenth_by_default():
    schedule = schedules.warmup_stable_decay(1.0, 200, 20)
    np.testing.assert_allclose(values(schedule, [10, 20, 180, 190, 200]), [0.5, 1, 1, 0.5, 0], atol=1e-6)


def test_warmup_cosine_by_hand():
    schedule = schedules.warmup_cosine(2e-4, 110, 10)
    # Half way up at 5, peak at 10; then (1 + cos(pi q)) / 2 of it with q = (step - 10) / 100:
    # q = 1/4: 0.8535534, q = 1/2: 0.5, q = 3/4: 0.1464466, q = 1: 0.
    expected = 2e-4 * np.array([0, 0.5, 1, 0.8535534, 0.5, 0.1464466, 0])
    np.testing.assert_allclose(values(schedule, [0, 5, 10, 35, 60, 85, 110]), expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("build", [schedules.warmup_stable_decay, schedules.warmup_cosine])
def test_shape_over_the_whole_run(build):
    rates = values(build(3e-4, 60, 12), range(61))
    assert rates.argmax() == 12 and rates.max() == np.float32(3e-4)
    assert (np.diff(rates[:13]) > 0).all()
    assert (np.diff(rates[12:]) <= 0).all()
    assert (rates >= 0).all()
    assert float(build(3e-4, 60, 0)(0)) == np.float32(3e-4)  # no warm-up: the peak at once
    assert np.isfinite(float(build(3e-4, 60, 12)(1000)))
    traced = jax.jit(jax.vmap(build(3e-4, 60, 12)))(jnp.arange(61))  # the training step passes a traced count
    np.testing.assert_allclose(traced, rates, rtol=1e-6, atol=3e-11)  # float32 rounding of the peak


def test_phases_that_do_not_fit_are_bad_input():
    with pytest.raises(errors.BadInput):
        schedules.warmup_stable_decay(1.0, 100, 60, 0.5)
    with pytest.raises(errors.BadInput):
        schedules.warmup_cosine(1.0, 100, 101)
