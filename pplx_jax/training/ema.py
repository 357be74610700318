"""The exponential moving average of a stage's parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Ema:
    """An average that starts as a copy of the stage's first parameters, so it has no bias towards zero.

    After n updates the first parameters weigh decay^n in it. With a warm-up they are forgotten within tens of updates,
    as suits random ones: the decay of update n, counted from 1, is then min(decay, (1 + n) / (10 + n)).

    Attributes:
      decay: weight of the earlier average at each update.
      warmup: whether the decay warms up.
    """

    decay: float
    warmup: bool = False

    def updated(self, average: Any, params: Any, updates: jax.Array) -> Any:
        """Returns decay * average + (1 - decay) * params, float32, in the form that is exact where both are equal.

        Args:
          average: of the parameters before the update.
          params: after it, a tree of the same shapes.
          updates: number of updates, including this one.
        """
        count = updates.astype(jnp.float32)
        decay = jnp.minimum(self.decay, (1 + count) / (10 + count)) if self.warmup else jnp.float32(self.decay)
        return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
