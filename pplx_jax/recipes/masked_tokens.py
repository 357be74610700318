"""What a stage that predicts masked tokens has learned: its loss and accuracy on held-out text, before and after."""

import pathlib
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.set_samples import draw
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.evaluation.core.significance import paired_interval
from pplx_jax.evaluation.scoring.retrieval_sets import read_sets
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.masked_tokens import masked_token_scores
from pplx_jax.training.settings import Training
from pplx_jax.training.stages.base import Stage
from pplx_jax.training.starting_point import starting_params

RATES = (0.15, 0.5)
_TEXTS, _TOKENS = 128, 128  # sequences, and most tokens of a sequence: half a minute on two cores
_SEED = 0  # of the sample


def predicts_masked_tokens(stage: Stage) -> bool:
    """Returns whether a stage predicts masked tokens."""
    return type(stage).targets is not Stage.targets


def masked_tokens(
    folder: pathlib.Path,
    training: Training,
    model: Qwen3Config,
    vocabulary: Vocabulary,
    mesh: Mesh,
    seed: int,
    start_from: pathlib.Path | None,
    initial: pathlib.Path | None,
    held_out: pathlib.Path,
) -> dict[str, Any]:
    """Scores the parameters that a stage started from, with the mask of the stage, and those that it ended with.

    The texts are passages of the evaluation sets. All processes call it.

    Args:
      folder: of the finished stage.
      training: the stage.
      model: the encoder of the recipe.
      vocabulary: its tokenizer.
      mesh: devices.
      seed: of the recipe.
      start_from: the folder of the stage that it started from, if any.
      initial: the imported weights, if any.
      held_out: the evaluation sets.

    Returns:
      {"texts": number of texts, RATE: {"loss": nats, "accuracy": share of the masked tokens}}, each as {"before",
      "after": means over texts, "change", "low", "high": the difference and its 95% interval}.
    """
    texts = _texts(held_out, vocabulary)
    length = min(_TOKENS, -(-max(map(len, texts), default=1) // 8) * 8)
    stage, config, devices = training.stage, training.model(model), mesh.build()
    results: dict[str, Any] = {"texts": len(texts)}
    with mesh.activate(devices):
        wanted = jax.eval_shape(lambda: initial_params(config, seed))
        share = training.initial_share
        before, _ = starting_params(
            model, config, wanted, devices, seed=seed, start_from=start_from, initial=initial, initial_share=share
        )
        of_stage = {"before": before, "after": load_params(folder)}
        for rate in RATES:
            scores = {
                when: masked_token_scores(
                    stage, config, params, texts, vocabulary.mask_id, devices, rate=rate, length=length
                )
                for when, params in of_stage.items()
            }
            results[f"{rate:g}"] = {
                name: _change(scores["before"][name], scores["after"][name]) for name in scores["before"]
            }
    return results


def _texts(held_out: pathlib.Path, vocabulary: Vocabulary) -> list[list[int]]:
    """Returns the tokens of a sample of the passages, the longest ones of twice as many."""
    data = read_sets(held_out)
    sets = [data] if isinstance(data, RetrievalSet) else data.values()
    passages = dict.fromkeys(text for one in sets for text in one.documents)
    drawn = sorted(passages, key=lambda text: draw(_SEED, "masked tokens", text))[: 2 * _TEXTS]
    tokens = sorted(vocabulary.encode_batch(drawn), key=len, reverse=True)[:_TEXTS]
    return [text for text in tokens if len(text) > 1]


def _change(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    both = ~np.isnan(before)
    change, low, high = paired_interval([(after[both], before[both])])
    means = {"before": float(before[both].mean()), "after": float(after[both].mean())}
    return {**means, "change": change, "low": low, "high": high}
