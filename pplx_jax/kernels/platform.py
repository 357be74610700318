"""The platform that an operation runs on: that of the mesh in use, or the one that its program is compiled for."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

# MiB of VMEM per TPU core that a kernel may take, by a part of the device kind. The compiler needs the rest.
_VMEM_MIB = {"v4": 14, "v5 lite": 100, "v5e": 100, "v6": 100}
_NVIDIA = ("NVIDIA", "A100")  # prefixes of the device kinds of GPUs from compute capability 8.0 on
_DEFAULT_VMEM_MIB = 56  # v5p, v7, unknown devices


def by_platform(*arguments: Any, default: Callable[..., Any], **kernels: Callable[..., Any]) -> Any:
    """Calls the kernel of the platform with `arguments`, or `default` if there is none.

    Within `jax.set_mesh` the platform is known, and only its implementation is traced; tracing a TPU kernel takes
    seconds. Otherwise all are traced, and the platform that the program is compiled for decides.

    Args:
      arguments: arrays for the implementation.
      default: the implementation for platforms without a kernel.
      kernels: implementations by platform, "tpu", "cuda" or "cpu".
    """
    kind = _of_mesh()
    if kind is None:
        return jax.lax.platform_dependent(*arguments, default=default, **kernels)
    return kernels.get(platform_of(kind), default)(*arguments)


def platform() -> str:
    """Returns the platform of the mesh, or of this process without one: "tpu", "cuda", or "cpu" for all others."""
    return platform_of(_of_mesh() or jax.devices()[0].device_kind)


def fast_dtype(platform: str) -> str:
    """Returns the faster precision of matrix products on a platform ("cpu", "gpu", "tpu"): "bfloat16" or "float32".

    A CPU multiplies bfloat16 faster than float32 if it has matrix units (AMX); otherwise it is slower. Processes of one
    job may have different CPUs, so several processes on CPU use float32.
    """
    if platform != "cpu":
        return "bfloat16"
    return "bfloat16" if jax.process_count() == 1 and "amx_bf16" in _cpu_flags() else "float32"


def _cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of this CPU as Linux names them; empty elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def device_kind() -> str:
    """Returns JAX's name of the device kind of the mesh, or of this process's TPU without one; "" if there is none."""
    if (kind := _of_mesh()) is not None:
        return kind
    return jax.devices()[0].device_kind if jax.default_backend() == "tpu" else ""


def vmem_limit_bytes(device_kind: str) -> int:
    """Returns the bytes of VMEM that a kernel may take on a TPU of this kind; those of a v5p if the kind is unknown."""
    kind = device_kind.lower()
    return 2**20 * next((size for part, size in _VMEM_MIB.items() if part in kind), _DEFAULT_VMEM_MIB)


def platform_of(device_kind: str) -> str:
    """Returns the platform of a device kind: "tpu", "cuda", or "cpu" for all others."""
    if "TPU" in device_kind:
        return "tpu"
    return "cuda" if device_kind.startswith(_NVIDIA) else "cpu"


def _of_mesh() -> str | None:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else None
