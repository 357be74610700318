"""Initial weights that give rare tokens more weight: smooth inverse frequency (SIF), built into the embedding table.

A model whose blocks start as the identity is a bag of words: the vector of a text is the mean of its tokens' random
vectors. The final RMSNorm gives all of these the same length, so that "the" counts as much as a name. Here each token
starts with the length that suits retrieval. The architecture does not change: the scale of the final norm is 0 in the
last coordinate, and a large last coordinate makes the rest of a frequent token's vector small after the norm.
"""

import dataclasses
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput


@dataclasses.dataclass(frozen=True)
class TermWeights:
    """Smooth inverse frequency (Arora, Liang and Ma, ICLR 2017): (a / (a + p))^b for frequency p.

    Attributes:
      smoothing: a; with b = 1, a token of this frequency has half the weight of an unseen one.
      power: b; below 1 the weights are closer to each other.
    """

    smoothing: float = 1e-4
    power: float = 0.5

    def __post_init__(self):
        if self.smoothing <= 0 or self.power < 0:
            raise BadInput(f"{self}: give a smoothing above 0 and a power of 0 or more")

    def of(self, counts: np.ndarray) -> np.ndarray:
        """Returns the weights [V] in (0, 1] of tokens with these counts [V]."""
        frequency = counts / max(counts.sum(), 1)
        return (self.smoothing / (self.smoothing + frequency)) ** self.power


def weighted(params: dict[str, Any], weights: np.ndarray) -> dict[str, Any]:
    """Returns initial parameters in which the length of a token's vector after the final norm follows its weight.

    While the blocks are the identity, the hidden state of token t is weights[t] sqrt(D) times the unit vector of its
    first D - 1 coordinates. Its last coordinate is 0, and stays 0 under losses of cosines. The inputs of the blocks are
    weighted the same way.

    Args:
      params: of `initial_params`; not changed.
      weights: [V], in (0, 1].

    Returns:
      The same tree, in NumPy.
    """
    table = np.array(params["embed"]["embedding"])
    table[:, -1] = np.linalg.norm(table[:, :-1], axis=1) * np.sqrt(weights**-2.0 - 1.0)
    scales = {name: _last_scale_zero(params["layers"][name]) for name in ("input_norm", "post_attention_norm")}
    return {
        **params,
        "embed": {"embedding": table},
        "layers": {**params["layers"], **scales},
        "final_norm": _last_scale_zero(params["final_norm"]),
    }


def _last_scale_zero(norm: dict[str, Any]) -> dict[str, Any]:
    scale = np.array(norm["scale"])
    scale[..., -1] = 0.0
    return {"scale": scale}
