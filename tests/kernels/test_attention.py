"""Attention over packed sequences: one suite that every implementation passes, and properties of the kernels."""

import dataclasses
import functools
import importlib.util
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import simulated
from hypothesis import given, settings

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import attention as api
from pplx_jax.kernels.attention import blockwise, pallas, reference, splash, triton
from pplx_jax.kernels.attention.mask_info import PADDED, WINDOW_BITS, make_mask_info, overlap_ranges
from pplx_jax.kernels.attention.tiles import Tiles, choose_tiles
from pplx_jax.kernels.attention.triton_blocks import Blocks

# Two key heads per grid step, and two interleaved masked blocks where half of `block_kv_masked` is enough for each.
SMALL = (
    Tiles(
        block_q=256,
        block_kv=512,
        block_q_unmasked=128,
        block_q_masked=128,
        block_kv_masked=256,
        kv_heads=2,
        interleave=2,
    ),
) * 2
IMPLEMENTATIONS = {
    "reference": reference.attention,
    "blockwise": functools.partial(blockwise.attention, block_q=16),
    "pallas": functools.partial(pallas.attention, tiles=SMALL, interpret=True),
    "splash": functools.partial(splash.attention, interpret=True),
    "triton": functools.partial(triton.attention, interpret=True),
}
if importlib.util.find_spec("tokamax"):
    IMPLEMENTATIONS["tokamax"] = functools.partial(splash.attention, library="tokamax", interpret=True)
KERNELS = [name for name in IMPLEMENTATIONS if name not in ("reference", "blockwise")]
mask_info = jax.jit(make_mask_info, static_argnames=("tiles", "causal", "by_key"))


def packed(length: int, lengths: list[int], gap: int = 0) -> np.ndarray:
    """Segment ids of a sequence: texts of these lengths one after another while they fit, `gap` of padding between."""
    ids, at = np.zeros(length, np.int32), 0
    for number, size in enumerate(lengths, start=1):
        ids[at : at + size] = number
        at += size + gap
    return ids


# Sequences of 1,200: texts that end inside, at and across block boundaries, one that fills whole blocks, none at all,
# padding between texts, ids that come back.
LAYOUTS = {
    "short": packed(1200, [100, 30, 270, 300, 200]),
    "aligned": packed(1200, [256, 256, 128, 128, 256]),
    "long": packed(1200, [1200]),
    "long and padding": packed(1200, [900]),
    "two": packed(1200, [530, 600]),
    "empty": packed(1200, []),
    "gaps": packed(1200, [90, 400, 60, 300], gap=50),
    "returning": np.resize(np.repeat([1, 2, 0, 3], 75), 1200).astype(np.int32),
}


def exact_attention(query, key, value, ids, causal):
    """In NumPy and float64, one query at a time: [L, H, E] of one sequence."""
    out = np.zeros(query.shape)
    group = query.shape[1] // key.shape[1]
    for place in np.flatnonzero(ids):
        seen = (ids == ids[place]) & ((np.arange(len(ids)) <= place) | (not causal))
        for head in range(query.shape[1]):
            scores = key[seen, head // group] @ query[place, head] / np.sqrt(query.shape[2])
            weights = np.exp(scores - scores.max())
            out[place, head] = weights @ value[seen, head // group] / weights.sum()
    return out


def inputs(segment_ids, heads=2, kv_heads=1, head_dim=64, seed=0):
    segment_ids = np.atleast_2d(segment_ids)
    generator = np.random.default_rng(seed)
    shape = segment_ids.shape
    arrays = (generator.normal(size=(*shape, count, head_dim)) for count in (heads, kv_heads, kv_heads, heads))
    query, key, value, weights = (jnp.asarray(array, jnp.float32) for array in arrays)
    return (query, key, value, jnp.asarray(segment_ids, jnp.int32)), weights


def results(attention, arguments, weights, *, causal=False):
    """(output, gradients of a weighted sum of it)."""
    return _graded(attention, causal)(*arguments, weights)


@functools.cache
def _graded(attention, causal):
    def loss(query, key, value, ids, weights):
        out = attention(query, key, value, ids, causal=causal)
        return jnp.sum(weights * out), out

    graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)

    @jax.jit
    def run(*arguments):
        (_, out), gradients = graded(*arguments)
        return out, gradients

    return run


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_is_attention_by_hand(name, causal):
    arguments, _ = inputs([packed(40, [7, 20, 9]), packed(40, [40])], heads=4, kv_heads=2, head_dim=8)
    found = jax.jit(functools.partial(IMPLEMENTATIONS[name], causal=causal))(*arguments)
    for row in range(2):
        expected = exact_attention(
            *(np.asarray(array[row], np.float64) for array in arguments[:3]), arguments[3][row], causal
        )
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "reference"])
def test_each_is_the_reference_and_so_are_its_gradients(name, causal):
    arguments, weights = inputs(list(LAYOUTS.values()), head_dim=32)
    found, gradients = results(IMPLEMENTATIONS[name], arguments, weights, causal=causal)
    expected, expected_gradients = results(reference.attention, arguments, weights, causal=causal)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.all(np.asarray(found)[np.asarray(arguments[3]) == 0] == 0)
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), max_size=6),
    gap=st.integers(0, 130),
    shape=st.sampled_from([(300, 2, 1, 16, False), (513, 4, 1, 64, True), (700, 3, 3, 100, False)]),
)
def test_random_layouts_and_shapes(name, lengths, gap, shape):
    length, heads, kv_heads, head_dim, causal = shape
    arguments, weights = inputs(packed(length, lengths, gap)[:length], heads, kv_heads, head_dim, seed=len(lengths))
    found, gradients = results(IMPLEMENTATIONS[name], arguments, weights, causal=causal)
    expected, expected_gradients = results(reference.attention, arguments, weights, causal=causal)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_neighbours_and_padding_change_no_bit(name):
    ids = packed(1200, [100, 300, 270], gap=40)
    arguments, weights = inputs(ids)
    mine = ids == 2
    others = jnp.asarray(~mine)[None, :, None, None]
    changed = tuple(jnp.where(others, 3.0 * array + 1.0, array) for array in arguments[:3])
    weights = jnp.where(others, 0.0, weights)
    for one, other in zip(
        jax.tree.leaves(results(IMPLEMENTATIONS[name], arguments, weights)),
        jax.tree.leaves(results(IMPLEMENTATIONS[name], (*changed, arguments[3]), weights)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(one)[0, mine], np.asarray(other)[0, mine])
    # Control: what a text sees of itself does move it.
    moved = (arguments[0], arguments[1].at[0, 200].add(1.0), *arguments[2:])
    before, after = (results(IMPLEMENTATIONS[name], each, weights)[0] for each in (arguments, moved))
    assert np.abs(after - before)[0, mine].max() > 1e-3


WIDE = tuple(dataclasses.replace(tiles, wide_matrix_unit=True) for tiles in SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_sums_and_masks_by_product(causal):
    ids = np.stack([LAYOUTS["short"], LAYOUTS["gaps"]])
    ids = np.where(ids > 1, ids * 16 - 31 + (ids == 3) * 2**30, ids)  # 1 and 2 differ in one digit, 3 in the last
    arguments, weights = inputs(ids, heads=4, kv_heads=2, head_dim=128)
    run = functools.partial(pallas.attention, tiles=WIDE, interpret=True)
    found, gradients = results(run, arguments, weights, causal=causal)
    expected, expected_gradients = results(reference.attention, arguments, weights, causal=causal)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_mask_by_product_hides_every_bit():
    ids = packed(512, [100, 90, 66, 256])
    arguments, _ = inputs(ids, heads=2, kv_heads=1, head_dim=128)
    mine = ids == 2
    others = jnp.asarray(~mine)[None, :, None, None]
    run = functools.partial(pallas.attention, tiles=WIDE, interpret=True)
    weights = jnp.where(others, 0.0, 1.0)
    alone = results(run, (*(jnp.where(others, 0.0, array) for array in arguments[:3]), arguments[3]), weights)
    among = results(run, (*(jnp.where(others, 1e3 * array, array) for array in arguments[:3]), arguments[3]), weights)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(among), strict=True):
        np.testing.assert_array_equal(np.asarray(one)[0, mine], np.asarray(other)[0, mine])
    one_text = (*arguments[:3], jnp.minimum(arguments[3], 2))  # control: a neighbour of the same text is seen
    apart, merged = (results(run, each, weights)[0] for each in (arguments, one_text))
    assert np.abs(merged - apart)[0, mine].max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
def test_heads_of_a_group_are_interleaved_in_several_products(wide):
    tiles = dataclasses.replace(SMALL[0], block_q_unmasked=256, block_q_masked=256, interleave=1, wide_matrix_unit=wide)
    assert [tiles.heads_per_product(group) for group in (1, 2, 3, 4, 8)] == [1, 2, 1, 2, 2]
    arguments, _ = inputs(np.stack([packed(512, [256, 130, 90]), packed(512, [60, 170, 200])]), heads=4, head_dim=128)
    found = jax.jit(functools.partial(pallas.attention, tiles=(tiles, SMALL[1]), interpret=True))(*arguments)
    np.testing.assert_allclose(found, reference.attention(*arguments), rtol=0, atol=1e-5)


def test_masked_blocks_are_interleaved_where_each_needs_one_product():
    def windows(lengths, key=512):
        tiles = dataclasses.replace(SMALL[0], block_kv=key)
        ids = jnp.asarray(packed(1024, lengths))[None]
        return mask_info(ids, ids, tiles, causal=False)[1].window.tolist()

    second = 1 << WINDOW_BITS
    assert windows([128] * 8) == [1] * 4 + [1 | second] * 4  # 128 keys each, in two blocks
    assert windows([256] * 4, key=1024) == [2] * 8  # 256 keys each, all of `block_kv_masked`
    assert windows([512, 512]) == [0] * 8  # two products
    assert windows([100, 156, 256, 128]) == [2, 2, 2, 2, 1 | second, 0, 0, 0]  # padding attends to nothing
    assert windows([200] * 5)[:4] == [2, 0, 0, 0]  # 384 keys; a text in two blocks of keys


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_large_scores_stay_finite(name):
    (query, key, value, ids), weights = inputs(packed(300, [180, 60]))
    for scale in (1e3, 1e-3):
        for out in jax.tree.leaves(results(IMPLEMENTATIONS[name], (scale * query, key, value, ids), weights)):
            assert np.isfinite(out).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_as_near_as_its_precision(name):
    arguments, weights = inputs(list(LAYOUTS.values())[:3])
    half = tuple(array.astype(jnp.bfloat16) for array in arguments[:3])
    found, gradients = results(IMPLEMENTATIONS[name], (*half, arguments[3]), weights)
    expected, expected_gradients = results(
        reference.attention, (*(a.astype(jnp.float32) for a in half), arguments[3]), weights
    )
    assert found.dtype == jnp.bfloat16
    for one, other in zip((found, *gradients), (expected, *expected_gradients), strict=True):
        one, other = np.asarray(one, np.float32).ravel(), np.asarray(other).ravel()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9999


@pytest.mark.slow
def test_a_sequence_in_spans_is_the_sequence_at_once():
    arguments, weights = inputs([LAYOUTS["two"], LAYOUTS["short"]])
    whole = results(IMPLEMENTATIONS["pallas"], arguments, weights, causal=True)
    small = dataclasses.replace(SMALL[1], block_kv=256)
    small = dataclasses.replace(small, vmem_limit_bytes=small.backward_bytes(2, 64, 4, 512, in_spans=True))
    assert small.max_queries(2, 64, 4, 1200) == 512
    spans = functools.partial(pallas.attention, tiles=(SMALL[0], small), interpret=True)
    for one, other in zip(
        jax.tree.leaves(results(spans, arguments, weights, causal=True)), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_queries_may_be_a_part_of_the_sequence(name):
    (query, key, value, ids), _ = inputs(LAYOUTS["short"])
    run = jax.jit(IMPLEMENTATIONS[name])
    whole = run(query, key, value, ids)
    part = slice(300, 812)
    found = run(query[:, part], key, value, ids[:, part], key_segment_ids=ids)
    np.testing.assert_allclose(found, whole[:, part], rtol=0, atol=1e-6)


def test_blocks_without_a_common_segment_are_skipped():
    def finite(ids):
        (query, key, value, ids), weights = inputs(ids)
        mine = (np.arange(1024) < 256)[None, :, None, None]
        key, value = (jnp.where(mine, array, jnp.nan) for array in (key, value))  # 0 x NaN is NaN
        out, gradients = results(IMPLEMENTATIONS["triton"], (query, key, value, ids), np.where(mine, weights, 0.0))
        return [bool(np.isfinite(array[:, :256]).all()) for array in (out, *gradients)]

    assert finite(packed(1024, [256, 768])) == [True] * 4
    # Control: a text that ends inside a block of the next text overlaps it.
    assert not any(finite(packed(1024, [250, 774]))[:2])


@pytest.mark.parametrize("by_key", [False, True])
def test_a_block_overlaps_a_range_of_blocks(by_key):
    ids = jnp.asarray([packed(1024, [300, 500], gap=20)])
    start, stop = overlap_ranges(ids, ids, 256, 128, causal=False, by_key=by_key)
    # The texts are at 0 to 300 and 320 to 820: blocks 0 to 2 and 2 to 6 of 128 keys, 0 to 1 and 1 to 3 of 256 queries.
    assert start[0].tolist() == ([0, 0, 0, 1, 1, 1, 1, 0] if by_key else [0, 0, 2, 2])
    assert stop[0].tolist() == ([2, 2, 4, 4, 4, 4, 4, 0] if by_key else [3, 7, 7, 7])
    causal = overlap_ranges(ids, ids, 256, 128, causal=True, by_key=by_key)
    assert causal[0][0].tolist() == ([0, 0, 1, 1, 2, 2, 3, 0] if by_key else [0, 0, 2, 2])
    assert causal[1][0].tolist() == ([2, 2, 4, 4, 4, 4, 4, 0] if by_key else [2, 4, 6, 7])


@pytest.mark.parametrize("by_key", [False, True])
def test_the_grid_has_only_blocks_that_overlap(by_key):
    tiles = Tiles(block_q=256, block_kv=256, block_q_unmasked=256, block_q_masked=256, block_kv_masked=256)

    def steps(lengths, causal=False, length=4096):
        ids = jnp.asarray(packed(length, lengths))[None]
        return int(mask_info(ids, ids, tiles, causal=causal, by_key=by_key)[0])

    assert steps([256] * 16) == 16
    assert steps([4096]) == 256
    assert steps([4096], causal=True) == 136
    assert steps([300] * 13) < 16 * 4
    assert steps([256]) == 16  # one for each block of padding, which writes it
    # If ids come back, every block may overlap every other.
    ids = jnp.asarray(np.resize([1, 2], 4096))[None]
    assert int(mask_info(ids, ids, tiles, causal=False, by_key=by_key)[0]) == 256


def test_only_masked_blocks_with_padding_are_cleared():
    def padded(lengths):
        queries, keys = (jnp.asarray(packed(1024, lengths))[None] for _ in range(2))  # never one array within a kernel
        count, mask = mask_info(queries, keys, SMALL[0], causal=False)
        flags = mask.flags[: int(count)]
        return mask.padded.tolist(), {int(q) for q, flag in zip(mask.q_index, flags, strict=False) if flag & PADDED}

    assert padded([512, 512]) == ([0] * 8, set())
    assert padded([300, 500]) == ([0] * 6 + [1] * 2, {3})  # from 800 on: masked blocks of 128, blocks of 256


@pytest.mark.parametrize("name", ["pallas", "splash"])
def test_queries_that_are_a_part_have_no_causal_mask_on_a_tpu(name):
    (query, key, value, ids), _ = inputs(LAYOUTS["short"])
    with pytest.raises(BadInput, match="no causal mask.* for queries that are a part of the sequence"):
        IMPLEMENTATIONS[name](query, key, value, ids, key_segment_ids=ids, causal=True)


@pytest.mark.slow
def test_memory_is_linear_in_length_both_ways():
    def temporaries(attention, length):
        def loss(query, key, value, segment_ids):
            return attention(query, key, value, segment_ids).sum()

        arguments, _ = inputs(packed(length, [length]))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = (temporaries(api.attention, length) for length in (4096, 8192))
    assert long < 2.2 * short
    # Control: the reference takes four times as much.
    assert temporaries(reference.attention, 4096) > 3.5 * temporaries(reference.attention, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("length", [api.MAX_REFERENCE_LENGTH, api.MAX_REFERENCE_LENGTH + 1])
def test_attention_is_the_same_on_both_sides_of_the_choice_by_length(length):
    arguments, _ = inputs(packed(length, [600, 300]))
    found = jax.jit(api.attention)(*arguments)
    np.testing.assert_allclose(found, reference.attention(*arguments), rtol=0, atol=1e-6)


def test_a_forced_implementation_runs_or_is_refused():
    arguments, _ = inputs(packed(64, [30, 20]))
    for name in ("reference", "blockwise"):
        np.testing.assert_allclose(
            api.attention(*arguments, implementation=name), reference.attention(*arguments), rtol=0, atol=1e-6
        )
    for name, device in (("pallas", "a TPU"), ("splash", "a TPU"), ("tokamax", "a TPU"), ("triton", "an NVIDIA GPU")):
        with pytest.raises(BadInput, match=f"'{name}' needs {device}, this is cpu"):
            api.attention(*arguments, implementation=name)
    with pytest.raises(BadInput, match="'flash' is not one of"):
        api.attention(*arguments, implementation="flash")


@pytest.mark.parametrize(("here", "kept"), [("cpu", []), ("tpu", ["pallas", "splash"]), ("cuda", ["triton"])])
def test_a_preference_holds_where_the_platform_has_it(monkeypatch, here, kept):
    monkeypatch.setattr(api, "platform", lambda: here)
    assert api.preferred("auto") is None
    for name in ("reference", "blockwise", "pallas", "splash", "triton"):
        assert api.preferred(name) == (name if name in ("reference", "blockwise", *kept) else None)


@pytest.mark.parametrize("size", [0, 8, 48])
def test_blocks_refuse_sizes_that_are_no_power_of_2(size):
    with pytest.raises(BadInput, match=f"Blocks.block_kv={size}; set it to a power of 2 from 16"):
        Blocks(64, size, 4, 2)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"block_q": 100}, "Tiles.block_q=100 is not a multiple of 128"),
        ({"block_kv_masked": 384}, "Tiles.block_kv_masked=384 is not a multiple of 256"),
        ({"block_q_unmasked": 384}, "Tiles.block_q_unmasked=384 does not divide block_q=512"),
        ({"block_q_masked": 512}, "Tiles.block_q_masked=512 does not divide block_q_unmasked=256"),
        (
            {"block_q_masked": 128, "interleave": 1},
            "Tiles.interleave=1 x block_q_masked=128 is not a multiple of block_q_unmasked=256",
        ),
        (
            {"interleave": 4},
            "Tiles.interleave=4 x block_q_masked=256 is not a multiple of block_q_unmasked=256 that divides block_q=5",
        ),
    ],
)
def test_tiles_refuse_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(BadInput, match=words):
        Tiles(**{"block_q": 512, "block_kv": 512, "block_q_unmasked": 256, **sizes})


def test_tiles_say_what_memory_they_need():
    tiles = Tiles(block_q=1024, block_kv=4096, block_q_unmasked=1024)
    arguments, _ = inputs(packed(4096, [4096]), heads=4)
    with pytest.raises(BadInput, match=r"tiles of 1024 x 4096 need \d+ MiB of VMEM, more than 56"):
        pallas.attention(*arguments, tiles=(tiles, tiles), interpret=True)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("length", [1, 128, 512, 1000, 4224, 32768])
def test_the_chosen_tiles_fit_their_device(length, group):
    devices = (None, "TPU v5 lite", "TPU v6 lite", "TPU v5", "TPU v4")
    for device, itemsize, head_dim in itertools.product(devices, (2, 4), (128, 256)):
        if device == "TPU v4" and group * head_dim * itemsize > 8 * 128 * 4:  # a seventh of the VMEM of the others
            continue
        forward, backward = choose_tiles(length, group, head_dim, itemsize, device_kind=device)
        forward.require(forward.forward_bytes(group, head_dim, itemsize))
        most = backward.max_queries(group, head_dim, itemsize, length)
        backward.require(backward.backward_bytes(group, head_dim, itemsize, most, in_spans=most < length))
        if group <= 8 and head_dim == 128 and device != "TPU v4":
            assert most >= min(length, 3584 if itemsize == 2 else 2048)
        assert -length % forward.block_kv < max(512, length / 4)


ON_A_MESH = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pplx_jax.core.errors import BadInput
from pplx_jax.kernels import attention as api
generator = np.random.default_rng(0)
arrays = [jnp.asarray(generator.normal(size=(8, 300, heads, 16)), jnp.float32) for heads in (4, 2, 2)]
ids = jnp.asarray(np.sort(generator.integers(1, 5, (8, 300)), axis=1), jnp.int32).at[:, 280:].set(0)
def gradients(attention, arrays):
    return jax.jit(jax.grad(lambda *a: (attention(*a, ids) ** 2).sum(), argnums=(0, 1, 2)))(*arrays)
for axes, name, causal in (
    (("data", "fsdp", "tensor"), "pallas", False),
    (("fsdp", "tensor", "sequence"), "pallas", False),
    (("fsdp", "tensor", "sequence"), "triton", False),
    (("fsdp", "tensor", "sequence"), "triton", True),
    (("fsdp", "tensor", "sequence"), "reference", True),
    (("fsdp", "tensor", "sequence"), "blockwise", True),
):
    run = functools.partial(api._on_mesh, name, causal=causal)
    if name in ("pallas", "triton"):
        run = functools.partial(run, interpret=True)
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, PartitionSpec("fsdp"))) for array in arrays]
        found = gradients(run, placed)
    for one, other in zip(found, gradients(functools.partial(api.reference.attention, causal=causal), arrays)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
with jax.set_mesh(mesh):
    try:
        api._on_mesh("pallas", *arrays, ids, causal=True)
        raise AssertionError("a causal mask for shared sequences was accepted")
    except BadInput as error:
        assert "no causal mask for sequences shared along sequence" in str(error), error
"""


@pytest.mark.slow
def test_each_device_of_a_mesh_works_on_its_sequences_heads_and_queries():
    simulated.run("-c", ON_A_MESH)
