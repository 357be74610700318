"""The initial model of a recipe without pretrained weights: token embeddings weighted by their rarity in the text."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.models.parameters import initial_params
from pplx_jax.models.term_weights import TermWeights, weighted
from pplx_jax.models.transformer import Qwen3Config

NAME = "initial"
_TEXTS = ("tokens", "query", "document")


def start_folder(workdir: pathlib.Path, term_weights: TermWeights | None, initial: str | None) -> str | None:
    """Returns the folder of the first model: `initial`, or that of `write_weighted_start`; None for random weights.

    Raises:
      BadInput: both are set.
    """
    if term_weights is None:
        return initial
    if initial:
        raise BadInput("run.term_weights is for a model with random weights, but run.initial is set; bind one")
    return str(workdir / NAME)


def token_counts(tables: Iterable[TokenTable], size: int) -> np.ndarray:
    """Counts each of `size` tokens in the texts, queries and documents of the tables: int64 [V]."""
    counts = np.zeros(size, np.int64)
    for table in tables:
        for values in (table[name].values for name in _TEXTS if name in table):
            for start in range(0, len(values), 1 << 24):
                counts += np.bincount(values[start : start + (1 << 24)], minlength=size)
    return counts


def write_weighted_start(
    workdir: pathlib.Path,
    config: Qwen3Config,
    vocabulary: Vocabulary,
    tables: Iterable[TokenTable],
    term_weights: TermWeights,
    seed: int,
    prompts: Mapping[str, str],
) -> dict[str, Any]:
    """Writes the model folder WORKDIR/initial: random weights of the seed, `weighted` by token counts of the tables.

    Returns:
      `tokens`, the number of counted tokens, and `unseen`, the number of vocabulary entries that do not occur.
    """
    counts = token_counts(tables, config.vocab_size)
    params = weighted(jax.device_get(initial_params(config, seed)), term_weights.of(counts))
    save_model(workdir / NAME, config, vocabulary, params, stage=NAME, prompts=prompts)
    return {"tokens": int(counts.sum()), "unseen": int((counts == 0).sum())}
