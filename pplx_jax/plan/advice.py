"""What to change if a stage does not fit."""

from typing import Any

from pplx_jax.training.settings import Training

_GIB = 2**30


def advice(report: dict[str, Any], training: Training) -> list[str]:
    """Returns the changes to try, in order; empty if the stage fits."""
    if report["fits"]:
        return []
    over = report["hbm_bytes_per_chip"] - report["hbm_limit_bytes"]
    held = report["hbm"]["parameters"] + report["hbm"]["optimizer"]
    sizes, stage = report["mesh_sizes"], training.stage
    found = [f"{over / _GIB:.2f} GiB a chip too much"]
    if held > report["hbm_limit_bytes"] / 2 and sizes["data"] > 1:
        found.append(
            f"parameters and optimizer take {held / _GIB:.1f} GiB of it: move devices from Mesh.data to Mesh.fsdp"
        )
    if training.remat_policy:
        setting = f"{stage.name}/Training.remat_policy=()"
        found.append(f"save fewer activations: {setting} (the backward pass recomputes them)")
    if hasattr(stage, "microbatches"):
        name = type(stage).__name__
        found.append(f"encode in more parts: {name}.microbatches={2 * stage.microbatches} (one more forward pass)")
    if report["rows"] // max(sizes["slice"] * sizes["data"] * sizes["fsdp"], 1) <= 1:
        found.append("a chip has one row already: share its tokens, Mesh.sequence (the preset long_context)")
    found.append("share each product: Mesh.tensor (the preset fsdp_tensor); or take more chips, or a smaller batch")
    return found
