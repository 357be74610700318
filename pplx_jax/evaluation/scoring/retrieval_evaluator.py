"""Retrieval scores of a model while it trains, from its parameters where they are."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.data.io.beir import RetrievalSet, read_beir, set_folders
from pplx_jax.data.io.set_samples import around_queries
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.evaluation.scoring.retrieval_sets import REPORTED_METRICS, evaluate_set
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.training.settings import Evaluation
from pplx_jax.training.train_state import model_params

_SEED = 0  # of the samples of sets, whatever the seed of the run: runs of several seeds are compared on the same ones
_MEAN, _CONTEXT = "mean", "with_context"


class _InTraining(LoadedModel):
    """A model whose parameters are still in training, spread over the devices."""

    @property
    def fingerprint(self) -> str:
        """Not a digest, for which all parameters would be copied to the host."""
        return "in training"


class RetrievalEvaluator:
    """The `training.evaluators.Evaluator` of retrieval: nDCG@10 and recall@100 of INT8 vectors, set by set.

    Texts over the model's limit are cut. All processes call it together. The devices along the axes of "rows" encode
    different texts, and the parameters keep their shardings.

    Args:
        sets: name -> set.
        config: the encoder of the stage.
        vocabulary: its tokenizer.
        devices: the mesh of the parameters.
        prompts: of the model.
        contextual: whether passages are also encoded in their documents.
        **size: `chunks_per_document`, `tokens_per_document` of `embed_set`.

    Attributes:
        metrics: names of the metrics.
    """

    def __init__(
        self,
        sets: Mapping[str, RetrievalSet],
        config: Qwen3Config,
        vocabulary: Vocabulary,
        devices: jax.sharding.Mesh,
        *,
        contextual: bool = False,
        prompts: Mapping[str, str] | None = None,
        **size: Any,
    ):
        self._sets, self._config, self._vocabulary, self._devices = sets, config, vocabulary, devices
        self._ways = {"": False, f"{_CONTEXT}/": True} if contextual else {"": False}
        self._size, self._prompts = size, prompts or {}
        self.metrics = tuple(
            f"eval/{name}/{way}{metric}" for name in (*sets, _MEAN) for way in self._ways for metric in REPORTED_METRICS
        )

    def __call__(self, params: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics of each set and their means. Collective."""
        model = _InTraining(self._config, self._vocabulary, model_params(params), "v1", "", self._prompts)
        encoder = CachingEncoder(Embedder(model, mesh=self._devices))
        scores: dict[str, float] = {}
        for name, data in self._sets.items():
            alone = evaluate_set(encoder, data, ("int8",), overflow="truncate")["int8"]
            for way, in_context in self._ways.items():
                found = alone
                if in_context and data.has_context:
                    found = evaluate_set(encoder, data, ("int8",), context=True, overflow="truncate", **self._size)[
                        "int8"
                    ]
                scores |= {f"eval/{name}/{way}{metric}": value for metric, value in found.items()}
            encoder.drop_unused()
        means = {name: self._mean(scores, name) for name in self.metrics if name not in scores}
        return {name: {**scores, **means}[name] for name in self.metrics}

    def _mean(self, scores: Mapping[str, float], name: str) -> float:
        what = name.removeprefix(f"eval/{_MEAN}/")
        return float(np.mean([scores[f"eval/{of}/{what}"] for of in self._sets]))


def read_evaluation_sets(settings: Evaluation, default: pathlib.Path) -> dict[str, RetrievalSet]:
    """Reads the sets of an evaluation, cut to its sizes, by the names of their folders.

    Args:
        settings: the settings.
        default: what to read if they name no sets.

    Raises:
        BadInput: a set cannot be read, or two have the same name.
    """
    return {
        name: around_queries(read_beir(path), settings.queries, settings.documents, _SEED)
        for name, path in evaluation_folders(settings, default).items()
    }


def evaluation_folders(settings: Evaluation, default: pathlib.Path | None = None) -> dict[str, pathlib.Path]:
    """Returns the folders of the sets of an evaluation by name; see `read_evaluation_sets`. Without `default`, returns
    none if the settings name none."""
    found: dict[str, pathlib.Path] = {}
    for folder in filter(None, (default,) if settings.sets is None else settings.sets):
        read = local_copy(as_path(folder))
        if not read.is_dir():
            fix = "set Evaluation.sets to BEIR folders or to folders of them, or to () for none"
            raise BadInput(f"no evaluation sets in {folder}: the folder does not exist; {fix}")
        for path in set_folders(read):
            name = path.resolve().name
            if name in (*found, _MEAN, "loss"):
                raise BadInput(f"Evaluation.sets: {path} is called {name} like other metrics; rename the folder")
            found[name] = path
    return found
