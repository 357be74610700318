"""Steps that give non-finite numbers are skipped, up to `Training.skip_nonfinite`, and counted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.clock import CLOCK

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.core.resume_check import may_differ
from pplx_jax.data.batches.host_batches import HostBatches
from pplx_jax.models.parameters import initial_params
from pplx_jax.parallel.mesh import Mesh, batch_sharding
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.train_stage import train
from pplx_jax.training.train_state import stage_loss
from pplx_jax.training.trainer import NonFiniteLoss

pytestmark = pytest.mark.slow

STEPS, SEED, BAD = 5, 3, (2, 3)


@dataclasses.dataclass(frozen=True)
class Breaking(DiffusionStage):
    """Diffusion whose loss and gradient are NaN at the steps of `bad`."""

    bad: tuple[int, ...] = BAD

    def loss(self, model, batch, step):
        loss, metrics = super().loss(model, batch, step)
        breaks = jnp.isin(jnp.round(step.progress * STEPS) + 1, jnp.array(self.bad))
        return loss * jnp.where(breaks, jnp.nan, 1.0), metrics


STAGE = Breaking(**vars(tiny.STAGES["diffusion"]))


class Setting:
    def __init__(self, folder):
        self.vocabulary = tiny.tiny_vocabulary(folder)
        self.config = tiny.tiny_config(self.vocabulary)
        self.table = tiny.tiny_tables(folder, self.vocabulary)["diffusion"]

    def train(self, folder, **fields):
        training = tiny.training("diffusion", stage=STAGE, steps=STEPS, checkpoint_every_steps=1, **fields)
        return train(folder, training, self.config, self.table, self.vocabulary, mesh=Mesh(), seed=SEED)

    def expected(self, good):
        """The parameters after each of the steps of `good`, by a loop of its own."""
        training = tiny.training("diffusion", stage=STAGE, steps=STEPS)
        optimizer, mesh = training.optimizer.build(STEPS), Mesh().build()
        loss_of = stage_loss(STAGE, self.config, steps=STEPS, seed=SEED, mask_id=self.vocabulary.mask_id)
        params = initial_params(self.config, SEED)
        state, found = optimizer.init(params), []
        gradient_of = jax.jit(jax.grad(loss_of, has_aux=True))
        with HostBatches(STAGE.batch, self.table, None, SEED, batch_sharding(mesh)) as batches:
            for step in good:
                batch = batches.at((step - 1) * STAGE.batch_size).arrays
                gradient = gradient_of(params, batch, jnp.int32(step - 1))[0]
                updates, state = optimizer.update(gradient, state, params)
                params = optax.apply_updates(params, updates)
                found.append(params)
        return found


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def skipping(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skipping") / "run"
    setting.train(folder, skip_nonfinite=2)
    return folder


def numbers(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: row[name] for name in row if name not in CLOCK} for row in rows]


def distance(one, two) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), one, two)))


def test_a_skipped_step_changes_neither_parameters_nor_optimizer(setting, skipping):
    after_1, after_4, after_5 = setting.expected([1, 4, 5])
    assert distance(after_5, load_params(skipping)) < 1e-6
    assert min(distance(after_1, load_params(skipping)), distance(after_4, load_params(skipping))) > 1e-4  # controls


def test_skipped_steps_are_counted_and_log_no_value_that_is_not_finite(setting, skipping):
    rows = numbers(skipping)
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 2]
    assert [row["step"] for row in rows if "loss" in row] == [1, 4, 5]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert "NaN" not in (skipping / "metrics.jsonl").read_text()
    # The learning rate follows the updates, as in the optimizer.
    schedule = tiny.OPTIMIZER.learning_rate(STEPS)
    expected = [float(schedule(updates)) for updates in (0, 0, 0, 1, 2)]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-6)
    assert json.loads((skipping / "finished.json").read_text())["metrics"]["skipped"] == 2


def test_one_too_many_fails_and_the_named_setting_leads_past_it(setting, skipping, tmp_path, caplog):
    way = r"add --gin_param=diffusion/Training.skip_nonfinite=2$"
    with pytest.raises(NonFiniteLoss, match=f"diffusion step 3: loss is nan; the last checkpoint.*{way}"):
        setting.train(tmp_path / "run", skip_nonfinite=1)
    assert "diffusion step 2: loss is nan: the step is skipped, 1 of at most 1" in caplog.text
    assert may_differ("diffusion/Training.skip_nonfinite") and not may_differ("diffusion/Training.steps")
    setting.train(tmp_path / "run", skip_nonfinite=2)  # resumes with one skipped step counted
    assert numbers(tmp_path / "run") == numbers(skipping)
    assert distance(load_params(tmp_path / "run"), load_params(skipping)) == 0
