"""tanh-INT8 and binary quantization against their formulas and against `numpy.packbits`."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from pplx_jax.core import errors
from pplx_jax.kernels import quantization

ROUNDINGS = ("half_even", "floor")
VALUES = hypothesis_numpy.arrays(np.float32, (3, 16), elements=st.floats(-4, 4, width=32))


def reference(v, rounding):
    """clip(round(127 tanh v), -127, 127), in float64; `floor` is the paper's floor(127 tanh v + 1/2)."""
    scaled = 127.0 * np.tanh(np.asarray(v, np.float64))
    rounded = np.rint(scaled) if rounding == "half_even" else np.floor(scaled + 0.5)
    return np.clip(rounded, -127, 127)


def away_from_edges(v):
    scaled = 127.0 * np.tanh(np.asarray(v, np.float64))
    return np.abs(scaled - np.floor(scaled) - 0.5) > 1e-3


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_by_hand(rounding):
    # 127 tanh: 0 -> 0, 0.5 -> 58.689, 1 -> 96.722, 2 -> 122.432, -0.1 -> -12.658, -1 -> -96.722.
    v = jnp.asarray([0.0, 0.5, 1.0, 2.0, -0.1, -1.0], jnp.float32)
    expected = [0, 59, 97, 122, -13, -97]
    quantized = quantization.tanh_int8(v, rounding=rounding)
    assert quantized.dtype == jnp.float32
    np.testing.assert_array_equal(quantized, expected)
    stored = quantization.to_int8(v, rounding)
    assert stored.dtype == jnp.int8
    np.testing.assert_array_equal(stored, expected)
    # Control: 127 v without the tanh is something else.
    assert not np.array_equal(np.clip(np.rint(127 * np.asarray(v)), -127, 127), expected)


def test_half_to_even_is_the_default():
    v = half_edges()
    np.testing.assert_array_equal(quantization.tanh_int8(v), quantization.tanh_int8(v, rounding="half_even"))


@functools.cache
def half_edges():
    """Float32 values whose 127 tanh v is exactly k + 1/2 in float32, for many k of both signs."""
    found = {}
    for k in range(-80, 80):
        middle = np.float32(math.atanh((k + 0.5) / 127))
        steps = np.arange(-30, 31) * np.spacing(np.abs(middle))
        candidates = (middle + steps).astype(np.float32)
        scaled = np.asarray(127 * jnp.tanh(candidates))
        hits = candidates[scaled == np.float32(k + 0.5)]
        if len(hits):
            found[k] = hits[0]
    assert len(found) > 40 and min(found) < -20 and max(found) > 20
    return jnp.asarray(list(found.values()), jnp.float32)


def test_roundings_part_exactly_at_the_half_edges():
    v = half_edges()
    lower = np.floor(127 * np.tanh(np.asarray(v, np.float64)) - 0.25)  # the k of k + 1/2
    # half to even takes whichever of k, k + 1 is even; the paper's floor(x + 1/2) always takes k + 1.
    even = np.where(lower % 2 == 0, lower, lower + 1)
    half_even = np.asarray(quantization.tanh_int8(v, rounding="half_even"))
    floor = np.asarray(quantization.tanh_int8(v, rounding="floor"))
    np.testing.assert_array_equal(half_even, even)
    np.testing.assert_array_equal(floor, lower + 1)
    np.testing.assert_array_equal(half_even != floor, lower % 2 == 0)
    assert (half_even != floor).any()


@given(VALUES)
def test_any_values(v):
    clear = away_from_edges(v)
    for rounding in ROUNDINGS:
        quantized = np.asarray(quantization.tanh_int8(v, rounding=rounding))
        np.testing.assert_array_equal(quantized[clear], reference(v, rounding)[clear])
        np.testing.assert_array_equal(quantized, np.rint(quantized))
        np.testing.assert_array_equal(np.asarray(quantization.to_int8(v, rounding)), quantized)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_clipped_at_127_both_ways(rounding):
    v = jnp.asarray([5.0, 50.0, 3e38, np.inf, -5.0, -50.0, -3e38, -np.inf], jnp.float32)
    # tanh 5 = 0.99991, 127 x that = 126.988 -> 127; nothing reaches 128 or -128.
    expected = [127, 127, 127, 127, -127, -127, -127, -127]
    np.testing.assert_array_equal(quantization.tanh_int8(v, rounding=rounding), expected)
    np.testing.assert_array_equal(quantization.to_int8(v, rounding), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_straight_through_gradient(rounding):
    v = jnp.asarray([0.0, 0.5, -1.0, 2.0, 3.0, -20.0], jnp.float32)
    gradient = jax.grad(lambda x: quantization.tanh_int8(x, rounding=rounding).sum())(v)
    # 127 (1 - tanh^2): 0 -> 127, 0.5 -> 99.878862, -1 -> 53.336741, 2 -> 8.972655, 3 -> 1.252987, -20 -> 0.
    expected = [127.0, 99.878862, 53.336741, 8.972655, 1.252987, 0.0]
    np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-5)
    # Controls: rounding without the straight-through has no gradient; a bare identity would give ones.
    assert np.all(np.asarray(jax.grad(lambda x: jnp.round(127 * jnp.tanh(x)).sum())(v)) == 0)
    assert not np.allclose(gradient, 1.0)


def test_gradient_matches_finite_differences_of_the_smooth_function():
    v = np.random.default_rng(0).normal(size=64)
    step = 1e-6
    slope = 127 * (np.tanh(v + step) - np.tanh(v - step)) / (2 * step)  # float64
    gradient = jax.grad(lambda x: quantization.tanh_int8(x).sum())(jnp.asarray(v, jnp.float32))
    np.testing.assert_allclose(gradient, slope, rtol=1e-4)


def test_half_precision_in_gives_float32_out():
    v = jnp.asarray([0.3, -0.7, 1.1], jnp.bfloat16)
    quantized = quantization.tanh_int8(v)
    assert quantized.dtype == jnp.float32
    np.testing.assert_array_equal(quantized, reference(np.asarray(v, np.float64), "half_even"))


def test_unknown_rounding_is_bad_input():
    with pytest.raises(errors.BadInput, match="nearest"):
        quantization.tanh_int8(jnp.zeros(2), rounding="nearest")
    with pytest.raises(errors.BadInput, match="nearest"):
        quantization.to_int8(jnp.zeros(2), "nearest")


def test_binary_counts_zero_as_plus_one():
    v = jnp.asarray([[0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0]], jnp.float32)
    signs = quantization.to_binary(v)
    assert signs.dtype == jnp.int8
    np.testing.assert_array_equal(signs, [[1, 1, 1, -1, 1, -1]])
    # Control: numpy.sign gives zero where v is zero.
    assert not np.array_equal(np.sign(np.asarray(v)), signs)


def test_bits_by_hand():
    v = jnp.asarray([[3.0, -1, -1, -1, -1, -1, -1, -1, 0.0, 0.0, -1, -1, -1, -1, -1, 5.0]], jnp.float32)
    # Bits 1000 0000 and 1100 0001; first bit highest: 128 and 128 + 64 + 1 = 193; first bit lowest: 1 and
    # 1 + 2 + 128 = 131.
    np.testing.assert_array_equal(quantization.pack_bits(v), [[128, 193]])
    np.testing.assert_array_equal(quantization.pack_bits(v, bit_order="big"), [[128, 193]])
    np.testing.assert_array_equal(quantization.pack_bits(v, bit_order="little"), [[1, 131]])


@given(VALUES)
def test_bits_against_numpy(v):
    bits = v >= 0
    signs = np.where(bits, 1, -1)
    np.testing.assert_array_equal(quantization.to_binary(v), signs)
    for order in ("big", "little"):
        packed = quantization.pack_bits(v, bit_order=order)
        assert packed.dtype == np.uint8
        assert packed.shape == (3, 2)
        np.testing.assert_array_equal(packed, np.packbits(bits, axis=-1, bitorder=order))
        unpacked = quantization.unpack_bits(packed, order)
        assert unpacked.dtype == np.int8
        np.testing.assert_array_equal(unpacked, signs)


def test_reading_bits_in_the_wrong_order_shows():
    v = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)
    packed = quantization.pack_bits(v, bit_order="big")
    assert not np.array_equal(quantization.unpack_bits(packed, "little"), quantization.to_binary(v))


def test_bits_refuse_what_they_cannot_hold():
    with pytest.raises(errors.BadInput, match="12"):
        quantization.pack_bits(jnp.zeros((2, 12)))
    with pytest.raises(errors.BadInput, match="middle"):
        quantization.pack_bits(jnp.zeros((2, 16)), bit_order="middle")
    with pytest.raises(errors.BadInput, match="middle"):
        quantization.unpack_bits(jnp.zeros((2, 2), jnp.uint8), "middle")
