"""Does an export compute what our model computes? Both are run, in float32, on texts of mixed lengths."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from pplx_jax.model_folder import ModelFolder
from pplx_jax.models.quantization import LEVELS

MAX_ABS_DIFF = 1e-4
EDGE = 1e-3  # of a level: values this near to where rounding changes may fall to either side
_WORDS = (5, 40, 150, 600)  # of the longer texts: an error of RoPE hides in short ones
_MOST_TOKENS = 1200

SENTENCES = (
    "",
    "x",
    "How do I read a file line by line?",
    "def read_file(path):\n    with open(path) as stream:\n        return [line.rstrip() for line in stream]",
    "Names of control tokens are text: <mask>, <sep>, <pad>, <unk>, <0x41>.",
    "  White\tspace \n\n and camelCase, snake_case, HTTPServer  ",
    "Caf\u00e9, de\u0301ja\u0300, \u01c6, \ufb01, \u5317\u4eac, \u041c\u0438\u0440, \U0001f44d\U0001f3fd",
)


@dataclasses.dataclass(frozen=True)
class Parity:
    """What was measured.

    Attributes:
      max_abs_diff: largest difference of a hidden state, over all texts.
      int8_equal_share: share of the int8 values of all embeddings that are equal.
    """

    max_abs_diff: float
    int8_equal_share: float


def check_parity(folder: pathlib.Path, model: ModelFolder) -> Parity:
    """Opens the export as a user would and compares it with `model`.

    Tokens must be the same; hidden states of padded batches within `MAX_ABS_DIFF`; int8 embeddings of
    `SentenceTransformer` (and of the context model's `encode`) equal to `Embedder`'s, save near a rounding
    edge.

    Args:
      folder: the export.
      model: ours, with the parameters as exported (rounded, where the export is bfloat16).

    Raises:
      RuntimeError: the export is not equal; the message says in what.
    """
    import jax
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Placed once, and PyTorch's model opened once: three copies of the parameters in all.
    config = dataclasses.replace(model.config, dtype="float32")
    model = dataclasses.replace(model, config=config, params=jax.device_put(model.params))
    pipeline = SentenceTransformer(
        os.fspath(folder), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32}
    ).eval()
    texts = _texts(model)
    with jax.default_matmul_precision("highest"):
        # Two padded batches, so that the longest texts do not stretch all others.
        batches = [batch for batch in (texts[:-3], texts[-3:]) if batch]
        difference = float(np.max([_hidden_difference(pipeline, model, batch, folder) for batch in batches]))
        if not difference <= MAX_ABS_DIFF:  # NaN fails too
            raise RuntimeError(f"{folder}: hidden states differ by {difference:.3g}, over {MAX_ABS_DIFF}")
        return Parity(difference, _int8_equal_share(pipeline, model, texts, folder))


def _texts(model: ModelFolder) -> list[str]:
    """The built-in texts that the model takes, shortest first."""
    words = " ".join(SENTENCES).split()
    long = (" ".join((words * (count // len(words) + 1))[:count]) for count in _WORDS)
    lengths = {text: len(model.vocabulary.encode(text)) for text in (*SENTENCES, *long)}
    limit = min(model.config.max_length, _MOST_TOKENS)
    return sorted((text for text in lengths if lengths[text] <= limit), key=lengths.__getitem__)


def _hidden_difference(pipeline: Any, model: ModelFolder, texts: list[str], folder: pathlib.Path) -> float:
    import jax.numpy as jnp
    import torch

    from pplx_jax.train_state import bind

    batch = pipeline.tokenizer(texts, padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"].numpy(), batch["attention_mask"].bool().numpy()
    for text, row, valid in zip(texts, tokens, mask, strict=True):
        if (expected := model.vocabulary.encode(text)) != row[valid].tolist():
            raise RuntimeError(f"{folder}: tokens of {text[:60]!r} are {row[valid].tolist()}, not {expected}")
    with torch.inference_mode():
        hidden = pipeline[0].auto_model(**batch).last_hidden_state.numpy()
    positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    arrays = (jnp.asarray(array, jnp.int32) for array in (tokens, mask, positions))
    ours = np.asarray(bind(model.config, model.params)(*arrays))
    return float(np.abs(ours - hidden)[mask].max(initial=0.0))


def _int8_equal_share(pipeline: Any, model: ModelFolder, texts: list[str], folder: pathlib.Path) -> float:
    from pplx_jax.models.embedder import Embedder

    embedder = Embedder(model)
    found = [pipeline.encode(texts, batch_size=8, show_progress_bar=False)]
    expected = [embedder.encode(texts, quantization="tanh")]
    if model.kind == "context_v1":
        documents = [document for document in _documents(texts) if _fits(document, model)]
        found += pipeline[0].auto_model.encode(documents)
        expected += embedder.encode_documents(documents, quantization="tanh")
    integers, scaled = np.concatenate(found), LEVELS * np.concatenate(expected)
    equal = integers == np.round(scaled)
    to_edge = np.abs(scaled - np.floor(scaled) - 0.5)
    if integers.dtype != np.int8 or not np.all(equal | (to_edge < EDGE)):
        raise RuntimeError(
            f"{folder}: {np.count_nonzero(~equal)} of {equal.size} int8 values ({integers.dtype}) differ, "
            "not all of them at a rounding edge"
        )
    return float(equal.mean())


def _documents(texts: list[str]) -> list[list[str]]:
    """Documents of one to several chunks, empty chunks first, amid and last."""
    return [texts[-1:], [texts[0], texts[1], texts[0], texts[2], texts[0]], texts[1:5], texts[2:-1]]


def _fits(document: list[str], model: ModelFolder) -> bool:
    lengths = [len(model.vocabulary.encode(chunk)) for chunk in document]
    return sum(lengths) + len(lengths) - 1 <= model.config.max_length
