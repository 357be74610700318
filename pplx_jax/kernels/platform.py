"""What an operation runs on: the devices of the mesh in use, or whatever its program is compiled for."""

from collections.abc import Callable
from typing import Any

import jax

# MiB of fast memory (VMEM) of a TPU core, less what its compiler keeps, by a part of the device's kind.
_FAST_MEMORY = {"v4": 14, "v5 lite": 100, "v5e": 100, "v6": 100}
_NVIDIA = ("NVIDIA", "A100")  # how names of its GPUs begin, from compute capability 8.0 on
_LEAST_FAST_MEMORY = 56  # of v5p, v7 and what is not known


def by_platform(*arguments: Any, default: Callable[..., Any], **kernels: Callable[..., Any]) -> Any:
    """That of `kernels`, by "tpu" or "cuda", which is for the platform, called with `arguments`; elsewhere `default`.

    Within `jax.set_mesh` the devices are known and one of them is traced: a TPU's kernel takes seconds, of which
    another platform has no use. Elsewhere all are, and what the program is compiled for decides.
    """
    kind = _of_mesh()
    if kind is None:
        return jax.lax.platform_dependent(*arguments, default=default, **kernels)
    return kernels.get(_platform_of(kind), default)(*arguments)


def platform() -> str:
    """One of "tpu", "cuda" or "cpu", the last for any other: that of the mesh, or without one of this process."""
    return _platform_of(_of_mesh() or jax.devices()[0].device_kind)


def device_kind() -> str:
    """As JAX names it: that of the mesh, or without one of this process's TPU; empty where neither is known."""
    if (kind := _of_mesh()) is not None:
        return kind
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""


def fast_memory(device_kind: str) -> int:
    """Bytes that a kernel may take of the fast memory of a TPU's core; as of a v5p where the kind is none of a TPU."""
    kind = device_kind.lower()
    return 2**20 * next((size for part, size in _FAST_MEMORY.items() if part in kind), _LEAST_FAST_MEMORY)


def _platform_of(device_kind: str) -> str:
    if "TPU" in device_kind:
        return "tpu"
    return "cuda" if device_kind.startswith(_NVIDIA) else "cpu"


def _of_mesh() -> str | None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else None
