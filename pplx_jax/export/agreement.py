"""When two implementations agree: the rules that imports, exports and ONNX graphs are all held to."""

import numpy as np

MAX_ABS_DIFF = 1e-4
EDGE = 1e-3  # of a level: values this near to where rounding changes may fall to either side


def hidden_difference(found: np.ndarray, expected: np.ndarray, where: object) -> float:
    """The largest difference of hidden states (or their means), both float32 [..., D].

    At most `MAX_ABS_DIFF` times their root mean square where that is over 1: rounding errors grow with the states,
    and a final norm may scale them by any factor.

    Raises:
      RuntimeError: it is more, or not a number; the message starts with `where`.
    """
    difference = float(np.max(np.abs(found - expected), initial=0.0))
    limit = MAX_ABS_DIFF * max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
    if not difference <= limit:  # NaN fails too
        raise RuntimeError(f"{where}: hidden states differ by {difference:.3g}, over {limit:.3g}")
    return difference


def int8_equal_share(integers: np.ndarray, scaled: np.ndarray, where: object) -> float:
    """Share of `integers` that are `scaled`, 127 tanh v of the other side, rounded.

    Raises:
      RuntimeError: they are no int8, or one differs that is not at a rounding edge; the message starts with `where`.
    """
    equal = integers == np.round(scaled)
    to_edge = np.abs(scaled - np.floor(scaled) - 0.5)
    if integers.dtype != np.int8 or not np.all(equal | (to_edge < EDGE)):
        raise RuntimeError(
            f"{where}: {np.count_nonzero(~equal)} of {equal.size} int8 values ({integers.dtype}) differ, "
            "not all of them at a rounding edge"
        )
    return float(equal.mean())
