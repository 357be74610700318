"""`model-info.txt`: the shape and sharding of every parameter of a run."""

import math
from typing import Any

import jax

from pplx_jax.core.parameter_trees import dotted
from pplx_jax.parallel.mesh import mesh_text
from pplx_jax.parallel.rules import parameter_axes


def model_info(params: Any, optimizer: Any = (), ema: Any = None) -> str:
    """Returns each parameter's shape, logical axes, sharding and bytes per chip, then the totals, as text.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s with a `NamedSharding`.
      optimizer: the state of the optimizer, counted in the totals.
      ema: a moving average of the parameters, counted too; None for none.
    """
    rows = [("parameter", "shape", "axes", "mesh axes", "bytes a chip")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = dotted(path)
        axes = " ".join(axis or "-" for axis in parameter_axes(name, len(leaf.shape)))
        rows.append((name, "x".join(map(str, leaf.shape)), axes, _partition_text(leaf), f"{bytes_on_chip(leaf):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    leaves = jax.tree.leaves(params)
    total = sum(math.prod(leaf.shape) for leaf in leaves)
    meshes = [leaf.sharding.mesh.shape for leaf in leaves]
    of_optimizer = sum(bytes_on_chip(leaf) for leaf in jax.tree.leaves(optimizer))
    lines += [
        "",
        f"mesh {mesh_text(meshes[0] if meshes else {})}",
        f"parameters {total:,}",
        f"bytes a chip: parameters {sum(map(bytes_on_chip, leaves)):,}, optimizer {of_optimizer:,}"
        + ("" if ema is None else f", average {sum(map(bytes_on_chip, jax.tree.leaves(ema))):,}"),
    ]
    return "\n".join(lines) + "\n"


def bytes_on_chip(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of an array on one chip, without the padding of tiles."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _partition_text(leaf) -> str:
    spec = tuple(leaf.sharding.spec) + (None,) * (len(leaf.shape) - len(leaf.sharding.spec))
    return " ".join("+".join(entry) if isinstance(entry, tuple) else entry or "-" for entry in spec) or "-"
