"""Attention over packed rows: the public face, which picks an implementation."""

import functools
from typing import Literal, get_args

import jax
from jax.sharding import PartitionSpec

from pplx_jax.errors import BadInput
from pplx_jax.kernels.attention import blockwise, pallas, reference

Implementation = Literal["reference", "blockwise", "pallas"]
# Longest row whose scores XLA holds at once. Up to here one product of whole rows is the faster way.
WHOLE_ROWS = 1024
# Mesh axes that rows of the batch, and heads, may lie on.
ROW_AXES, HEAD_AXIS = ("slice", "data", "fsdp"), "tensor"


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    causal: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention within each text of packed rows; arguments and result as of `reference.attention`.

    Where None is given: on a TPU the Pallas kernels, elsewhere whole rows in XLA where they are short, else a block
    of queries at a time. Within `jax.set_mesh`, the kernels run on each device's rows and heads.

    Raises:
      BadInput: the forced implementation cannot run here, or is unknown.
    """
    xla = reference if query.shape[1] <= WHOLE_ROWS else blockwise
    kernel = functools.partial(_on_mesh, causal=causal)
    if implementation is None:
        return jax.lax.platform_dependent(
            query,
            key,
            value,
            segment_ids,
            tpu=kernel,
            default=functools.partial(xla.attention, causal=causal),
        )
    if implementation == "pallas":
        if jax.default_backend() != "tpu" and not _compiles_for_tpu():
            raise BadInput(
                f"attention: implementation 'pallas' wants a TPU, this is {jax.default_backend()}; "
                "leave it out, or call pallas.attention(interpret=True) to try it"
            )
        return kernel(query, key, value, segment_ids)
    if implementation not in get_args(Implementation):
        raise BadInput(
            f"attention: implementation {implementation!r} is not one of {', '.join(get_args(Implementation))}"
        )
    chosen = {"reference": reference, "blockwise": blockwise}[implementation]
    return chosen.attention(query, key, value, segment_ids, causal=causal)


def _compiles_for_tpu() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and "TPU" in (mesh.abstract_device.device_kind if mesh.abstract_device else "")


def _on_mesh(query, key, value, segment_ids, *, causal: bool, interpret: bool = False) -> jax.Array:
    """The kernels on each device's share: a compiler cannot split them by itself."""
    run = functools.partial(pallas.attention, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(query, key, value, segment_ids)
    rows = tuple(axis for axis in ROW_AXES if axis in mesh.shape)
    heads = HEAD_AXIS if HEAD_AXIS in mesh.shape and key.shape[2] % mesh.shape[HEAD_AXIS] == 0 else None
    spec = PartitionSpec(rows, None, heads)
    return jax.shard_map(
        run, in_specs=(spec, spec, spec, PartitionSpec(rows)), out_specs=spec, check_vma=False
    )(query, key, value, segment_ids)
