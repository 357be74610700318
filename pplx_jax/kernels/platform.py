"""What an operation runs on: the devices of the mesh in use, or whatever its program is compiled for."""

from collections.abc import Callable
from typing import Any

import jax


def on_tpu(kernel: Callable[..., Any], *arguments: Any, otherwise: Callable[..., Any]) -> Any:
    """`kernel(*arguments)` on a TPU, `otherwise(*arguments)` elsewhere.

    Within `jax.set_mesh` the devices are known and one of the two is traced: a TPU's kernel takes seconds, of which
    another platform has no use. Elsewhere both are, and what the program is compiled for decides.
    """
    kind = _of_mesh()
    if kind is None:
        return jax.lax.platform_dependent(*arguments, tpu=kernel, default=otherwise)
    return (kernel if is_tpu(kind) else otherwise)(*arguments)


def device_kind() -> str:
    """As JAX names it: that of the mesh, or without one of this process's TPU; empty where neither is known."""
    if (kind := _of_mesh()) is not None:
        return kind
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""


def is_tpu(device_kind: str) -> bool:
    return "TPU" in device_kind


def _of_mesh() -> str | None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else None
