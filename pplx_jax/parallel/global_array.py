"""Global arrays of which each process supplies the parts of its own devices."""

from collections.abc import Callable

import jax
import numpy as np


def global_array(shape: tuple[int, ...], sharding: jax.sharding.Sharding, part: Callable[..., np.ndarray]) -> jax.Array:
    """Returns a global array. This is an explicit transfer, which the transfer guard of a step allows.

    Args:
      shape: of the whole array.
      sharding: over the devices of all processes.
      part: index (a tuple of slices) of a part that this process supplies -> its values.
    """
    with jax.transfer_guard_host_to_device("allow"):  # JAX counts this function as an implicit transfer
        return jax.make_array_from_callback(shape, sharding, part)
