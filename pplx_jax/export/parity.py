"""Does an export compute what our model computes? Both are run, in float32, on texts of mixed lengths."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from pplx_jax.checkpoints.model_folder import ModelFolder
from pplx_jax.export.agreement import hidden_difference, int8_equal_share
from pplx_jax.kernels.quantization import LEVELS

_LENGTHS = (16, 128, 512, 2048)  # tokens of the texts made up: an error of RoPE hides in short ones
_LONG = 300  # tokens; texts over that are padded among themselves

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
      longest_text: tokens of the longest text that was compared.
    """

    max_abs_diff: float
    int8_equal_share: float
    longest_text: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """Our side of a comparison.

    Attributes:
      model: in float32, its parameters on the device.
      texts: shortest first; the longest has `longest` tokens, up to 2,048 as far as the model takes them.
      longest: see there.
    """

    model: ModelFolder
    texts: list[str]
    longest: int

    @classmethod
    def of(cls, model: ModelFolder) -> "Reference":
        """Makes up the texts; the parameters are placed once for all comparisons."""
        import jax

        config = dataclasses.replace(model.config, dtype="float32")
        model = dataclasses.replace(model, config=config, params=jax.device_put(model.params))
        limits = sorted({min(length, config.max_length) for length in _LENGTHS})
        made_up = [_text(model, limit, seed) for seed, limit in enumerate(limits)]
        lengths = {text: len(model.vocabulary.encode(text)) for text in (*SENTENCES, *made_up)}
        texts = sorted((text for text in lengths if lengths[text] <= config.max_length), key=lengths.__getitem__)
        return cls(model, texts, lengths[texts[-1]])

    def batches(self) -> list[list[str]]:
        """The texts in two batches, so that the long ones do not stretch all others."""
        long = [text for text in self.texts if len(self.model.vocabulary.encode(text)) > _LONG]
        return [batch for batch in ([text for text in self.texts if text not in long], long) if batch]

    def hidden(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Our hidden states [B, L, D] of tokens and mask [B, L]."""
        import jax
        import jax.numpy as jnp

        from pplx_jax.models.parameters import bind

        positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
        arrays = (jnp.asarray(array, jnp.int32) for array in (tokens, mask, positions))
        with jax.default_matmul_precision("highest"):
            return np.asarray(bind(self.model.config, self.model.params)(*arrays))

    def documents(self) -> list[list[str]]:
        """Documents of one to several chunks, empty chunks first, amid and last, and as long as the model takes."""
        several, room = [], self.model.config.max_length
        for text in self.texts[1:]:
            room -= len(self.model.vocabulary.encode(text)) + 1
            if room < 0:
                break
            several.append(text)
        empty = ["", *(chunk for text in several[:2] for chunk in (text, ""))]
        return [self.texts[-1:], several, *([empty] if len(several) > 1 else [])]


def check_parity(folder: pathlib.Path, model: ModelFolder) -> Parity:
    """Opens the export as a user would and compares it with `model`.

    Tokens must be the same; hidden states of padded batches, int8 embeddings of `SentenceTransformer` and those of
    the context model's `encode` must agree with ours by the rules of `agreement`.

    Args:
      folder: the export.
      model: ours, with the parameters as exported (rounded, where the export is bfloat16).

    Raises:
      RuntimeError: the export is not equal; the message says in what.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Placed once, and PyTorch's model opened once: three copies of the parameters in all.
    reference = Reference.of(model)
    pipeline = SentenceTransformer(
        os.fspath(folder), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32}
    ).eval()
    differences = [_hidden_difference(pipeline, reference, texts, folder) for texts in reference.batches()]
    return Parity(max(differences), _int8_equal_share(pipeline, reference, folder), reference.longest)


def _text(model: ModelFolder, tokens: int, seed: int) -> str:
    """Words in random order, as many as make up to so many tokens."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    chosen = np.random.default_rng(seed).choice(words, tokens)
    fits, over = 0, tokens + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        enough = len(model.vocabulary.encode(" ".join(chosen[:middle]))) <= tokens
        fits, over = (middle, over) if enough else (fits, middle)
    return " ".join(chosen[:fits])


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


def _int8_equal_share(pipeline: Any, reference: Reference, folder: pathlib.Path) -> float:
    import jax

    from pplx_jax.inference.embedder import Embedder

    embedder = Embedder(reference.model)
    found = [pipeline.encode(reference.texts, batch_size=8, show_progress_bar=False)]
    with jax.default_matmul_precision("highest"):
        expected = [embedder.encode(reference.texts, quantization="tanh")]
        if reference.model.kind == "context_v1":
            documents = reference.documents()
            found += pipeline[0].auto_model.encode(documents)
            expected += embedder.encode_documents(documents, quantization="tanh")
    return int8_equal_share(np.concatenate(found), LEVELS * np.concatenate(expected), folder)
