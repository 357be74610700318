"""The moving average of the parameters: its values, resume, sharding, and who uses it."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.clock import CLOCK
from jax.sharding import AbstractMesh

from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.checkpoints.orbax import Checkpoints
from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.errors import BadInput
from pplx_jax.core.parameter_trees import named_leaves
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.rules import MESH_AXES
from pplx_jax.training.ema import Ema
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.train_stage import train
from pplx_jax.training.train_state import new_state, state_layout

pytestmark = pytest.mark.slow

STEPS, SEED, DECAY = 4, 3, 0.7
STILL = dataclasses.replace(tiny.OPTIMIZER, peak_learning_rate=0.0)


class Setting:
    def __init__(self, folder):
        self.vocabulary = tiny.tiny_vocabulary(folder)
        self.config = tiny.tiny_config(self.vocabulary)
        self.tables = tiny.tiny_tables(folder, self.vocabulary)

    def train(self, folder, name="pair", start_from=None, **fields):
        usual = {"steps": STEPS, "checkpoint_every_steps": 1, "keep_checkpoints": 9, "ema_decay": DECAY}
        training, table = tiny.training(name, **{**usual, **fields}), self.tables[name]
        return train(
            folder, training, self.config, table, self.vocabulary, mesh=Mesh(), seed=SEED, start_from=start_from
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    setting.train(folder, ema_warmup=True)
    return folder


def saved(setting, folder, step) -> dict:
    """All arrays of a checkpoint."""
    optimizer, stage = tiny.OPTIMIZER.build(STEPS), tiny.STAGES["pair"]
    layout = state_layout(setting.config, stage, optimizer, Mesh().build(), Ema(DECAY)).arrays()
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        restored, error = checkpoints._restore(step, layout)
    assert error is None
    return restored.state


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def test_it_is_the_weighted_sum_of_all_parameters_since_the_first(setting, whole):
    states = [saved(setting, whole, step) for step in range(1, STEPS + 1)]
    every = [flat(initial_params(setting.config, SEED)), *(flat(state["params"]) for state in states)]

    def weighted(decays, first=1.0):
        """In float64, with each tree's weight written out: w_k = (1 - d_k) d_{k+1} ... d_n."""
        weights = [first * np.prod(decays)]
        weights += [(1 - decays[k]) * np.prod(decays[k + 1 :]) for k in range(len(decays))]
        return sum(weight * tree for weight, tree in zip(weights, every, strict=False))

    warm = [min(DECAY, (1 + n) / (10 + n)) for n in range(1, STEPS + 1)]
    for done in range(1, STEPS + 1):
        np.testing.assert_allclose(flat(states[done - 1]["ema"]), weighted(warm[:done]), rtol=1e-5, atol=1e-7)
    last = flat(states[-1]["ema"])
    assert states[-1]["ema"]["embed"]["embedding"].dtype == jnp.float32
    # Controls: without the warm-up, from zero, and the parameters themselves.
    for other in (weighted([DECAY] * STEPS), weighted(warm, first=0.0), every[-1]):
        assert np.abs(other - last).max() > 1e-3 * np.abs(last).max()
    plain = Ema(DECAY).updated(jnp.ones(2), jnp.array([1.0, 3.0]), jnp.int32(1))
    np.testing.assert_allclose(plain, [1.0, 1 + 0.3 * 2], rtol=1e-6)


def test_an_interrupted_run_has_the_same_average(setting, whole, tmp_path, monkeypatch):
    save = Checkpoints.save

    def stop_at_three(self, step, *content):
        if step == 3:
            raise KeyboardInterrupt
        save(self, step, *content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "save", stop_at_three)
        setting.train(tmp_path / "run", ema_warmup=True)
    setting.train(tmp_path / "run", ema_warmup=True)
    jax.tree.map(np.testing.assert_array_equal, saved(setting, tmp_path / "run", STEPS), saved(setting, whole, STEPS))
    rows = [
        [{name: row[name] for name in row if name not in CLOCK} for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (whole, tmp_path / "run")
    ]
    assert rows[0] == rows[1]


def test_models_and_later_stages_take_the_average(setting, whole, tmp_path):
    state = saved(setting, whole, STEPS)
    for found in (load_params(whole), load_model(whole).params):
        jax.tree.map(np.testing.assert_array_equal, found, state["ema"])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state["ema"], state["params"])), strict=True))
    setting.train(tmp_path / "triplet", "triplet", start_from=whole, optimizer=STILL, ema_decay=0.0, steps=1)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "triplet"), state["ema"])
    # A stage without one saves none, and parameters that stay have an average that stays.
    setting.train(tmp_path / "still", "triplet", start_from=whole, optimizer=STILL, steps=2)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "still"), state["ema"])
    assert "average" in (tmp_path / "still" / "model-info.txt").read_text()
    assert "average" not in (tmp_path / "triplet" / "model-info.txt").read_text()


def test_a_learned_temperature_is_averaged_and_stays_out_of_the_model(setting, tmp_path):
    stage = dataclasses.replace(tiny.STAGES["pair"], learn_temperature=True)
    setting.train(tmp_path / "run", stage=stage, steps=1)
    assert "loss" not in load_params(tmp_path / "run")


def test_it_is_sharded_like_the_parameters_and_is_no_second_name_of_theirs(setting):
    mesh, optimizer = AbstractMesh((1, 1, 8, 1, 1), MESH_AXES), tiny.OPTIMIZER.build(STEPS)
    layout = state_layout(setting.config, tiny.STAGES["pair"], optimizer, mesh, Ema(DECAY))
    params, average = named_leaves(layout.params), named_leaves(layout.ema)
    assert {name: leaf.sharding for name, leaf in average.items()} == {
        name: leaf.sharding for name, leaf in params.items()
    }
    assert not all(leaf.sharding.is_fully_replicated for leaf in average.values())
    assert state_layout(setting.config, tiny.STAGES["pair"], optimizer, mesh).ema is None
    state = new_state(initial_params(setting.config, 0), optimizer, Mesh().build(), Ema(DECAY))
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        assert one.unsafe_buffer_pointer() != two.unsafe_buffer_pointer()


def test_switching_it_on_in_the_middle_is_refused(setting, tmp_path):
    setting.train(tmp_path / "run", ema_decay=0.0, steps=1)
    with pytest.raises(BadInput, match=r"Training.ema_decay 0.0, this recipe has 0.7"):
        setting.train(tmp_path / "run", steps=1)
    (tmp_path / "run" / "finished.json").unlink()
    with pytest.raises(BadInput, match=r"ema.*missing there"):
        setting.train(tmp_path / "run", steps=1)
