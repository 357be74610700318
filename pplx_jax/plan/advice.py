"""What to change if a stage does not fit."""

from typing import Any

from pplx_jax.training.out_of_memory import less_memory
from pplx_jax.training.settings import Training

_GIB = 2**30


def advice(report: dict[str, Any], training: Training) -> list[str]:
    """Returns the changes to try, in order; empty if the stage fits."""
    if report["fits"]:
        return []
    over = report["hbm_bytes_per_chip"] - report["hbm_limit_bytes"]
    held = sum(report["hbm"].get(name, 0) for name in ("parameters", "optimizer", "average"))
    dominates = held > report["hbm_limit_bytes"] / 2
    return [
        f"{over / _GIB:.2f} GiB a chip too much",
        *less_memory(training, report["mesh_sizes"], report["rows"], state_dominates=dominates),
    ]
