"""Devices in an order in which those of a process are not neighbours in the mesh, as on a slice of 2 x 2 hosts."""

CODE = """
import jax
import numpy as np
from pplx_jax.parallel import mesh

_in_order = mesh._arranged

def _as_on_a_torus(devices, shape):
    if np.prod(shape) != jax.device_count() or len(devices) % 4:  # a mesh of one process's own devices
        return _in_order(devices, shape)
    order = [place - place % 4 + (0, 2, 1, 3)[place % 4] for place in range(len(devices))]
    return _in_order([devices[place] for place in order], shape)

mesh._arranged = _as_on_a_torus
"""
