"""SmolLM2's published weights: the import computes its logits, makes its tokens, and is exported bidirectional."""

import dataclasses
import itertools

import gguf
import numpy as np
import pytest
import regex
import torch
from helpers.exported import load
from helpers.gguf_model import PARTS, neighbours
from helpers.smollm2 import smollm2
from transformers import LlamaConfig, LlamaForCausalLM

from pplx_jax.checkpoints.huggingface.reader import ImportPlan
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.export.export_hf import export_hf
from pplx_jax.export.import_parity import jax_states, torch_states

pytestmark = pytest.mark.long

LAYERS = 2
TEXTS = [
    "The capital of France is",
    "def read_file(path):\n    with open(path) as stream:\n        return [line.rstrip() for line in stream]\n" * 8,
    "x",
]
TOKEN_TEXTS = [
    *TEXTS,
    "Numbers 7 42 1234567890 3.14159 1,000 \u0664\u0665 x\u00b2 0x1F",
    "  two   spaces\t\ttabs \n\n\n lines \r\n and \u00a0 others\u3000. ",
    "don't we'll I'M you're HTTPServer snake_case __init__ a<b>=c!=d **kwargs",
    "Caf\u00e9, de\u0301ja\u0300, \ufb01, \u5317\u4eac, \u041c\u0438\u0440, \U0001f44d\U0001f3fd",
    "<|endoftext|>",
]
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def model():
    return ImportPlan.of(smollm2(), "float32").load()


@pytest.fixture(scope="module")
def file():
    return gguf.GGUFReader(smollm2())


@pytest.fixture(scope="module")
def theirs(file):
    """transformers' model with the published sizes. Its own reader of GGUF files takes a minute for this one."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
    config = LlamaConfig(**sizes, **heads, **rope, rms_norm_eps=1e-5, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).float().eval()
    names = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    state = {}
    for tensor in file.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        name = names.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"layers.{layer}.{PARTS[part]}.weight"
            if part in ("attn_q", "attn_k"):
                stored, values = values, np.empty_like(values)
                values[neighbours(len(stored))] = stored
        state[name] = torch.tensor(values)
    model.model.load_state_dict(state)
    return model


def test_causal_logits_are_transformers(model, theirs):
    ids = [np.array(model.vocabulary.encode(text), np.int32) for text in TEXTS]
    table, found = model.params["embed"]["embedding"], jax_states(model, ids)
    for text, states in zip(ids, found, strict=True):
        with torch.inference_mode():
            expected = theirs(torch.tensor(text[None])).logits[0].numpy()
        logits = states @ table.T
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.sqrt(np.mean(expected**2)))
        if text is ids[0]:
            assert model.vocabulary.decode([int(logits[-1].argmax())]) == " Paris"
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, rope_theta=10_000.0))
    assert np.abs(jax_states(other, ids[:1])[0] - found[0]).max() > 1e-2


def test_the_first_layers_export_bidirectional(model, theirs, tmp_path):
    cut = ImportPlan.of(smollm2(), "float32", layers=LAYERS).load()
    config = dataclasses.replace(cut.config, max_length=512)  # of the texts of the export's parity
    save_model(tmp_path / "model", config, cut.vocabulary, cut.params, stage="imported")
    report = export_hf(tmp_path / "model", tmp_path / "export")
    assert report["parity"]["max_abs_diff"] <= 1e-3  # within 1e-4 of the states' root mean square
    ids = [np.array(cut.vocabulary.encode(text), np.int32) for text in TEXTS]
    encoder = theirs.model
    whole, encoder.layers = encoder.layers, encoder.layers[:LAYERS]
    try:
        expected, causal = (torch_states(encoder, ids, causal=causal) for causal in (False, True))
    finally:
        encoder.layers = whole
    opened = load(tmp_path / "export")
    for text, right, other in zip(ids, expected, causal, strict=True):
        with torch.inference_mode():
            found = opened(torch.tensor(text[None])).last_hidden_state[0].numpy()
        size = np.sqrt(np.mean(right**2))
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-4 * max(1.0, size))
        assert len(text) == 1 or np.abs(other - right).max() > 0.05 * size


def _reference_ids(text: str, ranks: dict[tuple[str, str], int], places: dict[str, int], letters: dict[int, str]):
    """Byte-level BPE: numerals alone, then GPT-2's words, then the merge of least rank, again and again."""
    parts = [part for part in regex.split(r"(\p{N})", text) if part]
    for word in itertools.chain.from_iterable(WORDS.findall(part) for part in parts):
        pieces = [letters[byte] for byte in word.encode()]
        while len(pieces) > 1:
            rank, place = min((ranks.get(pair, 1 << 30), at) for at, pair in enumerate(itertools.pairwise(pieces)))
            if rank == 1 << 30:
                break
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
        yield from (places[piece] for piece in pieces if piece in places)


def test_tokens_are_those_of_the_merges_in_the_file(model, file):
    fields = {name: field.contents() for name, field in file.fields.items()}
    places = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    # GPT-2's letters: printable bytes stand for themselves, the others follow from 256.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + at) for at, byte in enumerate(byte for byte in range(256) if byte not in plain)}
    for text in TOKEN_TEXTS:
        assert model.vocabulary.encode(text) == list(_reference_ids(text, ranks, places, letters)), text
        if text.isascii():
            assert model.vocabulary.decode(model.vocabulary.encode(text)) == text
    digits = model.vocabulary.encode("1234567890")
    assert len(digits) == 10 and len(model.vocabulary.encode("<|endoftext|>")) > 1
