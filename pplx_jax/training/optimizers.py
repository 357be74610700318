"""AdamW with the schedule and clipping of a stage."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax

from pplx_jax.core.errors import require
from pplx_jax.training.schedules import warmup_cosine, warmup_stable_decay

Schedule = Literal["warmup_stable_decay", "warmup_cosine"]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv 1711.05101); decay on matrices only, never on norms or the embedding table.

    Attributes:
      peak_learning_rate: at the end of the warm-up.
      warmup_steps: linear from 0.
      schedule: after the warm-up: constant with a linear end, or a cosine.
      decay_share: share of the steps in the linear end of "warmup_stable_decay".
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the denominator.
      weight_decay: decoupled.
      clip_norm: global norm the gradient is clipped to; 0 for none.
      embedding_multiplier: learning rate of the embedding table over that of the rest. A table trained from
        scratch sees each row seldom and wants more; 1 continues a pretrained one.
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
        """Learning rate by step for a stage of `steps`.

        Raises:
          BadInput: a warm-up that does not fit.
        """
        if self.schedule == "warmup_stable_decay":
            return warmup_stable_decay(self.peak_learning_rate, steps, self.warmup_steps, self.decay_share)
        return warmup_cosine(self.peak_learning_rate, steps, self.warmup_steps)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a stage of `steps`."""
        chain = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        chain += [
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=_is_matrix),
        ]
        if self.embedding_multiplier != 1.0:
            chain.append(optax.masked(optax.scale(self.embedding_multiplier), _is_embedding))
        return optax.chain(*chain, optax.scale_by_learning_rate(self.learning_rate(steps)))


def _leaf_names(tree: Any, test) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: test(jax.tree_util.keystr(path)), tree)


def _is_matrix(params: Any) -> Any:
    return _leaf_names(params, lambda name: "kernel" in name)


def _is_embedding(params: Any) -> Any:
    return _leaf_names(params, lambda name: "embedding" in name)
