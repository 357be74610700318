"""Cross-entropy over the vocabulary in pieces: value, gradients, and that the logits never exist whole."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import simulated, tpu_compile

from pplx_jax.core.errors import BadInput
from pplx_jax.kernels.vocab_cross_entropy import chunked, pallas, vocab_cross_entropy
from pplx_jax.kernels.vocab_cross_entropy.compaction import loss_over_chunks
from pplx_jax.kernels.vocab_cross_entropy.tiles import Tiles, choose_tiles


def loss_alone(*arguments):
    return vocab_cross_entropy(*arguments)[0]


compiled = jax.jit(jax.value_and_grad(loss_alone, argnums=(0, 1)))
both = jax.jit(vocab_cross_entropy)


ONCE = {"with_gradient": False, "interpret": True}


def case(tokens, width, vocabulary, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    hidden = (scale * generator.normal(size=(tokens, width))).astype(np.float32)
    embedding = generator.normal(size=(vocabulary, width)).astype(np.float32)
    targets = generator.integers(0, vocabulary, tokens).astype(np.int32)
    weights = (generator.uniform(0.1, 5, tokens) * (generator.random(tokens) < 0.7)).astype(np.float32)
    return hidden, embedding, targets, weights


def reference(hidden, embedding, targets, weights):
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (hidden, embedding)]
    logits = leaves[0] @ leaves[1].T
    entropy = torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(targets, np.int64)), reduction="none")
    loss = (entropy * torch.tensor(np.asarray(weights, np.float64))).sum()
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


def close(actual, expected, tolerance):
    """Largest difference, relative to the largest entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    return np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


def test_by_hand():
    hidden = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    embedding = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    # Row 0: logits 0, 0, 0: ln 3 = 1.0986123. Row 1: logits 1, 0, 2, target 0:
    # ln(e^1 + e^0 + e^2) - 1 = ln(2.7182818 + 1 + 7.3890561) - 1 = 2.4076060 - 1 = 1.4076060. Row 2: none.
    # 2 x 1.0986123 + 0.5 x 1.4076060 = 2.1972246 + 0.7038030 = 2.9010276.
    loss, each = vocab_cross_entropy(hidden, embedding, jnp.asarray([1, 0, 2]), jnp.asarray([2.0, 0.5, 0.0]))
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, 2.9010276, rtol=1e-6)
    assert each.dtype == jnp.float32
    np.testing.assert_allclose(each, [1.0986123, 1.4076060, 0.0], rtol=1e-6)


# One token, sizes that divide nothing, more tokens than a small piece, a vocabulary with an odd factor.
@pytest.mark.slow
@pytest.mark.parametrize("tokens,width,vocabulary", [(1, 4, 3), (37, 8, 97), (700, 16, 2374)])
def test_value_and_gradients_against_torch(tokens, width, vocabulary):
    arguments = case(tokens, width, vocabulary)
    loss, gradients = compiled(*arguments)
    expected, expected_gradients = reference(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert actual.shape == exact.shape
        assert close(actual, exact, 1e-5)
    # Weight zero: no gradient, to the last bit.
    np.testing.assert_array_equal(np.asarray(gradients[0])[arguments[3] == 0], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("tokens,width,vocabulary", [(37, 8, 97), (700, 16, 2374)])
def test_each_position(tokens, width, vocabulary):
    hidden, embedding, targets, weights = case(tokens, width, vocabulary)
    loss, each = both(hidden, embedding, targets, weights)
    logits = torch.tensor(hidden, dtype=torch.float64) @ torch.tensor(embedding, dtype=torch.float64).T
    exact = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long(), reduction="none").numpy()
    np.testing.assert_allclose(each, np.where(weights != 0, exact, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(each)[weights == 0], 0.0)
    # The loss without and with a gradient is one number.
    np.testing.assert_allclose(loss, compiled(hidden, embedding, targets, weights)[0], rtol=1e-6)


def test_the_values_of_positions_carry_no_gradient():
    hidden, embedding, targets, weights = case(37, 8, 97)
    gradient = jax.jit(jax.grad(lambda *arguments: vocab_cross_entropy(*arguments)[1].sum(), argnums=(0, 1)))
    for part in gradient(hidden, embedding, targets, weights):
        np.testing.assert_array_equal(part, 0.0)


def test_numpy_arrays_are_taken_with_and_without_a_gradient():
    arguments = case(37, 8, 97)
    assert all(type(argument) is np.ndarray for argument in arguments)
    expected, expected_gradients = compiled(*arguments)
    np.testing.assert_allclose(vocab_cross_entropy(*arguments)[0], expected, rtol=1e-6)
    loss, gradients = jax.value_and_grad(loss_alone, argnums=(0, 1))(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert close(actual, exact, 1e-6)


def test_weights_of_any_arrangement():
    # Few positions with a weight, at the ends and in between, in more than one piece of the positions.
    hidden, embedding, targets, weights = case(2500, 8, 97)
    sparse = np.zeros_like(weights)
    sparse[[0, 1023, 1024, 2048, 2499]] = [1.0, 2.0, 3.0, 4.0, 0.5]
    full = np.linspace(0.5, 2, 2500, dtype=np.float32)
    for chosen in (sparse, full):
        loss, gradients = compiled(hidden, embedding, targets, chosen)
        expected, expected_gradients = reference(hidden, embedding, targets, chosen)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for actual, exact in zip(gradients, expected_gradients, strict=True):
            assert close(actual, exact, 1e-5)


def test_controls_differ():
    hidden, embedding, targets, weights = case(37, 8, 97)
    loss = float(compiled(hidden, embedding, targets, weights)[0])
    assert abs(float(compiled(hidden, embedding, (targets + 1) % 97, weights)[0]) - loss) > 1e-2
    assert abs(float(compiled(hidden, embedding, targets, np.ones_like(weights))[0]) - loss) > 1e-2
    # A token of the last, ragged piece of the vocabulary is part of the sum.
    embedding[-1] = 10 * hidden[np.argmax(weights)]
    assert abs(float(compiled(hidden, embedding, targets, weights)[0]) - loss) > 1e-2


def test_large_logits_stay_finite():
    arguments = case(37, 8, 97, scale=3000.0)  # logits up to about 3e4, far past exp's range
    loss, gradients = compiled(*arguments)
    expected, expected_gradients = reference(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for actual, exact in zip(gradients, expected_gradients, strict=True):
        assert close(actual, exact, 1e-3)


@pytest.mark.parametrize("target", [-100, -1, 7])
def test_a_target_outside_of_the_vocabulary_gives_nan(target):
    hidden, embedding, targets, weights = case(5, 8, 7)
    targets[4] = target
    assert np.isfinite(both(hidden, embedding, targets, weights * [1, 1, 1, 1, 0])[0])  # it is not looked at
    _, each = both(hidden, embedding, targets, np.ones_like(weights))
    assert np.isnan(each).tolist() == [False] * 4 + [True]
    outside = np.where(targets < 0, 7, targets)  # as the public function gives it
    for found in (
        chunked.losses(hidden, embedding, outside, np.ones_like(weights), with_gradient=False),
        pallas.losses(*map(jnp.asarray, (hidden, embedding, outside, np.ones_like(weights))), **ONCE),
    ):
        assert np.isnan(found.cross_entropy).tolist() == [False] * 4 + [True]


def test_no_positions_have_no_loss():
    hidden, embedding, targets, weights = case(5, 8, 7)
    arguments = hidden[:0], embedding, targets[:0], weights[:0]
    loss, of_hidden = jax.value_and_grad(loss_alone)(*map(jnp.asarray, arguments))
    assert loss == 0.0 and of_hidden.shape == (0, 8)
    assert pallas.losses(*map(jnp.asarray, arguments), **ONCE).loss == 0.0


def test_the_gradient_of_weights_is_of_their_dtype():
    hidden, embedding, targets, weights = map(jnp.asarray, case(5, 8, 7))
    found = jax.grad(loss_alone, argnums=3)(hidden, embedding, targets, weights.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16


def test_all_weights_zero():
    hidden, embedding, targets, weights = case(37, 8, 97)
    loss, gradients = compiled(hidden, embedding, targets, np.zeros_like(weights))
    assert float(loss) == 0.0
    for part in gradients:
        np.testing.assert_array_equal(part, 0.0)


def test_gradient_scales_with_the_cotangent():
    arguments = case(37, 8, 97)
    tripled = jax.jit(jax.grad(lambda *a: 3.0 * loss_alone(*a), argnums=(0, 1)))(*arguments)
    _, expected = reference(*arguments)
    for actual, exact in zip(tripled, expected, strict=True):
        assert close(actual, 3 * exact, 1e-5)


def test_half_precision():
    hidden, embedding, targets, weights = case(37, 8, 97)
    halves = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(embedding, jnp.bfloat16)
    loss, gradients = compiled(*halves, targets, weights)
    assert loss.dtype == jnp.float32
    expected, expected_gradients = reference(*halves, targets, weights)
    np.testing.assert_allclose(loss, expected, rtol=5e-3)
    for actual, exact, half in zip(gradients, expected_gradients, halves, strict=True):
        assert actual.dtype == half.dtype
        assert close(actual, exact, 2e-2)


def jaxprs_below(value):
    """Every jaxpr nested in an equation's parameter."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from jaxprs_below(value.jaxpr)
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(jaxprs_below(part) for part in value)


def largest_array(jaxpr):
    largest = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            largest = max(largest, int(np.prod(getattr(variable.aval, "shape", ()), dtype=np.int64)))
        for parameter in equation.params.values():
            for inner in jaxprs_below(parameter):
                largest = max(largest, largest_array(inner))
    return largest


@functools.cache
def largest_array_of(function):
    tokens, width, vocabulary = 32768, 64, 151936
    shapes = (
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
        jax.ShapeDtypeStruct((tokens,), jnp.float32),
    )
    jaxpr = jax.make_jaxpr(jax.value_and_grad(function, argnums=(0, 1)))(*shapes)
    return largest_array(jaxpr.jaxpr), tokens * vocabulary


def test_logits_are_never_whole():
    largest, whole = largest_array_of(loss_alone)
    assert largest <= whole // 8

    # Control: the walk does see whole logits where there are some.
    def plain(hidden, embedding, targets, weights):
        chosen = jax.nn.log_softmax(hidden @ embedding.T)[jnp.arange(len(targets)), targets]
        return -(chosen * weights).sum()

    largest, whole = largest_array_of(plain)
    assert largest >= whole


# Two groups of classes per block, several blocks of classes and of positions, several chunks.
SMALL = Tiles(chunk=256, block_t=128, block_v=256, block_v_max=128, max_block_d=128)


@functools.partial(jax.jit, static_argnames="module")
def losses(hidden, embedding, targets, weights, *, module=pallas):
    more = {"tiles": SMALL, "interpret": True} if module is pallas else {}
    return module.losses(hidden, embedding, targets, weights, with_gradient=True, **more)


# Sizes that no tile divides, the width included; and one where every tile is full.
@pytest.mark.slow
@pytest.mark.parametrize("tokens,width,vocabulary", [(700, 200, 1100), (256, 128, 512)])
def test_the_kernels_against_torch(tokens, width, vocabulary):
    hidden, embedding, targets, weights = case(tokens, width, vocabulary, scale=0.3)
    found = losses(hidden, embedding, targets, weights)
    expected, expected_gradients = reference(hidden, embedding, targets, weights)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    for actual, exact in zip((found.hidden_gradient, found.table_gradient), expected_gradients, strict=True):
        assert actual.shape == exact.shape
        assert close(actual, exact, 1e-5)
    np.testing.assert_array_equal(np.asarray(found.hidden_gradient)[weights == 0], 0.0)
    each = losses(hidden, embedding, targets, weights, module=chunked).cross_entropy
    np.testing.assert_allclose(found.cross_entropy, each, rtol=1e-5, atol=1e-5)
    # Control: another target shows.
    moved = losses(hidden, embedding, (targets + 1) % vocabulary, weights)
    assert abs(float(moved.loss - found.loss)) > 1e-2 and not close(moved.table_gradient, found.table_gradient, 1e-3)


@pytest.mark.slow
def test_the_kernels_at_their_edges():
    hidden, embedding, targets, weights = case(700, 200, 1100)
    nothing = losses(hidden, embedding, targets, np.zeros_like(weights))
    for part in nothing:
        np.testing.assert_array_equal(part, 0.0)
    # Positions without a weight move no bit, whatever they hold.
    found = losses(hidden, embedding, targets, weights)
    hidden[weights == 0], targets[weights == 0] = np.nan, 7
    for one, other in zip(losses(hidden, embedding, targets, weights), found, strict=True):
        np.testing.assert_array_equal(one, other)
    # Scores far past exp's range, all of them far below zero.
    hidden = 300 * np.abs(hidden[:256]).astype(np.float32)
    hidden[np.isnan(hidden)] = 0
    arguments = hidden, -np.abs(embedding), targets[:256], weights[:256]
    found = losses(*arguments)
    expected, expected_gradients = reference(*arguments)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert close(found.hidden_gradient, expected_gradients[0], 1e-3)


@pytest.mark.slow
def test_the_kernels_in_half_precision():
    hidden, embedding, targets, weights = case(256, 128, 512)
    # A sure prediction: its gradient is a small difference, which rounding must not eat.
    hidden[:40] = 0.6 * embedding[targets[:40]]
    halves = [jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(embedding, jnp.bfloat16)]
    found = losses(*halves, targets, weights)
    expected, expected_gradients = reference(*halves, targets, weights)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert found.hidden_gradient.dtype == jnp.bfloat16 and found.table_gradient.dtype == jnp.float32
    chunks = losses(*halves, targets, weights, module=chunked)
    for actual, other, exact in zip(found[2:], chunks[2:], expected_gradients, strict=True):
        off, off_other = (np.abs(np.asarray(x, np.float64) - exact).max() for x in (actual, other))
        # No further off than XLA's chunks, which round probabilities once.
        assert off < 1.5 * off_other and off < 1e-2 * np.abs(exact).max()


def test_only_chunks_with_a_weight_are_worked():
    hidden, _, targets, weights = case(1000, 4, 10)

    def runs(chosen):
        def one_chunk(part, count):
            return jnp.zeros(part.targets.shape), part.hidden, count + 1

        found = loss_over_chunks(one_chunk, hidden, targets, chosen, chunk=100, table_shape=(1, 1))
        np.testing.assert_array_equal(found.hidden_gradient, np.where(chosen[:, None] != 0, hidden, 0))
        return int(found.table_gradient[0, 0])

    some = np.zeros_like(weights)
    some[::4] = 1  # 250 of them, spread over all blocks
    assert [runs(chosen) for chosen in (0 * weights, some, np.ones_like(weights))] == [0, 3, 10]


def test_tiles_hold_themselves_to_the_memory():
    for kind in ("", "TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite"):
        for width in (128, 1024, 2560, 4096):
            for itemsize in (2, 4):
                tiles = choose_tiles(8192, width, itemsize, kind)
                assert tiles.bytes(width, itemsize) <= tiles.vmem_limit_bytes and width % tiles.block_d(width) == 0
    assert choose_tiles(8192, 1024, 2, "TPU v5 lite").chunk == 2048 and choose_tiles(100, 1024, 2).chunk == 128
    with pytest.raises(BadInput, match="block_v_max=256 does not divide block_v=384"):
        Tiles(block_v=384)
    with pytest.raises(BadInput, match="MiB of VMEM at width 8192"):
        Tiles(chunk=8192).require(8192, 4)
    with pytest.raises(BadInput, match="block_t=100 is not a multiple of 128"):
        Tiles(block_t=100)


def test_a_forced_implementation_runs_or_says_why_not():
    arguments = case(37, 8, 97)
    forced, _ = vocab_cross_entropy(*arguments, implementation="chunked")
    np.testing.assert_allclose(forced, both(*arguments)[0], rtol=1e-6)
    with pytest.raises(BadInput, match="'pallas' needs a TPU"):
        vocab_cross_entropy(*arguments, implementation="pallas")
    with pytest.raises(BadInput, match="'dense' is not one of"):
        vocab_cross_entropy(*arguments, implementation="dense")


OVER_A_MESH = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy
TOKENS, WIDTH, VOCABULARY = 203, 16, 1187  # 8 devices divide neither the positions nor the classes
generator = np.random.default_rng(0)
arguments = (
    jnp.asarray(generator.normal(size=(TOKENS, WIDTH)), jnp.float32),
    jnp.asarray(generator.normal(size=(VOCABULARY, WIDTH)), jnp.float32),
    jnp.asarray(generator.integers(0, VOCABULARY, TOKENS)),
    jnp.asarray(generator.random(TOKENS) * (generator.random(TOKENS) < 0.5), jnp.float32),
)
run = jax.jit(jax.value_and_grad(vocab_cross_entropy, argnums=(0, 1, 3), has_aux=True))
expected = run(*arguments)
for shape, axes in (((2, 4), ("data", "fsdp")), ((2, 2, 2), ("slice", "fsdp", "tensor"))):
    mesh = jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
    with jax.set_mesh(mesh):
        table = jax.device_put(arguments[1], NamedSharding(mesh, PartitionSpec(None, "fsdp")))
        compiled = run.lower(arguments[0], table, *arguments[2:]).compile()
        found = compiled(arguments[0], table, *arguments[2:])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5), found, expected)
    collective = re.compile(r"= .* (all-|reduce-scatter|collective)")
    moved = [line for line in compiled.as_text().splitlines() if collective.search(line)]
    shapes = [shape for line in moved for shape in re.findall(r"[a-z0-9]+\\[([0-9,]+)\\]", line.split("(")[0])]
    assert f"{VOCABULARY},{WIDTH}" in shapes, shapes  # the table travels, as a whole
    # Nothing that has an axis of the classes but the table and its gradient.
    assert all(shape.split(",")[1:] in (["16"], ["4"], ["8"]) for shape in shapes if str(VOCABULARY) in shape), shapes
    assert not any("," in shape and shape.split(",")[1] == str(VOCABULARY) for shape in shapes), shapes
"""


@pytest.mark.slow
def test_over_a_mesh_it_is_one_device_and_no_logits_travel():
    simulated.run("-c", OVER_A_MESH)


# Kernels, and bytes of temporaries.
MEASURE = """
from pplx_jax.kernels.vocab_cross_entropy import vocab_cross_entropy

def measure(topology, width):
    mesh, array = on(topology)
    tokens = 8192
    hidden, table = array(tokens, width, dtype=jnp.bfloat16), array(151936, width)
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(lambda *arguments: vocab_cross_entropy(*arguments)[0], argnums=(0, 1)))
        lowered = run.lower(hidden, table, array(tokens, dtype=jnp.int32), array(tokens))
        return lowered.as_text().count("tpu_custom_call"), lowered.compile().memory_analysis().temp_size_in_bytes
"""
CASES = list(zip(tpu_compile.TOPOLOGIES, (1024, 2560, 1024), strict=True))


@pytest.fixture(scope="module")
def on_tpus():
    return tpu_compile.compile_all(MEASURE, CASES)


@pytest.mark.slow
@tpu_compile.needs_libtpu
@pytest.mark.parametrize("topology,width", CASES)
def test_the_kernels_compile_for_tpus(on_tpus, topology, width):
    calls, temporaries = on_tpus(topology, width)
    assert calls == 2
    # A block's exponentials and the table in bfloat16, and little else; all logits would take 5 GB.
    assert temporaries < 1.15 * 2 * 151936 * (2048 + width)
