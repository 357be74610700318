"""Parity of an import: checks that the imported model computes the same as PyTorch with the original files.

PyTorch runs first and its hidden states are stored, so that both models are never in memory together. The folder is
opened with transformers' own class of its family, whatever class it names, so no code of the folder is run.
transformers reads the configuration and the weights itself, which also checks how we read them.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pplx_jax.checkpoints.huggingface.config import CONFIG, Source
from pplx_jax.checkpoints.huggingface.families import family_of
from pplx_jax.checkpoints.huggingface.gguf_file import SUFFIX
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.core.files import read_json
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.export.export_parity import SENTENCES, Parity, encoder_states, padded
from pplx_jax.export.tolerances import hidden_difference, int8_equal_share
from pplx_jax.kernels.quantization import LEVELS, quantize

if TYPE_CHECKING:
    import torch

MIN_COSINE = 0.999  # of embeddings in bfloat16
LENGTHS = (1, 2, 7, 40, 200, 600, 2048)  # of the generated texts, in tokens; short texts do not reveal RoPE errors
_SHORT = 256  # texts up to this length share a batch, so that long texts do not pad all others
_CLASS_KEYS = ("model_type", "architectures", "auto_map")  # keys of config.json that only name classes


@dataclasses.dataclass(frozen=True)
class SourceStates:
    """Hidden states from PyTorch.

    Attributes:
      ids: token ids [L] of each text. No text is empty.
      hidden: whether the mask is causal -> final hidden states [L, D] of each text in float32. A causal source has both
        masks, because most imports become bidirectional.
    """

    ids: list[np.ndarray]
    hidden: dict[bool, list[np.ndarray]]


def source_states(source: pathlib.Path, described: Source, vocabulary: Vocabulary, dtype: str) -> SourceStates:
    """Runs a Hugging Face folder or a GGUF file in PyTorch, in float32, in padded batches of mixed lengths.

    Args:
      source: the folder or file.
      described: the model as imported; PyTorch's model is cut to its number of layers.
      vocabulary: of the folder.
      dtype: of the import. The weights are rounded to it first, so that parity checks only the conversion.

    Raises:
      RuntimeError: transformers does not find all tensors of the encoder.
    """
    ids = parity_ids(vocabulary, described.config.max_length)
    model = _open(source, described, dtype)
    masks = (True, False) if described.config.causal else (False,)
    return SourceStates(ids, {causal: torch_states(model, ids, causal=causal) for causal in masks})


def check_import(model: LoadedModel, states: SourceStates) -> Parity:
    """Compares an imported model with its source.

    In float32 with the tolerances of `tolerances`. A bfloat16 model is also run in bfloat16: the cosines between its
    embeddings and the source's must exceed `MIN_COSINE`.

    Raises:
      RuntimeError: the two differ; the message names the difference.
    """
    import jax

    from pplx_jax.inference.embedder import Embedder

    params = jax.device_put(model.params)
    differences, shares = [], []
    with jax.default_matmul_precision("highest"):
        for causal, hidden in states.hidden.items():
            where = f"the import differs from its source ({'causal' if causal else 'bidirectional'})"
            config = dataclasses.replace(model.config, dtype="float32", causal=causal)
            exact = dataclasses.replace(model, config=config, params=params)
            ours = jax_states(exact, states.ids)
            differences.append(hidden_difference(np.concatenate(ours), np.concatenate(hidden), where))
            integers = quantize(Embedder(exact).encode_tokens(states.ids), "int8")
            shares.append(int8_equal_share(integers, LEVELS * np.tanh(_pooled(hidden)), where))
    if model.config.dtype == "bfloat16":
        _check_cosine(dataclasses.replace(model, params=params), states)
    return Parity(max(differences), min(shares), max(map(len, states.ids)))


def parity_ids(vocabulary: Vocabulary, max_length: int) -> list[np.ndarray]:
    """Returns token ids of the built-in sentences and of texts of `LENGTHS` tokens, up to the model's limit."""
    texts = [np.array(ids, np.int32) for ids in vocabulary.encode_batch(list(SENTENCES)) if 0 < len(ids) <= max_length]
    words = np.array(vocabulary.encode(" ".join(SENTENCES)), np.int32)
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    return texts + [np.resize(np.roll(words, -place), length) for place, length in enumerate(lengths)]


def torch_states(model: "torch.nn.Module", ids: Sequence[np.ndarray], *, causal: bool) -> list[np.ndarray]:
    """Returns the final hidden states [L, D] of each text from transformers' model, padded on the right.

    For the causal mask, transformers gets only the padding mask. For the bidirectional mask, it gets the full bias
    [B, 1, 1, L] that is added to the scores, and uses it unchanged.
    """
    import torch

    found: dict[int, np.ndarray] = {}
    for batch in _batches(ids):
        tokens, valid = padded([ids[place] for place in batch])
        mask = torch.tensor(valid)
        if not causal:
            floor = torch.finfo(torch.float32).min
            mask = torch.zeros(mask.shape).masked_fill(~mask, floor)[:, None, None, :]
        with torch.inference_mode():
            output = model(input_ids=torch.tensor(tokens), attention_mask=mask, use_cache=False)
        for place, states in zip(batch, output.last_hidden_state.numpy(), strict=True):
            found[place] = states[: len(ids[place])].copy()
    return [found[place] for place in range(len(ids))]


def jax_states(model: LoadedModel, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the same from our encoder, with the mask and dtype of `model.config`."""
    found: dict[int, np.ndarray] = {}
    for batch in _batches(ids):
        hidden = encoder_states(model, *padded([ids[place] for place in batch]))
        for place, states in zip(batch, hidden, strict=True):
            found[place] = states[: len(ids[place])]
    return [found[place] for place in range(len(ids))]


def _open(source: pathlib.Path, described: Source, dtype: str) -> "torch.nn.Module":
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    title = family_of(described.config).title
    transformers_logging.disable_progress_bar()
    if source.suffix == SUFFIX:
        place = {"gguf_file": source.name, "local_files_only": True}
        config = getattr(transformers, f"{title}Config").from_pretrained(os.fspath(source.parent), **place)
        config.head_dim = described.config.head_dim  # transformers does not read it from GGUF files of every family
        # Names of tensors in GGUF files are mapped to the model with a head.
        model, report = getattr(transformers, f"{title}ForCausalLM").from_pretrained(
            os.fspath(source.parent),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **place,
        )
        model = model.model
    else:
        content = {key: value for key, value in read_json(source / CONFIG).items() if key not in _CLASS_KEYS}
        if content.get("rope_theta") is None:  # transformers 4 ignores rope_parameters
            content["rope_theta"] = described.config.rope_theta
        model, report = getattr(transformers, f"{title}Model").from_pretrained(
            os.fspath(source),
            config=getattr(transformers, f"{title}Config").from_dict(content),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    model.layers = model.layers[: described.config.layers]
    problems = {kind: sorted(report[kind]) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if problems:
        raise RuntimeError(f"{source}: transformers does not find the encoder's tensors: {problems}")
    if dtype != "float32":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(getattr(torch, dtype)))
    return model.eval()


def _batches(ids: Sequence[np.ndarray]) -> list[list[int]]:
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    short = [place for place in order if len(ids[place]) <= _SHORT]
    long = [place for place in order if len(ids[place]) > _SHORT]
    return [batch for batch in (short, long) if batch]


def _check_cosine(model: LoadedModel, states: SourceStates) -> None:
    from pplx_jax.inference.embedder import Embedder

    ours, theirs = Embedder(model).encode_tokens(states.ids), _pooled(states.hidden[model.config.causal])
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    least = float(np.min(np.sum(ours * theirs, axis=1) / lengths))
    if not least > MIN_COSINE:
        raise RuntimeError(
            f"the import in bfloat16 differs from its source: the smallest cosine is {least:.5f}, below {MIN_COSINE}"
        )


def _pooled(hidden: list[np.ndarray]) -> np.ndarray:
    """Returns the mean over each text's tokens [n, D]."""
    return np.stack([states.mean(axis=0, dtype=np.float64) for states in hidden])
