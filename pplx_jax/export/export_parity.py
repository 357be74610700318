"""Parity of an export: checks that it computes the same as our model, in float32, on texts of mixed lengths."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.export.fuzz_texts import fuzz_texts
from pplx_jax.export.tolerances import hidden_difference, int8_equal_share
from pplx_jax.kernels.quantization import LEVELS

_LENGTHS = (16, 128, 512, 2048)  # of the generated texts, in tokens; short texts do not reveal RoPE errors
_LONG = 300  # tokens; longer texts have a separate batch
_PROMPTED = 5  # texts that are compared with each prompt
_FUZZED = 3000  # random texts whose tokens are compared

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
    """The result of a comparison.

    Attributes:
      max_abs_diff: largest difference of hidden states over all texts.
      int8_equal_share: share of equal int8 values of all embeddings.
      longest_text: tokens of the longest compared text.
    """

    max_abs_diff: float
    int8_equal_share: float
    longest_text: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """Our model and the texts of a comparison.

    Attributes:
      model: in float32, with its parameters on the device.
      texts: shortest first.
      longest: tokens of the longest text: 2048, or the model's limit.
    """

    model: LoadedModel
    texts: list[str]
    longest: int

    @classmethod
    def of(cls, model: LoadedModel) -> "Reference":
        """Generates the texts and moves the parameters to the device, once for all comparisons."""
        import jax

        config = dataclasses.replace(model.config, dtype="float32")
        model = dataclasses.replace(model, config=config, params=jax.device_put(model.params))
        limits = sorted({min(length, config.max_length) for length in _LENGTHS})
        generated = [_text(model, limit, seed) for seed, limit in enumerate(limits)]
        lengths = {text: len(model.vocabulary.encode(text)) for text in (*SENTENCES, *generated)}
        texts = sorted((text for text in lengths if lengths[text] <= config.max_length), key=lengths.__getitem__)
        return cls(model, texts, lengths[texts[-1]])

    def batches(self) -> list[list[str]]:
        """Returns the texts in two batches, so that long texts do not pad all others."""
        long = [text for text in self.texts if len(self.model.vocabulary.encode(text)) > _LONG]
        return [batch for batch in ([text for text in self.texts if text not in long], long) if batch]

    def hidden(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns our hidden states [B, L, D] for tokens and mask [B, L]."""
        import jax

        with jax.default_matmul_precision("highest"):
            return encoder_states(self.model, tokens, mask)

    def documents(self) -> list[list[str]]:
        """Returns documents with one or more chunks, up to the model's limit, and one with empty chunks."""
        several, free = [], self.model.config.max_length
        for text in self.texts[1:]:
            free -= len(self.model.vocabulary.encode(text)) + 1
            if free < 0:
                break
            several.append(text)
        empty = ["", *(chunk for text in several[:2] for chunk in (text, ""))]
        return [self.texts[-1:], several, *([empty] if len(several) > 1 else [])]


def check_parity(folder: pathlib.Path, model: LoadedModel, dims: int | None = None) -> Parity:
    """Opens the export like a user and compares it with `model`.

    Tokens must be equal, also of `_FUZZED` random texts. Hidden states of padded batches, and int8 embeddings of
    `SentenceTransformer` and of the context model's `encode`, must agree within the tolerances of `tolerances`; so must
    those with each of the model's prompts.

    Args:
      folder: the export.
      model: our model with the exported parameters (rounded, if the export is bfloat16).
      dims: of the embeddings of the export; None for all.

    Raises:
      RuntimeError: the export differs; the message names the difference.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Parameters are placed once and PyTorch's model is opened once: three copies of the parameters in total.
    reference = Reference.of(model)
    pipeline = SentenceTransformer(
        os.fspath(folder), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32}
    ).eval()
    _require_same_tokens(pipeline.tokenizer, model.vocabulary, folder)
    differences = [_hidden_difference(pipeline, reference, texts, folder) for texts in reference.batches()]
    share = _int8_equal_share(pipeline, reference, folder, dims)
    if model.prompts:
        share = min(share, _prompted_share(pipeline, reference, folder, dims))
    return Parity(max(differences), share, reference.longest)


def encoder_states(model: LoadedModel, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the final hidden states [B, L, D] of our encoder for tokens and mask [B, L], padded on the right."""
    import jax
    import jax.numpy as jnp

    from pplx_jax.models.parameters import bind
    from pplx_jax.parallel.mesh import Mesh

    positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    arrays = (jnp.asarray(array, jnp.int32) for array in (tokens, mask, positions))
    encoder = bind(model.config, jax.tree.map(jnp.asarray, model.params))
    with jax.set_mesh(Mesh().build()):  # the kernels look up their platform in the mesh
        return np.asarray(_forward()(encoder, *arrays))


@functools.cache
def _forward():
    import jax

    return jax.jit(lambda encoder, *arrays: encoder(*arrays))  # one function, so that equal shapes compile once


def padded(texts: Sequence[Sequence[int] | np.ndarray], pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids int64 and mask bool, both [B, L], padded on the right."""
    lengths = np.array([len(text) for text in texts])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, np.int64)
    tokens[mask] = np.concatenate(texts).astype(np.int64)
    return tokens, mask


def _text(model: LoadedModel, tokens: int, seed: int) -> str:
    """Returns words in random order, as many as fit into `tokens` tokens."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    chosen = np.random.default_rng(seed).choice(words, tokens)
    fits, over = 0, tokens + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        enough = len(model.vocabulary.encode(" ".join(chosen[:middle]))) <= tokens
        fits, over = (middle, over) if enough else (fits, middle)
    return " ".join(chosen[:fits])


def _require_same_tokens(tokenizer: Any, vocabulary: Vocabulary, folder: pathlib.Path) -> None:
    texts = fuzz_texts(_FUZZED)
    found = tokenizer(texts, verbose=False)["input_ids"]
    for text, ids, expected in zip(texts, found, vocabulary.encode_batch(texts), strict=True):
        # Rounding decides between spellings with the same pieces in another order; see `export.tokenizer`.
        if list(ids) != list(expected) and sorted(ids) != sorted(expected):
            raise RuntimeError(f"{folder}: tokens of {text!r} are {list(ids)}, not {list(expected)}")


def _hidden_difference(pipeline: Any, reference: Reference, texts: list[str], folder: pathlib.Path) -> float:
    import torch

    batch = pipeline.tokenizer(texts, padding=True, return_tensors="pt")
    tokens, mask = batch["input_ids"].numpy(), batch["attention_mask"].bool().numpy()
    for text, row, valid in zip(texts, tokens, mask, strict=True):
        if (expected := reference.model.vocabulary.encode(text)) != row[valid].tolist():
            raise RuntimeError(f"{folder}: tokens of {text[:60]!r} are {row[valid].tolist()}, not {expected}")
    with torch.inference_mode():
        hidden = pipeline[0].auto_model(**batch).last_hidden_state.numpy()
    return hidden_difference(hidden[mask], reference.hidden(tokens, mask)[mask], folder)


def _int8_equal_share(pipeline: Any, reference: Reference, folder: pathlib.Path, dims: int | None) -> float:
    import jax

    from pplx_jax.inference.embedder import Embedder

    embedder = Embedder(reference.model)
    found = [pipeline.encode(reference.texts, batch_size=8, show_progress_bar=False, quantization="int8")]
    with jax.default_matmul_precision("highest"):
        expected = [embedder.encode(reference.texts, quantization="tanh", dims=dims)]
        if reference.model.kind == "context_v1":
            documents = reference.documents()
            found += pipeline[0].auto_model.encode(documents)
            expected += embedder.encode_documents(documents, prompt="", quantization="tanh", dims=dims)
    return int8_equal_share(np.concatenate(found), LEVELS * np.concatenate(expected), folder)


def _prompted_share(pipeline: Any, reference: Reference, folder: pathlib.Path, dims: int | None) -> float:
    """Returns the share of equal int8 values of short texts with each prompt of the model."""
    import jax

    from pplx_jax.inference.embedder import Embedder

    embedder = Embedder(reference.model)
    texts = [text for text in reference.texts if text.strip()][:_PROMPTED]
    documents = [texts[:2], texts[2:]]
    found, expected = [], []
    with jax.default_matmul_precision("highest"):
        for name in reference.model.prompts:
            found.append(pipeline.encode(texts, prompt_name=name, show_progress_bar=False, quantization="int8"))
            expected.append(embedder.encode(texts, prompt_name=name, quantization="tanh", dims=dims))
            if reference.model.kind == "context_v1":
                found += pipeline[0].auto_model.encode(documents, prompt_name=name)
                expected += embedder.encode_documents(documents, prompt_name=name, quantization="tanh", dims=dims)
    return int8_equal_share(np.concatenate(found), LEVELS * np.concatenate(expected), folder)
