"""A model from scratch that knows which tokens are rare: smooth inverse frequency, built into its weights.

A model whose blocks start as the identity is a bag of words: a text's vector is the mean of its tokens' random ones.
The final RMSNorm gives each of them one length, so that "the" counts as much as a name. Here they get the lengths that
retrieval is best served by, at first, with no change to the architecture: the last coordinate of the table, which the
scale of the final norm shuts out, takes up what the rest of a frequent token's vector is to lose.
"""

import dataclasses
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class TermWeights:
    """Smooth inverse frequency (Arora, Liang and Ma, ICLR 2017): (a / (a + p))^b of a token of share p of the text.

    Attributes:
      smoothing: a; a token of that share weighs half of one never seen, at a power of 1.
      power: b; below 1 the weights are nearer to one another.
    """

    smoothing: float = 1e-4
    power: float = 0.5

    def __post_init__(self):
        if self.smoothing <= 0 or self.power < 0:
            raise BadInput(f"{self}: give a smoothing above 0 and a power of 0 or more")

    def of(self, counts: np.ndarray) -> np.ndarray:
        """Weights [V] in (0, 1] of tokens that were counted [V]."""
        share = counts / max(counts.sum(), 1)
        return (self.smoothing / (self.smoothing + share)) ** self.power


def weighted(params: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    """The parameters of a model from scratch, with a token's vector as long as its weight says after the final norm.

    Where the blocks are the identity, the state of token t is weights[t] times the unit vector of its first D - 1
    coordinates, times sqrt(D); its last coordinate is 0, and stays 0 under losses of cosines. The blocks see tokens
    weighted alike.

    Args:
      params: as `initial_params` makes them.
      weights: [V], in (0, 1].

    Returns:
      The same tree, in NumPy; of the argument nothing is changed.
    """
    table = np.array(params["embed"]["embedding"])
    table[:, -1] = np.linalg.norm(table[:, :-1], axis=1) * np.sqrt(weights**-2.0 - 1.0)
    scales = {name: _without_last(params["layers"][name]) for name in ("input_norm", "post_attention_norm")}
    return {
        **params,
        "embed": {"embedding": table},
        "layers": {**params["layers"], **scales},
        "final_norm": _without_last(params["final_norm"]),
    }


def _without_last(norm: dict[str, Any]) -> dict[str, Any]:
    scale = np.array(norm["scale"])
    scale[..., -1] = 0.0
    return {"scale": scale}
