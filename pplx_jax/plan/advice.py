"""What to change if a stage does not fit."""

from typing import Any

from pplx_jax.training.out_of_memory import less_memory
from pplx_jax.training.settings import Training

_GIB = 2**30
_COMPILE_ABOVE = 0.6  # share of a chip that parameters, optimizer, gradients and inputs of blocks may fill


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


def rehearsal_advice(report: dict[str, Any], training: Training) -> list[str]:
    """Returns what to change, and what to look at, after the rehearsal of a stage."""
    used, limit = report["hbm_bytes_per_chip"], report["hbm_limit_bytes"]
    found = []
    if used > limit:
        found += advice({**report, "fits": False}, training)
    elif used > _COMPILE_ABOVE * limit:
        found.append("a chip is nearly full without the activations within a block: plan the stage without --rehearse")
    if report["host_bytes"] > report["host_limit_bytes"]:
        found.append(f"{report['host_bytes'] / _GIB:.0f} GiB a host are too much: take more hosts")
    if report["best_packing_groups"] != report["packing_groups"]:
        found.append(
            f"the busiest host packs {report['packed_by_busiest_host']:.1%} of each batch; with "
            f"{training.stage.name}/Training.packing_groups={report['best_packing_groups']} it packs "
            f"{report['packed_by_busiest_host_at_best']:.1%}, and texts share sequences a little less densely"
        )
    for each in report["copied_parameters"]:
        found.append(
            f"{each['parameter']}: {each['copies']} copies in one model, {each['bytes_a_chip'] / _GIB:.2f} GiB a chip; "
            "its axes do not divide, or Mesh.rules has no rule for them"
        )
    return found
