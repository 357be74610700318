"""Chooses the mesh on which a model encodes: a copy of the parameters on every device, or one copy over several."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pplx_jax.parallel.mesh import REST, Mesh

_FOR_PARAMETERS = 0.6  # of a device's memory; the rest is for activations


def encoding_mesh(params: Any, dtype: str, *, everywhere: bool = False) -> jax.sharding.Mesh:
    """Returns the mesh of all devices of this process, or of the whole job if the model needs them.

    Args:
      params: the parameters, nested dict of arrays.
      dtype: of the matrices when they are on the devices.
      everywhere: whether all processes encode together, so that one copy may be spread over all of them.
    """
    bytes_needed = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) * jnp.dtype(dtype).itemsize
    local = jax.local_devices()
    memory = min((device.memory_stats() or {}).get("bytes_limit", math.inf) for device in local)
    if copies(bytes_needed, memory, len(local)) or not everywhere:
        return Mesh(data=max(copies(bytes_needed, memory, len(local)), 1), fsdp=REST).build(local)
    slices = len({getattr(device, "slice_index", None) or 0 for device in jax.devices()})
    return Mesh(slice=slices, fsdp=REST).build()


def copies(bytes_needed: int, memory: float, devices: int) -> int:
    """Returns the most copies of the parameters that the devices can hold, a divisor of their number; 0 if none.

    Args:
      bytes_needed: by one copy.
      memory: bytes of one device.
      devices: number of devices.
    """
    divisors = (count for count in range(devices, 0, -1) if devices % count == 0)
    return next((count for count in divisors if bytes_needed * count / devices <= memory * _FOR_PARAMETERS), 0)
