"""AdamW with the schedule and clipping of a stage."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax

from pplx_jax.core.errors import require
from pplx_jax.models.parameters import is_embedding_table
from pplx_jax.training.schedules import warmup_cosine, warmup_stable_decay

Schedule = Literal["warmup_stable_decay", "warmup_cosine"]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv 1711.05101). Weight decay applies to the kernels of matrix products only, not to norms or tables.

    Attributes:
      peak_learning_rate: learning rate at the end of the warm-up.
      warmup_steps: steps of the warm-up, which is linear from 0.
      schedule: after the warm-up: constant with a linear decay at the end, or a cosine.
      decay_share: share of the steps in the linear decay of "warmup_stable_decay".
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the denominator.
      weight_decay: decoupled.
      clip_norm: global norm to which the gradient is clipped; 0 for no clipping.
      embedding_multiplier: learning rate of the input embedding table relative to the rest. In training from scratch
        each row of the table gets few gradients and needs a higher rate; 1 suits a pretrained table.
    """

    peak_learning_rate: float
    warmup_steps: int = 100
    schedule: Schedule = "warmup_cosine"
    decay_share: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    embedding_multiplier: float = 1.0

    def __post_init__(self):
        require(self.schedule in get_args(Schedule), self, "schedule", " or ".join(get_args(Schedule)))
        for name in ("peak_learning_rate", "warmup_steps", "weight_decay", "clip_norm", "embedding_multiplier"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, self, name, "a number from 0 to below 1")
        require(0 <= self.decay_share <= 1, self, "decay_share", "a number from 0 to 1")
        require(self.eps > 0, self, "eps", "a number above 0")

    def learning_rate(self, steps: int) -> optax.Schedule:
        """Returns the learning rate by step for a stage of `steps`.

        Raises:
          BadInput: the phases do not fit in `steps`.
        """
        if self.schedule == "warmup_stable_decay":
            return warmup_stable_decay(self.peak_learning_rate, steps, self.warmup_steps, self.decay_share)
        return warmup_cosine(self.peak_learning_rate, steps, self.warmup_steps)

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the transformation for a stage of `steps`."""
        chain = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        chain += [
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=_is_matrix),
        ]
        if self.embedding_multiplier != 1.0:
            chain.append(optax.masked(optax.scale(self.embedding_multiplier), _is_embedding))
        return optax.chain(*chain, optax.scale_by_learning_rate(self.learning_rate(steps)))


def _is_matrix(params: Any) -> Any:
    """Returns a tree of booleans: whether a leaf is the kernel of a matrix product."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _is_embedding(params: Any) -> Any:
    """Returns a tree of booleans: whether a leaf is the input embedding table; an untied head is not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_embedding_table(path), params)
