"""The tolerances of parity: when two implementations agree, for imports, exports and ONNX graphs."""

import numpy as np

MAX_ABS_DIFF = 1e-4
EDGE = 1e-3  # values this close to a rounding boundary, in INT8 levels, may round to either side


def hidden_difference(found: np.ndarray, expected: np.ndarray, where: object) -> float:
    """Returns the largest difference of hidden states (or their means), both float32 [..., D].

    The limit is `MAX_ABS_DIFF`, times the root mean square of the states if that is over 1: rounding errors grow with
    the states, and a final norm may scale them by any factor.

    Raises:
      RuntimeError: the difference exceeds the limit or is NaN. The message starts with `where`.
    """
    difference = float(np.max(np.abs(found - expected), initial=0.0))
    limit = MAX_ABS_DIFF * max(1.0, float(np.sqrt(np.mean(np.square(expected)))))
    if not difference <= limit:  # NaN fails too
        raise RuntimeError(f"{where}: hidden states differ by {difference:.3g}, over {limit:.3g}")
    return difference


def int8_equal_share(integers: np.ndarray, scaled: np.ndarray, where: object) -> float:
    """Returns the share of `integers` that equal the rounded `scaled`, which is 127 tanh v of the other implementation.

    Raises:
      RuntimeError: `integers` are not int8, or one differs that is not at a rounding boundary. The message starts with
        `where`.
    """
    equal = integers == np.round(scaled)
    to_edge = np.abs(scaled - np.floor(scaled) - 0.5)
    if integers.dtype != np.int8 or not np.all(equal | (to_edge < EDGE)):
        raise RuntimeError(
            f"{where}: {np.count_nonzero(~equal)} of {equal.size} int8 values ({integers.dtype}) differ, "
            "not all of them at a rounding boundary"
        )
    return float(equal.mean())
