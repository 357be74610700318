"""How well a model predicts masked tokens of texts at fixed mask rates, with the same masks for every model."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pplx_jax.models.parameters import bind
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.objectives.corruption import corrupt
from pplx_jax.parallel.mesh import batch_sharding, replicated, shardings
from pplx_jax.parallel.rules import shards
from pplx_jax.training.stages.base import Stage

_SEQUENCES = 8  # of a batch at least; logits of its whole vocabulary are in memory
_SEED = 0  # of the masks


def masked_token_scores(
    stage: Stage,
    config: Qwen3Config,
    params: dict[str, Any],
    texts: Sequence[Sequence[int]],
    mask_id: int,
    devices: jax.sharding.Mesh,
    *,
    rate: float,
    length: int,
) -> dict[str, np.ndarray]:
    """Scores a model on masked tokens, predicted as the stage predicts them. Collective.

    Args:
      stage: one whose `targets` are not None.
      config: the encoder, with the mask of the stage.
      params: of the model, on the host or on the mesh.
      texts: token ids, not empty; the end of a longer text than `length` is left out.
      mask_id: the vocabulary's mask token.
      devices: the mesh; the texts of a batch are spread over it.
      rate: probability with which a token is masked.
      length: tokens of a sequence.

    Returns:
      "loss", the cross-entropy in nats, and "accuracy": float64 [N], the means over the masked tokens of each text; NaN
      for a text without a masked token, which depends on the texts only.
    """

    def of_batch(params, tokens, segment_ids, number):
        positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        rng = jax.random.fold_in(jax.random.key(_SEED), number)
        corruption = corrupt(
            tokens, segment_ids, positions, rng, mask_id=mask_id, min_time=rate, max_time=rate, random_length_share=0.0
        )
        targets = stage.targets(tokens, corruption)
        assert targets is not None
        model = bind(config, params)
        hidden = model(corruption.inputs, corruption.segment_ids, positions)
        logits = jnp.einsum("bld,vd->blv", hidden, model.output_table, preferred_element_type=jnp.float32)
        correct = jnp.take_along_axis(logits, targets.tokens[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - correct
        hit = jnp.argmax(logits, axis=-1) == targets.tokens
        count = jnp.sum(targets.predicted, axis=-1)
        return [jnp.sum(of_token * targets.predicted, axis=-1) / count for of_token in (loss, hit)]

    score = jax.jit(of_batch, out_shardings=replicated(devices))
    parts = shards("rows", devices)
    size = -(-_SEQUENCES // parts) * parts
    params = jax.device_put(params, shardings(params, devices))
    found = []
    for number, begin in enumerate(range(0, len(texts), size)):
        batch = [np.asarray(text[:length], np.int32) for text in texts[begin : begin + size]]
        tokens, segment_ids = np.zeros((2, size, length), np.int32)
        for row, text in enumerate(batch):
            tokens[row, : len(text)], segment_ids[row, : len(text)] = text, 1
        placed = (_placed(array, devices) for array in (tokens, segment_ids))
        found.append([values[: len(batch)] for values in jax.device_get(score(params, *placed, number))])
    loss, accuracy = (np.concatenate(values).astype(np.float64) for values in zip(*found, strict=True))
    return {"loss": loss, "accuracy": accuracy}


def _placed(array: np.ndarray, devices: jax.sharding.Mesh) -> jax.Array:
    return jax.make_array_from_callback(array.shape, batch_sharding(devices), lambda index: array[index])
