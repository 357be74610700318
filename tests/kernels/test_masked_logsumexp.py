"""The sum over candidates: blockwise is the reference, gradients included, and holds no matrix of scores."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import simulated
from hypothesis import given, settings

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.masked_logsumexp import ABSENT, masked_logsumexp
from pplx_jax.kernels.masked_logsumexp.reference import reference

TEMPERATURE = 0.05


def case(queries=23, candidates=57, width=12, groups=9, seed=0):
    generator = np.random.default_rng(seed)

    def unit(count):
        rows = generator.normal(size=(count, width))
        return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)

    return (
        unit(queries),
        unit(candidates),
        jnp.asarray(generator.integers(0, groups, queries)),
        jnp.asarray(generator.integers(0, groups, candidates)),
        jnp.float32(TEMPERATURE),
        jnp.asarray(generator.uniform(-0.3, 0.6, queries), jnp.float32),
        jnp.asarray(generator.random(candidates) < 0.8),
    )


@functools.cache
def by_face(block):
    @jax.jit
    def run(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid):
        return masked_logsumexp(
            query,
            candidate,
            query_group,
            candidate_group,
            temperature=temperature,
            ceiling=ceiling,
            candidate_valid=candidate_valid,
            block=block,
        )

    return run


@functools.cache
def graded(function):
    """Gradients of a weighted sum in both embeddings and the temperature, and what the function gives."""

    def loss(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid):
        found = function(query, candidate, query_group, candidate_group, temperature, ceiling, candidate_valid)
        weights = np.random.default_rng(1).normal(size=query.shape[0]).astype(np.float32)
        return jnp.sum(jnp.where(found.used > 0, found.logsumexp, 0.0) * weights), found

    return jax.jit(jax.grad(loss, argnums=(0, 1, 4), has_aux=True))


def test_by_hand():
    query = jnp.eye(2, dtype=jnp.float32)
    candidate = jnp.asarray([[1.0, 0.0], [0.5, 0.25], [0.25, 0.75], [0.5, 0.5]])
    found = masked_logsumexp(
        query,
        candidate,
        jnp.asarray([0, 1]),
        jnp.asarray([0, 5, 1, 5]),
        temperature=0.5,
        ceiling=jnp.asarray([0.9, 0.4]),
    )
    # Query 0: not candidate 0 (its group); 0.5, 0.25, 0.5. Query 1: not 2 (its group), not 3 (0.5 > 0.4); 0, 0.25.
    np.testing.assert_allclose(found.logsumexp, [np.log(2 * np.e + np.exp(0.5)), np.log(1 + np.exp(0.5))], rtol=1e-6)
    np.testing.assert_allclose(found.hardest, [0.5, 0.25])
    np.testing.assert_array_equal(found.used, [3, 2])


# Queries, candidates and the block: one of each, a block a candidate, blocks that do not divide, one block.
@settings(max_examples=16, deadline=None)
@given(
    shape=st.sampled_from([(1, 1, 7), (5, 90, 1), (40, 33, 32), (23, 57, 4096)]),
    groups=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_blocks_are_the_whole(shape, groups, seed):
    queries, candidates, block = shape
    arguments = case(queries, candidates, groups=groups, seed=seed)
    (gradients, found), (expected_gradients, expected) = (
        graded(function)(*arguments) for function in (by_face(block), reference)
    )
    np.testing.assert_array_equal(found.used, expected.used)
    np.testing.assert_allclose(found.logsumexp, expected.logsumexp, rtol=1e-5, atol=1e-5)
    # A sum of `width` products of unit vectors is off by no more than width * eps / 2, however small the sum itself is.
    rounding = arguments[0].shape[1] * np.finfo(np.float32).eps
    np.testing.assert_allclose(found.hardest, expected.hardest, rtol=0, atol=rounding)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * (1 + float(jnp.abs(other).max())))


def test_a_query_that_nothing_counts_for_is_finite():
    query, candidate, *_ = case()
    same = jnp.zeros(23, jnp.int32), jnp.zeros(57, jnp.int32)
    found = masked_logsumexp(query, candidate, *same, temperature=TEMPERATURE, block=16)
    assert np.all(found.logsumexp == ABSENT) and not found.used.any()
    gradient = jax.grad(
        lambda q: jnp.logaddexp(
            0.0, masked_logsumexp(q, candidate, *same, temperature=TEMPERATURE, block=16).logsumexp
        ).sum()
    )(query)
    np.testing.assert_array_equal(gradient, 0.0)


def test_of_no_candidates_the_sum_is_absent():
    query, candidate, query_group, candidate_group, *_ = case()
    found = masked_logsumexp(query, candidate[:0], query_group, candidate_group[:0], temperature=TEMPERATURE)
    assert (found.logsumexp == ABSENT).all() and (found.used == 0).all()
    with pytest.raises(BadInput, match="block=0; set it to 1 or more candidates"):
        masked_logsumexp(query, candidate, query_group, candidate_group, temperature=TEMPERATURE, block=0)


def test_what_does_not_count_moves_no_bit():
    arguments = case()
    candidate, valid = arguments[1], arguments[6]
    changed = jnp.where(valid[:, None], candidate, -candidate[:, ::-1])
    expected = by_face(16)(*arguments)
    for one, other in zip(by_face(16)(arguments[0], changed, *arguments[2:]), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # Control: without the mask it shows.
    everything = jnp.ones_like(valid)
    moved = by_face(16)(arguments[0], changed, *arguments[2:6], everything)
    assert not np.array_equal(moved.logsumexp, by_face(16)(*arguments[:6], everything).logsumexp)


def test_memory_grows_with_the_batch_not_with_its_square():
    def temporaries(function, count):
        shape = jax.ShapeDtypeStruct((count, 16), jnp.float32)
        ids = jax.ShapeDtypeStruct((count,), jnp.int32)

        def loss(query, candidate, query_ids, candidate_ids):
            ceiling, valid = jnp.full(count, 0.9), jnp.ones(count, bool)
            return function(query, candidate, query_ids, candidate_ids, TEMPERATURE, ceiling, valid).logsumexp.sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shape, shape, ids, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(by_face(256), 8192) < 2.2 * temporaries(by_face(256), 4096)
    # Control: the whole matrix takes four times as much.
    assert temporaries(reference, 8192) > 3.5 * temporaries(reference, 4096)


# 8 devices divide 1528 candidates evenly, 191 each. They do not divide 1531 candidates or 508 queries evenly. A user's
# own rules may shard rows over "tensor". 40 numbers at once are 5 groups of 40 candidates per device.
OVER_MESHES = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pplx_jax.kernels.masked_logsumexp import masked_logsumexp
from pplx_jax.objectives.contrastive import compact
from pplx_jax.objectives.similarity import normalize
from pplx_jax.parallel import rules

COLLECTIVE = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\\(")

def check(axes, queries, count, integers=False, gathered=2**26):
    mesh = jax.make_mesh((8,) if len(axes) == 1 else (2, 4), axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
    generator = np.random.default_rng(0)
    query = jnp.asarray(generator.normal(size=(queries, 8)), jnp.float32) / 8
    candidate = jnp.asarray(generator.integers(-127, 128, (count, 8)), jnp.float32)
    def loss(query, candidate, temperature):
        groups = jnp.arange(queries) // 2, jnp.arange(count) // 5
        sent = compact(candidate, integers)
        found = masked_logsumexp(query, normalize(candidate), *groups, temperature=temperature, block=136, compact=sent)
        return found.logsumexp.mean()
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    expected = run(query, candidate, 0.1)
    sys.modules["pplx_jax.kernels.masked_logsumexp.blockwise"].GATHERED = gathered
    run.clear_cache()
    with jax.set_mesh(mesh), rules.using((("rows", axes),)):
        rows = NamedSharding(mesh, PartitionSpec(axes))
        placed = *(jax.device_put(x, rows) if len(x) % 8 == 0 else x for x in (query, candidate)), 0.1
        compiled = run.lower(*placed).compile()
        found = compiled(*placed)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), found, expected)
    moved = COLLECTIVE.findall(compiled.as_text())
    shapes = re.findall(r"[a-z0-9]+\\[([0-9,]*)\\]", " ".join(shape for shape, _ in moved))
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n] or [1])) for shape in shapes]
    # The candidates, or what 8 devices do not divide; never scores.
    assert sizes and max(sizes) <= 1536 * 8 < queries * 136, (axes, queries, moved)
    return moved

check(("data",), 512, 1531)
check(("data", "fsdp"), 508, 1528)
check(("data", "tensor"), 512, 1528)
for integers in (False, True):
    moved = check(("data", "fsdp"), 512, 1528, integers)
    # Gathered once for both directions: vectors and groups. Their gradients go back in one sum.
    gathers = [shape for shape, kind in moved if kind == "all-gather"]
    assert len(gathers) == 2 + integers and sum(kind == "reduce-scatter" for _, kind in moved) == 1, moved
    assert any(shape.startswith("s8[1528,8]" if integers else "f32[1528,8]") for shape in gathers), moved
    assert integers == (not any(shape.startswith("f32[1528,8]") for shape in gathers)), moved
# In groups, which are gathered again on the way back.
moved = check(("data", "fsdp"), 512, 1528, gathered=8 * 8 * 40)
assert sum(kind == "all-gather" for _, kind in moved) == 6 and all("1528" not in shape for shape, _ in moved), moved
"""


@pytest.mark.slow
def test_over_a_mesh_it_is_one_device_and_no_scores_travel():
    simulated.run("-c", OVER_MESHES)
