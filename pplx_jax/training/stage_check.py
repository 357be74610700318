"""Checks a stage against the devices without reading data or allocating arrays."""

import jax

from pplx_jax.kernels.attention import require_implementation
from pplx_jax.kernels.platform import platform_of
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.parallel.rules import shards, using
from pplx_jax.training.held_out import held_out_batch
from pplx_jax.training.settings import Training


def check_stage(training: Training, config: Qwen3Config, devices: jax.sharding.Mesh, mesh: Mesh) -> None:
    """Checks that a stage can be trained on the devices.

    Args:
      training: the stage.
      config: the encoder, as `Training.model` returns it.
      devices: the mesh that `mesh` built.
      mesh: its settings.

    Raises:
      BadInput: the mesh cannot divide the batch or the model, the batch does not divide into the packing groups, the
        held-out examples do not divide into batches, the warm-up is longer than the stage, the devices do not have the
        implementation of attention, or a metrics writer cannot work here.
    """
    batch = training.stage.batch
    sizes = {"kv_heads": config.kv_heads, "mlp_width": config.mlp_width}
    mesh.require(devices, batch_size=batch.batch_size, row_length=batch.length, **sizes)
    batch.part(training.packing_groups)
    if training.held_out:
        with using(mesh.rules, mesh.parameter_axes):
            held_out_batch(training.held_out, batch.batch_size, shards("rows", devices))
    training.optimizer.learning_rate(training.steps)
    require_implementation(
        training.attention_implementation or "auto", platform_of(devices.devices.flat[0].device_kind)
    )
    for writer in training.logging.writers:
        writer.check()
