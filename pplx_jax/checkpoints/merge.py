"""Spherical linear interpolation of two checkpoints (arXiv 2602.11151, section 2.6; Shoemake 1985)."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import numpy as np

from pplx_jax.core.errors import BadInput, require
from pplx_jax.core.parameter_trees import dotted, is_finite

Per = Literal["tensor", "whole"]
# Radians. Below this angle sin(theta) loses precision, and linear interpolation gives the same float32 result.
PARALLEL_ANGLE = 1e-4


@dataclasses.dataclass(frozen=True)
class Merge:
    """How the models of two stages are merged; by default the contextual and the triplet model, which gives v1.

    Attributes:
      stages: the two stages that are merged, if the recipe has both.
      weight: weight of the second model: 0 gives the first model, 1 the second.
      per: one angle for each "tensor", or one for the "whole" parameter vector.
    """

    stages: tuple[str, str] = ("contextual", "triplet")
    weight: float = 0.5
    per: Per = "tensor"

    def __post_init__(self):
        require(len(set(self.stages)) == 2, self, "stages", "the names of two stages")
        require(0 <= self.weight <= 1, self, "weight", "0 for the first checkpoint, 1 for the second, or between")
        require(self.per in get_args(Per), self, "per", " or ".join(get_args(Per)))


def slerp(a: Any, b: Any, weight: float = 0.5, per: Per = "tensor") -> Any:
    """Interpolates parameters along the great circle between them.

    slerp(a, b, w) = sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b, with theta the angle between a and
    b. Their lengths are interpolated too. It is computed in float64. The results for w = 0 and w = 1 are exact.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.
      weight: w in [0, 1].
      per: "tensor" uses one angle for each leaf, "whole" one for all leaves.

    Returns:
      The tree in float32.

    Raises:
      BadInput: `Merge` refuses an argument, the trees do not match, a value is non-finite, or two vectors are opposite
        and have no shortest arc between them; the message names the tensor.
    """
    Merge(weight=weight, per=per)  # refuses invalid arguments
    leaves_a, structure_a = jax.tree_util.tree_flatten_with_path(a)
    leaves_b, structure_b = jax.tree_util.tree_flatten_with_path(b)
    names = [dotted(path) for path, _ in leaves_a]
    if structure_a != structure_b:
        other = {dotted(path) for path, _ in leaves_b}
        raise BadInput(
            f"merge: the checkpoints hold different tensors, {sorted(set(names) ^ other)}; merge two of one model"
        )
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for (_, x), (_, y) in zip(leaves_a, leaves_b, strict=True)
    ]
    for name, (x, y) in zip(names, pairs, strict=True):
        if x.shape != y.shape:
            raise BadInput(f"merge: {name} is {x.shape} in one checkpoint and {y.shape} in the other")
        if not (is_finite(x) and is_finite(y)):
            raise BadInput(f"merge: {name} holds NaN or infinity; merge two checkpoints of finite weights")

    if per == "whole":
        whole = [np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)]
        share_a, share_b = _shares(whole[0], whole[1], weight, "the whole parameter vector")
        shares = [(share_a, share_b)] * len(pairs)
    else:
        shares = [_shares(x.ravel(), y.ravel(), weight, name) for name, (x, y) in zip(names, pairs, strict=True)]
    merged = [
        _mix(x, y, share_a, share_b).astype(np.float32)
        for (x, y), (share_a, share_b) in zip(pairs, shares, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure_a, merged)


def _shares(a: np.ndarray, b: np.ndarray, weight: float, name: str) -> tuple[float, float]:
    """Returns the factors of a and b in the result."""
    if weight in (0.0, 1.0):
        return 1.0 - weight, weight
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if min(lengths) == 0.0:
        return 1.0 - weight, weight
    # The half-angle form keeps full precision where arccos of the cosine loses it, near 0 and pi.
    unit_a, unit_b = a / lengths[0], b / lengths[1]
    theta = 2.0 * np.arctan2(np.linalg.norm(unit_a - unit_b), np.linalg.norm(unit_a + unit_b))
    if theta < PARALLEL_ANGLE:
        return 1.0 - weight, weight
    if np.pi - theta < PARALLEL_ANGLE:
        raise BadInput(f"merge: {name} points in opposite directions in the two checkpoints; slerp is undefined there")
    return float(np.sin((1.0 - weight) * theta) / np.sin(theta)), float(np.sin(weight * theta) / np.sin(theta))


def _mix(a: np.ndarray, b: np.ndarray, share_a: float, share_b: float) -> np.ndarray:
    # For weights 0 and 1 an input is returned unchanged: 1 * -0.0 + 0 * b would lose the sign.
    if share_b == 0.0:
        return a
    return b if share_a == 0.0 else share_a * a + share_b * b
