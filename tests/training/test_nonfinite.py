"""The array reported for a non-finite step: parameters, operations, metrics, gradients, in that order."""

import jax
import jax.numpy as jnp
import pytest

from pplx_jax.training.nonfinite import first_nonfinite

pytestmark = pytest.mark.slow

PARAMS = {
    "embed": {"embedding": jnp.ones((4, 2))},
    "final_norm": {"scale": jnp.ones(2)},
    "layers": {"attention": {"q": {"kernel": jnp.ones((2, 2))}}, "mlp": {"up": {"kernel": jnp.ones((2, 2))}}},
}
BATCH = {"tokens": jnp.arange(3), "weight": jnp.ones(3)}


@jax.custom_vjp
def broken_backwards(x):
    return x


broken_backwards.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.inf,))


def blame(loss_of, params=PARAMS, batch=BATCH) -> str:
    return first_nonfinite(loss_of, params, batch, jnp.int32(2))


def total(params) -> jax.Array:
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


def sound(params, batch, step):
    return total(params) + step, {"part": batch["weight"].sum()}


def with_nan(*path: str):
    bad = jax.tree.map(jnp.copy, PARAMS)
    leaf = bad
    for name in path[:-1]:
        leaf = leaf[name]
    leaf[path[-1]] = leaf[path[-1]].at[0, 1].set(jnp.nan)
    return bad


def test_nothing_is_blamed_where_nothing_is_wrong():
    assert blame(sound).startswith("none: run again, the loss and its gradient are finite")


def test_a_parameter_is_named_with_how_much_of_it():
    bad = with_nan("layers", "mlp", "up", "kernel")
    assert blame(sound, bad) == "the parameter layers.mlp.up.kernel (1 of 4 values)"


def test_of_two_parameters_the_one_a_forward_pass_meets_first():
    both = with_nan("layers", "mlp", "up", "kernel")
    both["layers"]["attention"]["q"]["kernel"] = jnp.full((2, 2), jnp.inf)
    assert blame(sound, both) == "the parameter layers.attention.q.kernel (4 of 4 values)"


def test_the_batch_comes_after_the_parameters():
    assert (
        blame(sound, batch=BATCH | {"weight": jnp.array([1.0, jnp.nan, 1.0])}) == "the batch's weight (1 of 3 values)"
    )


def test_an_operation_is_named_by_its_line_also_within_a_rematerialised_scan():
    def loss_of(params, batch, step):
        def block(carry, kernel):
            return carry + jnp.sqrt(kernel - 2.0).sum(), None  # the root of -1

        carry, _ = jax.lax.scan(jax.checkpoint(block), 0.0, params["layers"]["mlp"]["up"]["kernel"])
        return carry * jnp.log(-carry), {}

    found = blame(loss_of)
    assert found.startswith("the result of `sqrt` in block (") and "test_nonfinite.py:" in found


def test_an_infinite_metric_is_named():
    def loss_of(params, batch, step):
        large = total(params) * 1e38 * 1e38
        return large, {"cross_entropy": large}

    assert blame(loss_of) == "the metric cross_entropy (1 of 1 values)"


@pytest.mark.parametrize("where", ["embed", "final_norm"])
def test_a_gradient_is_named_by_the_parameter_that_a_backward_pass_meets_first(where):
    def loss_of(params, batch, step):
        return total({**params, where: broken_backwards(jax.tree.leaves(params[where])[0])}), {}

    name = {"embed": "embed.embedding (8 of 8 values)", "final_norm": "final_norm.scale (2 of 2 values)"}[where]
    assert blame(loss_of) == f"the gradient of {name}"


def test_of_two_gradients_the_later_parameter_is_met_first():
    def loss_of(params, batch, step):
        return total(jax.tree.map(broken_backwards, params)), {}

    assert blame(loss_of) == "the gradient of final_norm.scale (2 of 2 values)"
