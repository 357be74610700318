"""Schedules over the steps of a stage."""

import jax
import jax.numpy as jnp
import optax

from pplx_jax.core.errors import BadInput


def cosine_ramp(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """Returns half a cosine from `start` at progress 0 to `end` at 1 (beta of the contextual stage, 0.2 to 0.5)."""
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    return start + (end - start) * 0.5 * (1.0 - jnp.cos(jnp.pi * progress))


def _check(name: str, steps: int, warmup: int) -> None:
    if not 0 <= warmup < steps:
        raise BadInput(f"{name}: warmup={warmup} does not fit in steps={steps}; warm up for fewer steps")


def warmup_stable_decay(peak: float, steps: int, warmup: int, decay_share: float = 0.1) -> optax.Schedule:
    """Returns a linear warm-up to `peak`, constant, linear decay to 0 over the last `decay_share` of the steps.

    Raises:
      BadInput: the phases do not fit in `steps`.
    """
    _check("warmup_stable_decay", steps, warmup)
    decay = round(steps * decay_share)
    if warmup + decay > steps:
        raise BadInput(
            f"warmup_stable_decay: warmup={warmup} and the decay's {decay} steps exceed steps={steps}; shorten one"
        )
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(warmup, 1)) if warmup else optax.constant_schedule(peak),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, max(decay, 1)),
        ],
        [warmup, steps - decay],
    )


def warmup_cosine(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Returns a linear warm-up to `peak`, then a cosine to 0 at the last step.

    Raises:
      BadInput: the warm-up does not fit in `steps`.
    """
    _check("warmup_cosine", steps, warmup)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps)
