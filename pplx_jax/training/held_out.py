"""The loss of a stage on held-out examples, by source: the same batches with the same masks at every evaluation."""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pplx_jax.checkpoints.orbax import LOSS_PARAMS
from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.batch_spec import PairBatch
from pplx_jax.data.batches.examples import Examples
from pplx_jax.models.parameters import bind
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import batch_sharding, replicated
from pplx_jax.parallel.rules import shards
from pplx_jax.training.stages.base import Stage, Step
from pplx_jax.training.train_state import model_params

_SEED = 0  # of the masks, whatever the seed of the run: runs of several seeds are compared on the same ones


class HeldOutLoss:
    """The `Evaluator` of held-out loss.

    Each source is evaluated alone, so in-batch negatives come from the source itself. A contrastive loss does not count
    the queries whose document is also trained on, in any source; the documents stay negatives. A source without an
    example that counts, or too small to hold examples out, is left out with a warning, because no long run should end
    for it.

    Args:
      stage: its loss is computed as at its last step.
      config: the encoder.
      mask_id: the vocabulary's mask token.
      examples: the stream of the stage; it knows the held-out rows.
      count: held-out examples of each source.
      devices: the mesh; the sequences of a batch are spread over it.

    Attributes:
      metrics: names of the metrics.

    Raises:
      BadInput: as `held_out_batch`.
    """

    def __init__(
        self,
        stage: Stage,
        config: Qwen3Config,
        mask_id: int,
        examples: Examples,
        count: int,
        devices: jax.sharding.Mesh,
    ):
        self._stage, self._config, self._mask_id = stage, config, mask_id
        self._examples, self._devices = examples, devices
        parts = shards("rows", devices)
        size = held_out_batch(count, stage.batch.batch_size, parts)
        self._spec = dataclasses.replace(stage.batch, batch_size=size)
        if isinstance(self._spec, PairBatch):
            self._spec = dataclasses.replace(self._spec, source_weights=())
        self._batches: dict[str, list[np.ndarray]] = {}
        self._counted: dict[str, list[np.ndarray]] = {}
        for name in examples.read_names:
            rows = examples.held_out(name)
            counted = self._not_trained_on(name, rows)
            if counted.any():
                self._batches[name], self._counted[name] = (np.split(part, count // size) for part in (rows, counted))
            else:
                logging.warning("%s: no held-out loss, because %s", name, _why_none(len(rows)))
        self._sequences = max(
            (
                self._spec.sequences_needed(examples.table(name, rows), parts)
                for name, batches in self._batches.items()
                for rows in batches
            ),
            default=0,
        )
        names = [name or self._spec.kind for name in self._batches]  # a table that is opened alone has no name
        self.metrics = tuple(f"eval/loss/{name}" for name in (*names, "mean")) if names else ()
        self._loss = jax.jit(self._loss_of, out_shardings=replicated(devices))

    def __call__(self, params: dict[str, Any]) -> dict[str, float]:
        """Returns the loss of each source and their mean. Collective."""
        losses: list[float] = []
        if not self.metrics:
            return {}
        for name, counted in self._counted.items():
            values = [
                self._loss(params, batch, np.array([zlib.crc32(name.encode()), number], np.uint32))
                for number, batch in enumerate(self._packed(name))
            ]
            losses.append(float(np.average(jax.device_get(values), weights=[rows.sum() for rows in counted])))
        return dict(zip(self.metrics, [*losses, float(np.mean(losses))], strict=True))

    def _loss_of(self, params: dict[str, Any], batch: dict[str, jax.Array], place: jax.Array) -> jax.Array:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(_SEED), place[0]), place[1])
        step = Step(rng, progress=jnp.float32(1), mask_id=self._mask_id, learned=params.get(LOSS_PARAMS, {}))
        return self._stage.loss(bind(self._config, model_params(params)), batch, step)[0]

    def _packed(self, name: str) -> Iterator[dict[str, jax.Array]]:
        placement = batch_sharding(self._devices)
        for rows, counted in zip(self._batches[name], self._counted[name], strict=True):
            table = self._examples.table(name, rows)
            arrays = self._spec.pack(table, np.arange(table.count), self._sequences).arrays
            if isinstance(self._spec, PairBatch):
                arrays = {**arrays, "weight": counted.astype(np.float32)}
            yield {
                key: jax.make_array_from_callback(array.shape, placement, lambda index, array=array: array[index])
                for key, array in arrays.items()
            }

    def _not_trained_on(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Returns which of the held-out rows of a source count."""
        if not len(rows) or not isinstance(self._spec, PairBatch):
            return np.ones(len(rows), bool)
        read = self._examples.are_read(self._examples.table(name, rows)["document_hash"][: len(rows)])
        if read.any():
            logging.info("%s: the documents of %d of %d held-out examples are trained on", name, read.sum(), len(read))
        return ~read


def _why_none(rows: int) -> str:
    if rows:
        return "the documents of all held-out examples are trained on; raise Evaluation.held_out"
    return "it is too small to hold examples out; lower Evaluation.held_out"


def held_out_batch(count: int, batch_size: int, parts: int) -> int:
    """Returns the size of the batches of `count` held-out examples: that of the stage, or one smaller batch.

    Args:
      count: held-out examples of a source.
      batch_size: of the stage.
      parts: into which the devices divide a batch.

    Raises:
      BadInput: the examples do not divide into batches, or a batch over the devices.
    """
    size = min(count, batch_size)
    if count % size or size % parts:
        raise BadInput(
            f"Evaluation.held_out={count} makes no equal batches of {size} examples for {parts} devices; set it to a "
            f"multiple of {parts} below the batch size {batch_size}, or of the batch size"
        )
    return size
