"""Does an import compute what PyTorch computes from the very files it came from?

PyTorch's side runs first and leaves its hidden states, so that the two models are never in memory together. The
folder is opened by transformers' own Qwen3, whatever class it names: no code of the folder is run. transformers
reads the configuration and the weights by itself, which checks how we read them, too.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pplx_jax.checkpoints.huggingface.config import CONFIG, Source
from pplx_jax.checkpoints.model_folder import ModelFolder
from pplx_jax.core.files import read_json
from pplx_jax.data.tokens.vocabulary import Vocabulary
from pplx_jax.export.agreement import hidden_difference, int8_equal_share
from pplx_jax.export.parity import SENTENCES, Parity
from pplx_jax.kernels.quantization import LEVELS, quantize

if TYPE_CHECKING:
    import torch

MIN_COSINE = 0.999  # of embeddings in bfloat16
LENGTHS = (1, 2, 7, 40, 200, 600, 2048)  # of the long texts, in tokens: an error of RoPE hides in short ones
_SHORT = 256  # texts up to here share a padded batch, so that the longest does not stretch all others
_ENCODER_FREE = ("model_type", "architectures", "auto_map")  # of config.json: what names a class, not a computation


@dataclasses.dataclass(frozen=True)
class SourceStates:
    """What PyTorch computed.

    Attributes:
      ids: token ids [L] of each text, none of them empty.
      hidden: by whether the mask was causal, the final hidden states [L, D] of each text in float32. A causal
        source is there in both masks: an import of one is mostly made to become bidirectional.
    """

    ids: list[np.ndarray]
    hidden: dict[bool, list[np.ndarray]]


def source_states(source: pathlib.Path, described: Source, vocabulary: Vocabulary, dtype: str) -> SourceStates:
    """Runs a Hugging Face folder in PyTorch, in float32, in padded batches of mixed lengths.

    Args:
      source: the folder.
      described: what `read_source` made of it.
      vocabulary: its tokens.
      dtype: of the import; the weights are rounded to it first, so that parity judges the conversion alone.

    Raises:
      RuntimeError: transformers finds other tensors than the encoder's.
    """
    ids = parity_ids(vocabulary, described.config.max_length)
    model = _open(source, described, dtype)
    masks = (True, False) if described.config.causal else (False,)
    return SourceStates(ids, {causal: torch_states(model, ids, causal=causal) for causal in masks})


def check_import(model: ModelFolder, states: SourceStates) -> Parity:
    """Holds an imported model against what its source computed.

    In float32 by the rules of `agreement`. A model that runs in bfloat16 is run in it as well: its embeddings'
    cosines with the source's are over `MIN_COSINE`.

    Raises:
      RuntimeError: the two are not equal; the message says in what.
    """
    import jax

    from pplx_jax.inference.embedder import Embedder

    params = jax.device_put(model.params)
    differences, shares = [], []
    with jax.default_matmul_precision("highest"):
        for causal, hidden in states.hidden.items():
            where = f"the import is not its source ({'causal' if causal else 'bidirectional'})"
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
    """Token ids of the built-in sentences and of texts of `LENGTHS` tokens, as far as the model takes them."""
    texts = [np.array(ids, np.int32) for ids in vocabulary.encode_batch(list(SENTENCES)) if 0 < len(ids) <= max_length]
    words = np.array(vocabulary.encode(" ".join(SENTENCES)), np.int32)
    lengths = sorted({min(length, max_length) for length in LENGTHS})
    return texts + [np.resize(np.roll(words, -place), length) for place, length in enumerate(lengths)]


def torch_states(model: "torch.nn.Module", ids: Sequence[np.ndarray], *, causal: bool) -> list[np.ndarray]:
    """Final hidden states [L, D] of each text from transformers' Qwen3Model, padded on the right.

    In the causal mask transformers is given the padding alone and builds the rest; in the bidirectional one it is
    given the whole of it, [B, 1, 1, L] to be added to the scores, which it passes on as it is.
    """
    import torch

    found: dict[int, np.ndarray] = {}
    for batch in _batches(ids):
        tokens, valid = _padded([ids[place] for place in batch])
        mask = torch.tensor(valid)
        if not causal:
            floor = torch.finfo(torch.float32).min
            mask = torch.zeros(mask.shape).masked_fill(~mask, floor)[:, None, None, :]
        with torch.inference_mode():
            output = model(input_ids=torch.tensor(tokens).long(), attention_mask=mask, use_cache=False)
        for place, states in zip(batch, output.last_hidden_state.numpy(), strict=True):
            found[place] = states[: len(ids[place])].copy()
    return [found[place] for place in range(len(ids))]


def jax_states(model: ModelFolder, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same from our encoder, in `model.config`'s mask and precision."""
    import jax
    import jax.numpy as jnp

    from pplx_jax.models.parameters import bind
    from pplx_jax.parallel.mesh import Mesh

    encoder = bind(model.config, jax.tree.map(jnp.asarray, model.params))
    forward = jax.jit(lambda encoder, *arrays: encoder(*arrays))
    found: dict[int, np.ndarray] = {}
    for batch in _batches(ids):
        tokens, valid = _padded([ids[place] for place in batch])
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        arrays = (jnp.asarray(array, jnp.int32) for array in (tokens, valid, positions))
        with jax.set_mesh(Mesh().build()):  # so that the kernels know what they run on
            hidden = np.asarray(forward(encoder, *arrays))
        for place, states in zip(batch, hidden, strict=True):
            found[place] = states[: len(ids[place])]
    return [found[place] for place in range(len(ids))]


def _open(source: pathlib.Path, described: Source, dtype: str) -> "torch.nn.Module":
    import torch
    from transformers import Qwen3Config, Qwen3Model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    content = {key: value for key, value in read_json(source / CONFIG).items() if key not in _ENCODER_FREE}
    if content.get("rope_theta") is None:  # it is in rope_parameters, which transformers 4 ignores
        content["rope_theta"] = described.config.rope_theta
    model, report = Qwen3Model.from_pretrained(  # type: ignore[not-iterable]
        os.fspath(source),
        config=Qwen3Config.from_dict(content),
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    strays = {kind: sorted(report[kind]) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if strays:
        raise RuntimeError(f"{source}: transformers does not find the encoder's tensors: {strays}")
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


def _padded(ids: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, L], with id 0 under padding, and which are a text's."""
    lengths = np.array([len(text) for text in ids])
    valid = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(valid.shape, np.int32)
    tokens[valid] = np.concatenate(ids)
    return tokens, valid


def _check_cosine(model: ModelFolder, states: SourceStates) -> None:
    from pplx_jax.inference.embedder import Embedder

    ours, theirs = Embedder(model).encode_tokens(states.ids), _pooled(states.hidden[model.config.causal])
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    least = float(np.min(np.sum(ours * theirs, axis=1) / lengths))
    if not least > MIN_COSINE:
        raise RuntimeError(f"the import in bfloat16 is not its source: cosines from {least:.5f}, under {MIN_COSINE}")


def _pooled(hidden: list[np.ndarray]) -> np.ndarray:
    """Means over each text's tokens [n, D]."""
    return np.stack([states.mean(axis=0, dtype=np.float64) for states in hidden])
