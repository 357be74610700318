"""The optimizer compared with steps computed by hand: AdamW, weight decay, clipping, embedding multiplier."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.training.optimizers import Optimizer

STEPS = 10
KERNELS = {
    *(f"layers.attention.{name}.kernel" for name in "qkvo"),
    *(f"layers.mlp.{name}.kernel" for name in ("gate", "up", "down")),
}


@pytest.fixture(scope="module")
def params():
    """The true tree, every value 2."""
    config = Qwen3Config(vocab_size=5, width=4, mlp_width=6, layers=2, query_heads=2, kv_heads=1, head_dim=2)
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 2.0), initial_params(config, 0))


def constant(**fields) -> Optimizer:
    """At a learning rate of 0.5 from the first step to the last but one."""
    settings = {"peak_learning_rate": 0.5, "warmup_steps": 0, "schedule": "warmup_stable_decay", "clip_norm": 0.0}
    return Optimizer(**{**settings, "weight_decay": 0.0, **fields})


def updates(optimizer: Optimizer, params, *gradients) -> dict[str, np.ndarray]:
    """What the last of these gradients adds to each parameter, by path."""
    transformation = optimizer.build(STEPS)
    state, update = transformation.init(params), None
    for gradient in gradients:
        update, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, update)
    leaves = jax.tree_util.tree_leaves_with_path(update)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def filled(params, value: float):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)


def test_kernels_decay_and_nothing_else(params):
    update = updates(constant(weight_decay=0.1), params, filled(params, 0.0))
    for name, value in update.items():
        # No gradient, so what moves is decay alone: -0.5 x 0.1 x 2 = -0.1.
        np.testing.assert_allclose(value, -0.1 if name in KERNELS else 0.0, rtol=1e-6, err_msg=name)
    assert update.keys() > KERNELS
    assert {name for name in update if name not in KERNELS} == {
        "embed.embedding",
        "final_norm.scale",
        "layers.attention.k_norm.scale",
        "layers.attention.q_norm.scale",
        "layers.input_norm.scale",
        "layers.post_attention_norm.scale",
    }


def test_decay_is_decoupled_from_the_gradient(params):
    # A constant gradient moves by the learning rate whatever its size (eps aside); decay comes on top of it.
    update = updates(constant(weight_decay=0.1), params, filled(params, 7.0))
    np.testing.assert_allclose(update["layers.mlp.up.kernel"], -0.5 - 0.1, rtol=1e-5)
    np.testing.assert_allclose(update["final_norm.scale"], -0.5, rtol=1e-5)


def test_two_steps_of_adam_by_hand():
    # Gradients 1, then 3, with b1 = 0.9, b2 = 0.95:
    # m = 0.9 x 0.1 + 0.1 x 3 = 0.39, unbiased / (1 - 0.81) = 2.0526316
    # v = 0.95 x 0.05 + 0.05 x 9 = 0.4975, unbiased / (1 - 0.9025) = 5.1025641, its root 2.2588855
    # -0.5 x 2.0526316 / 2.2588855 = -0.4543461
    leaf = {"final_norm": {"scale": jnp.ones(1)}}
    update = updates(constant(), leaf, filled(leaf, 1.0), filled(leaf, 3.0))
    np.testing.assert_allclose(update["final_norm.scale"], -0.4543461, rtol=1e-5)
    other = updates(constant(b1=0.8), leaf, filled(leaf, 1.0), filled(leaf, 3.0))  # control
    assert abs(other["final_norm.scale"][0] + 0.4543461) > 1e-3


def test_the_embedding_table_learns_faster_by_its_multiplier(params):
    plain, faster = (
        updates(constant(embedding_multiplier=factor, weight_decay=0.1), params, filled(params, 1.0))
        for factor in (1.0, 8.0)
    )
    for name, value in faster.items():
        expected = plain[name] * (8.0 if name == "embed.embedding" else 1.0)
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)


def test_an_untied_head_is_not_the_embedding_table():
    untied = {"embed": {"embedding": jnp.ones(2)}, "head": {"embedding": jnp.ones(2)}}
    update = updates(constant(embedding_multiplier=8.0, weight_decay=0.1), untied, filled(untied, 1.0))
    np.testing.assert_allclose(update["embed.embedding"], 8 * update["head.embedding"], rtol=1e-6)


def test_gradients_are_clipped_together():
    # With eps = 1 a first step is -0.5 g / (|g| + 1), so that the size of g shows. The norm of (3, 4) is 5:
    # clipped to 1 it is (0.6, 0.8): -0.5 x 0.6 / 1.6 = -0.1875 and -0.5 x 0.8 / 1.8 = -0.2222222.
    leaves = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = updates(constant(eps=1.0, clip_norm=1.0), leaves, gradient)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [-0.1875, -0.2222222], rtol=1e-5)
    # A norm that it does not reach leaves it alone, and so does none: -0.5 x 3 / 4 and -0.5 x 4 / 5.
    for clip_norm in (6.0, 0.0):
        free = updates(constant(eps=1.0, clip_norm=clip_norm), leaves, gradient)
        np.testing.assert_allclose([free["a"][0], free["b"][0]], [-0.375, -0.4], rtol=1e-5)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        # 10 steps, 4 of warm-up, decay over the last half: 0, 1/4, 2/4, 3/4, the peak, and down from step 5 by 1/5.
        ("warmup_stable_decay", [0, 0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        # (1 + cos(pi q)) / 2 at q = 0, 1/6, 2/6, ... 5/6 after the warm-up.
        ("warmup_cosine", [0, 0.25, 0.5, 0.75, 1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_each_step_takes_the_rate_of_its_schedule(schedule, expected):
    optimizer = constant(peak_learning_rate=0.2, schedule=schedule, warmup_steps=4, decay_share=0.5)
    leaf = {"scale": jnp.ones(1)}
    gradients = [filled(leaf, 1.0)] * STEPS
    # A constant gradient moves by exactly the rate.
    moved = [-updates(optimizer, leaf, *gradients[: step + 1])["scale"][0] for step in range(STEPS)]
    np.testing.assert_allclose(moved, 0.2 * np.array(expected), rtol=1e-5, atol=1e-8)
    said = [float(optimizer.learning_rate(STEPS)(step)) for step in range(STEPS)]
    np.testing.assert_allclose(said, moved, rtol=1e-5, atol=1e-8)


def test_moments_mirror_the_parameters(params):
    state = constant(embedding_multiplier=4.0).build(STEPS).init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    expected = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert sorted(shapes) == sorted(expected * 2)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"schedule": "linear"}, "schedule='linear'; set it to warmup_stable_decay or warmup_cosine"),
        ({"warmup_steps": STEPS}, "warmup=10 does not fit in steps=10"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"peak_learning_rate": -1.0}, "peak_learning_rate=-1.0; set it to 0 or more"),
        ({"peak_learning_rate": float("nan")}, "peak_learning_rate=nan"),
        ({"b2": 2.0}, "b2=2.0; set it to a number from 0 to below 1"),
        ({"decay_share": 1.5}, "decay_share=1.5"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"warmup_steps": 6, "decay_share": 0.5}, "exceed steps=10"),
    ],
)
def test_bad_settings_are_bad_input(fields, words):
    with pytest.raises(BadInput, match=words):
        constant(**fields).build(STEPS)
