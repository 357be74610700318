"""Pooling against the definition: the mean of the token vectors of a slot, and of nothing else; quantized alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import simulated, tpu_compile
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import segment_pool as api
from pplx_jax.kernels.quantization import tanh_int8
from pplx_jax.kernels.segment_pool import pallas
from pplx_jax.kernels.segment_pool import reference as pooling
from pplx_jax.kernels.segment_pool.tiles import Tiles, choose_tiles

SLOTS = 4
SHAPE = (2, 16, 5)  # B, L, D

SMALL = Tiles(128, 128)
IMPLEMENTATIONS = {
    "reference": pooling.segment_pool,
    "pallas": functools.partial(pallas.segment_pool, tiles=SMALL, interpret=True),
}


@pytest.fixture(params=IMPLEMENTATIONS, scope="module")
def segment_pool(request):
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def pool(segment_pool):
    return jax.jit(functools.partial(segment_pool, slots=SLOTS))


def reference(hidden, chunk_ids, slots):
    """Float64 loops over rows, slots and tokens."""
    rows, length, width = hidden.shape
    pooled = np.zeros((rows, slots, width))
    counts = np.zeros((rows, slots))
    for row in range(rows):
        for slot in range(slots):
            for token in range(length):
                if chunk_ids[row, token] == slot + 1:
                    pooled[row, slot] += hidden[row, token].astype(np.float64)
                    counts[row, slot] += 1
            pooled[row, slot] /= max(counts[row, slot], 1)
    return pooled, counts


def random_case(seed=0):
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=SHAPE).astype(np.float32)
    chunk_ids = np.array(
        [
            [1, 1, 1, 0, 2, 2, 0, 4, 4, 4, 4, 4, 0, 0, 0, 0],  # separators inside, slot 3 empty
            [1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3],  # no padding, slot 4 empty
        ],
        np.int32,
    )
    return hidden, chunk_ids


def test_by_hand(segment_pool):
    hidden = np.array([[[1, 2], [3, 4], [100, 100], [5, 6], [-70, 9]]], np.float32)
    chunk_ids = np.array([[1, 1, 0, 2, 0]], np.int32)
    pooled, counts = segment_pool(jnp.asarray(hidden), jnp.asarray(chunk_ids), 3)
    # slot 0: ((1 + 3) / 2, (2 + 4) / 2) = (2, 3); slot 1: one token, (5, 6); slot 2: nothing.
    np.testing.assert_array_equal(pooled, [[[2, 3], [5, 6], [0, 0]]])
    np.testing.assert_array_equal(counts, [[2, 1, 0]])
    # Control: the mean over every column of the row, padding included, is another vector.
    assert not np.allclose(pooled[0, 0], hidden[0].mean(axis=0))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(flat_ids=st.lists(st.integers(0, SLOTS), min_size=32, max_size=32), seed=st.integers(0, 2**31))
def test_any_layout_against_loops(pool, flat_ids, seed):
    hidden = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    chunk_ids = np.array(flat_ids, np.int32).reshape(SHAPE[:2])
    pooled, counts = pool(hidden, chunk_ids)
    expected, expected_counts = reference(hidden, chunk_ids, SLOTS)
    assert pooled.shape == (SHAPE[0], SLOTS, SHAPE[2])
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counts, expected_counts)


@pytest.mark.parametrize("filler", [0.0, -7.25, 1e30, np.inf, -np.inf, np.nan])
def test_padding_moves_no_bit(pool, filler):
    hidden, chunk_ids = random_case()
    expected, expected_counts = pool(hidden, chunk_ids)
    disturbed = np.where((chunk_ids == 0)[..., None], np.float32(filler), hidden)
    pooled, counts = pool(disturbed, chunk_ids)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(counts, expected_counts)
    # Control: the same filler in one pooled token shows.
    disturbed[0, 0] = filler
    assert not np.array_equal(pool(disturbed, chunk_ids)[0], expected)


def test_a_slot_does_not_see_its_neighbours(pool):
    hidden, chunk_ids = random_case()
    expected, _ = pool(hidden, chunk_ids)
    disturbed = np.where((chunk_ids == 2)[..., None], np.float32(123.0), hidden)
    pooled, _ = pool(disturbed, chunk_ids)
    others = [0, 2, 3]
    np.testing.assert_array_equal(pooled[:, others], expected[:, others])
    assert not np.array_equal(pooled[:, 1], expected[:, 1])


def test_gradient_is_one_over_count_on_own_tokens_only(pool):
    hidden, chunk_ids = random_case()
    weights = np.random.default_rng(3).normal(size=(SHAPE[0], SLOTS, SHAPE[2])).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda h: (pool(h, chunk_ids)[0] * weights).sum()))(hidden)
    # d pooled[b, s] / d hidden[b, t] = 1 / count[b, s] where token t belongs to slot s, else 0.
    _, counts = reference(hidden, chunk_ids, SLOTS)
    expected = np.zeros(SHAPE)
    for row in range(SHAPE[0]):
        for token in range(SHAPE[1]):
            slot = chunk_ids[row, token] - 1
            if slot >= 0:
                expected[row, token] = weights[row, slot] / counts[row, slot]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(gradient)[chunk_ids == 0], 0.0)


@pytest.mark.parametrize("filler", [np.inf, np.nan])
def test_padding_that_is_not_finite_does_not_change_the_gradient(pool, filler):
    hidden, chunk_ids = random_case()
    weights = np.random.default_rng(3).normal(size=(SHAPE[0], SLOTS, SHAPE[2])).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda h: (pool(h, chunk_ids)[0] ** 2 * weights).sum()))
    disturbed = np.where((chunk_ids == 0)[..., None], np.float32(filler), hidden)
    np.testing.assert_array_equal(gradient(disturbed), gradient(hidden))
    np.testing.assert_array_equal(np.asarray(gradient(disturbed))[chunk_ids == 0], 0.0)


def test_half_precision_tokens_are_summed_in_float32(segment_pool):
    length = 300
    hidden = jnp.asarray(1.0 + np.random.default_rng(5).normal(size=(1, length, 4)), jnp.bfloat16)
    chunk_ids = jnp.ones((1, length), jnp.int32)
    pooled, counts = jax.jit(functools.partial(segment_pool, slots=1))(hidden, chunk_ids)
    assert pooled.dtype == jnp.float32
    assert counts.dtype == jnp.float32
    exact = np.asarray(hidden, np.float64).mean(axis=1)
    np.testing.assert_allclose(pooled[0], exact, rtol=2e-6, atol=2e-6)
    # Control: a running sum in bfloat16 loses the tail.
    total = jnp.zeros(4, jnp.bfloat16)
    for token in np.asarray(hidden[0]):
        total = np.asarray(total + token, jnp.bfloat16)
    assert np.abs(np.asarray(total, np.float64) / length - exact[0]).max() > 1e-3


def test_very_many_slots_pool_alike(monkeypatch):
    hidden, chunk_ids = random_case()
    hidden[0, 3] = np.nan  # outside every slot
    expected = pooling.mean_pool(jnp.asarray(hidden), jnp.asarray(chunk_ids), SLOTS)
    monkeypatch.setattr(pooling, "_MAX_ONE_HOT_SLOTS", SLOTS - 1)
    found = pooling.mean_pool(jnp.asarray(hidden), jnp.asarray(chunk_ids), SLOTS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rounding", ["half_even", "floor"])
def test_quantized_on_the_way_out(segment_pool, rounding):
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(2, 300, 140)), jnp.float32)
    chunk_ids = jnp.asarray(np.sort(generator.integers(0, 9, (2, 300))), jnp.int32)
    weights = jnp.asarray(generator.normal(size=(2, 8, 140)), jnp.float32)
    expected = tanh_int8(pooling.mean_pool(hidden, chunk_ids, 8)[0], rounding)
    int8, counts = segment_pool(hidden, chunk_ids, 8, output="int8", rounding=rounding)
    assert int8.dtype == jnp.int8 and np.abs(np.asarray(int8)).max() > 20
    scaled = 127 * np.tanh(np.asarray(pooling.mean_pool(hidden, chunk_ids, 8)[0]))
    at_edge = np.abs(scaled - np.floor(scaled) - 0.5) < 1e-3
    assert np.all((int8 == expected) | at_edge)
    np.testing.assert_array_equal(counts.sum(1), (np.asarray(chunk_ids) > 0).sum(1))

    def gradient(function):
        return jax.grad(lambda h: (function(h, chunk_ids, 8, output="tanh_int8", rounding=rounding)[0] * weights).sum())

    np.testing.assert_allclose(gradient(segment_pool)(hidden), gradient(pooling.segment_pool)(hidden), atol=1e-4)
    # Control: the gradient of the mean alone is another.
    plain = jax.grad(lambda h: (pooling.mean_pool(h, chunk_ids, 8)[0] * weights).sum())(hidden)
    assert np.abs(gradient(segment_pool)(hidden) - plain).max() > 0.1


def test_what_is_forced_runs_or_is_refused():
    hidden, chunk_ids = map(jnp.asarray, random_case())
    found = api.segment_pool(hidden, chunk_ids, SLOTS, implementation="reference")[0]
    np.testing.assert_array_equal(found, api.segment_pool(hidden, chunk_ids, SLOTS)[0])
    with pytest.raises(BadInput, match="needs a TPU, this is cpu"):
        api.segment_pool(hidden, chunk_ids, SLOTS, implementation="pallas")
    with pytest.raises(BadInput, match="'fast' is not one of"):
        api.segment_pool(hidden, chunk_ids, SLOTS, implementation="fast")
    with pytest.raises(BadInput, match="output 'binary' is not one of"):
        api.segment_pool(hidden, chunk_ids, SLOTS, output="binary")


def test_tiles_refuse_what_does_not_fit():
    with pytest.raises(BadInput, match="Tiles.block_length=100 is not a multiple of 128"):
        Tiles(100, 128)
    with pytest.raises(BadInput, match=r"tiles of 8192 x 2560 need \d+ MiB"):
        Tiles(8192, 2560).require(128, 4)
    with pytest.raises(BadInput, match="5000 slots per sequence, the kernel has at most 1024"):
        pallas.segment_pool(jnp.zeros((1, 8, 8)), jnp.zeros((1, 8), jnp.int32), 5000)
    for width in (1024, 2560, 4096):
        for slots in (128, 1024):
            choose_tiles(4224, width, slots, 4).require(slots, 4)


# Kernels of a pass without a gradient.
MEASURE = """
from pplx_jax.kernels.segment_pool import segment_pool

def measure(topology, width, slots):
    mesh, array = on(topology)
    shapes = array(4, 4096, width, dtype=jnp.bfloat16), array(4, 4096, dtype=jnp.int32)
    def pool(output):
        return lambda hidden, ids: segment_pool(hidden, ids, slots, output=output)[0]
    with jax.set_mesh(mesh):
        jax.jit(jax.grad(lambda *arguments: pool("tanh_int8")(*arguments).sum())).lower(*shapes).compile()
        return jax.jit(pool("int8")).lower(*shapes).compile().as_text().count("tpu_custom_call")
"""
MODELS = [(topology, width, 64) for topology in tpu_compile.TOPOLOGIES for width in (1024, 2560)]


@pytest.fixture(scope="module")
def on_tpus():
    return tpu_compile.compile_all(MEASURE, MODELS)


@pytest.mark.slow
@tpu_compile.needs_libtpu
@pytest.mark.parametrize("case", MODELS)
def test_it_compiles_for_both_models(on_tpus, case):
    assert on_tpus(*case) == 1


ON_A_MESH = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pplx_jax.kernels import segment_pool as api
generator = np.random.default_rng(0)
hidden = jnp.asarray(generator.normal(size=(4, 64, 24)), jnp.float32)
ids = jnp.asarray(generator.integers(0, 6, (4, 64)), jnp.int32)
weight = jnp.asarray(generator.normal(size=(4, 6, 24)), jnp.float32)
def run(pool):
    def loss(hidden):
        vectors, counts = pool(hidden, ids)
        return (vectors * weight).sum(), (vectors, counts)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))
mesh = jax.make_mesh((2, 4), ("fsdp", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
for output in ("mean", "tanh_int8"):
    options = {"slots": 6, "output": output, "rounding": "half_even"}
    (_, (vectors, counts)), gradient = run(functools.partial(api.reference.segment_pool, **options))(hidden)
    with jax.set_mesh(mesh):
        placed = jax.device_put(hidden, NamedSharding(mesh, PartitionSpec("fsdp", "sequence")))
        (_, found), of_hidden = run(functools.partial(api._on_mesh, interpret=True, **options))(placed)
        np.testing.assert_allclose(found[0], vectors, atol=1e-5)
        np.testing.assert_array_equal(found[1], counts)
        np.testing.assert_allclose(of_hidden, gradient, atol=1e-4)
"""


@pytest.mark.slow
def test_tokens_of_a_row_on_several_devices():
    simulated.run("-c", ON_A_MESH)
