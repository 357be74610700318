"""The state that a training step passes to the next, and the compiled step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pplx_jax.checkpoints.orbax import EMA, LOSS_PARAMS
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import batch_sharding, replicated, shardings
from pplx_jax.training.ema import Ema
from pplx_jax.training.stages.base import Stage, Step


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything a stage resumes from, except the position in the data.

    Attributes:
      params: nested dict of float32 arrays, as `trained_params` returns it.
      optimizer: the optax state.
      step: int32 scalar, steps done; negative after a non-finite step that was one too many. The rng of a step is a
        function of it and of the seed.
      skipped: int32 scalar, how many of those steps were not finite and changed no parameter.
      tolerated: int32 scalar, how many may be; a value and not a part of the program, so that no result depends on it.
      ema: moving average of `params`, of the same shapes and shardings; None for a stage without one.
    """

    params: Any
    optimizer: Any
    step: jax.Array
    skipped: jax.Array
    tolerated: jax.Array
    ema: Any = None

    @property
    def result(self) -> Any:
        """The parameters that are the stage's result, which all that comes after it uses: the average, if any."""
        return self.params if self.ema is None else self.ema

    def arrays(self) -> dict[str, Any]:
        """Returns the arrays of a checkpoint by name; `skipped` is saved as a number in its metadata."""
        found = {"params": self.params, "optimizer": self.optimizer, "step": self.step}
        return found if self.ema is None else {**found, EMA: self.ema}


def model_params(params: dict[str, Any]) -> dict[str, Any]:
    """Returns the model's part of what `trained_params` returns."""
    return {name: part for name, part in params.items() if name != LOSS_PARAMS}


def trained_params(params: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Returns all that a stage trains: the model's parameters and, under `LOSS_PARAMS`, those of its loss, if any."""
    learned = {name: jnp.float32(value) for name, value in stage.learned().items()}
    return {**params, LOSS_PARAMS: learned} if learned else params


def new_state(
    params: dict[str, Any], optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, ema: Ema | None = None
) -> TrainState:
    """Returns a fresh state with `params`, laid out on the mesh; no device holds more than its part."""

    def start(params) -> TrainState:
        return _first(params, optimizer, ema)

    params = jax.device_put(params, shardings(params, mesh))
    return jax.jit(start, out_shardings=shardings(jax.eval_shape(start, params), mesh))(params)


def state_shapes(
    config: Qwen3Config, stage: Stage, optimizer: optax.GradientTransformation, ema: Ema | None = None
) -> TrainState:
    """Returns shape and dtype (`jax.ShapeDtypeStruct`) of every array of a stage's state; allocates none."""

    def start() -> TrainState:
        return _first(trained_params(initial_params(config, seed=0), stage), optimizer, ema)

    return jax.eval_shape(start)


def laid_out(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """Returns the tree of `jax.ShapeDtypeStruct`s with the sharding of each on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def state_layout(
    config: Qwen3Config,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    ema: Ema | None = None,
) -> TrainState:
    """Returns `state_shapes` with the sharding of every array on the mesh."""
    return laid_out(state_shapes(config, stage, optimizer, ema), mesh)


def _first(params: dict[str, Any], optimizer: optax.GradientTransformation, ema: Ema | None) -> TrainState:
    average = jax.tree.map(jnp.copy, params) if ema else None
    zeros = {name: jnp.int32(0) for name in ("step", "skipped", "tolerated")}
    return TrainState(params, optimizer.init(params), **zeros, ema=average)


def stage_loss(
    stage: Stage, config: Qwen3Config, *, steps: int, seed: int, mask_id: int
) -> Callable[[dict[str, Any], dict[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns the loss and metrics of a stage as a function of (params, batch, step)."""

    def loss_of(params, batch, step):
        rng = jax.random.fold_in(jax.random.key(seed), step)
        learned = params.get(LOSS_PARAMS, {})
        context = Step(rng=rng, progress=step / steps, mask_id=mask_id, learned=learned)
        return stage.loss(bind(config, model_params(params)), batch, context)

    return loss_of


def make_step(
    stage: Stage,
    config: Qwen3Config,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    seed: int,
    mask_id: int,
    mesh: jax.sharding.Mesh,
    ema: Ema | None = None,
) -> jax.stages.Wrapped:
    """Returns one optimizer step of a stage, jitted: (state, batch) -> (state, metrics).

    A step whose loss, gradient norm or metric of the stage is not finite leaves parameters and optimizer unchanged. It
    counts as done and as skipped, up to `TrainState.tolerated` skipped steps. After one more, `TrainState.step` becomes
    negative and no later step changes anything: so the cause can be found later, with the parameters of the failed
    step. The metric `skipped` includes the step itself.
    """

    loss_of = stage_loss(stage, config, steps=steps, seed=seed, mask_id=mask_id)

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        with jax.named_scope("loss_and_gradient"):
            (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, batch, state.step)
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("metrics"):
            metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
            # The norms of the update do not count: no new parameter could replace an old one before all are computed.
            finite = jnp.all(jnp.stack([jnp.isfinite(value) for value in metrics.values()]))
            metrics |= {"parameter_norm": optax.tree.norm(params), "update_norm": optax.tree.norm(updates)}
        halted = state.step < 0
        skipped = state.skipped + ~finite
        metrics["skipped"] = skipped
        step = jnp.where(finite | (skipped <= state.tolerated), state.step + 1, -1 - state.step)
        with jax.named_scope("ema"):
            average = ema.updated(state.ema, params, state.step + 1 - skipped) if ema else None
        stepped = TrainState(params, optimizer_state, step, skipped, state.tolerated, average)
        stays = dataclasses.replace(state, step=jnp.where(halted, state.step, step), skipped=skipped)
        return jax.tree.map(lambda new, old: jnp.where(finite & ~halted, new, old), stepped, stays), metrics

    # The state keeps its layout: a compiled step accepts no other, and XLA would choose a different one.
    layout = jax.tree.map(lambda leaf: leaf.sharding, state_layout(config, stage, optimizer, mesh, ema))
    return jax.jit(
        train_step,
        in_shardings=(layout, batch_sharding(mesh)),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
    )
