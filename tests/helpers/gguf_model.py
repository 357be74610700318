"""Small random models as llama.cpp stores them, with the values of every tensor decoded by the format's definition.

Blocks are random bytes, so every value of a type occurs. Sources of the block layouts: ggml's quantization structures.
"""

import json
import pathlib

import gguf
import ml_dtypes
import numpy as np

from helpers.bpe_tokenizer import write_tokenizer

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 256, 2, 4, 2, 64, 350  # rows fill blocks of 256 values
KINDS = {
    "token_embd": "Q8_0",
    "attn_q": "Q4_K",
    "attn_k": "Q6_K",
    "attn_v": "Q4_0",
    "attn_output": "Q4_1",
    "ffn_gate": "F16",
    "ffn_up": "BF16",
    "ffn_down": "Q4_K",
}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144), "Q6_K": (256, 210)}
_SCALE = 1 / 40  # standard deviation of the values: attention stays far from one token, where rounding errors grow


def write_gguf(path: pathlib.Path, architecture: str, *, rules: str = "qwen2", **metadata) -> dict[str, np.ndarray]:
    """Writes a model and returns its values by Hugging Face key.

    Args:
        path: of the file.
        architecture: "llama", "qwen2" or "qwen3".
        rules: of the tokenizer, under which name its rules are stored.
        metadata: more entries, strings or integers, with `__` for a dot after the architecture.
    """
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    tokenizer = json.loads((write_tokenizer(path.parent) / "tokenizer.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path.parent / name).unlink()
    add_tokenizer(writer, tokenizer, rules)
    values = {}
    for name, key, shape in _tensors(architecture):
        part = name.split(".")[-2]
        raw, decoded = _random(generator, KINDS.get(part, "F32") if name.endswith("weight") else "F32", shape)
        values[key] = decoded
        if architecture == "llama" and part in ("attn_q", "attn_k"):
            raw = raw[neighbours(shape[0])]
        writer.add_tensor(
            name, raw, raw_dtype=gguf.GGMLQuantizationType[KINDS.get(part, "F32")] if len(shape) > 1 else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def tokenizer_fields(tokenizer: dict, rules: str) -> dict:
    """Returns the metadata that llama.cpp stores for a tokenizer.json, padded to `VOCABULARY` tokens."""
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    places = tokenizer["model"]["vocab"] | {name: token["id"] for name, token in added.items()}
    tokens = sorted(places, key=places.__getitem__)
    types = [(3 if added[name]["special"] else 4) if name in added else 1 for name in tokens]
    padding = range(len(tokens), VOCABULARY)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules,
        "tokenizer.ggml.tokens": tokens + [f"[PAD{place}]" for place in padding],
        "tokenizer.ggml.token_type": types + [5 for _ in padding],
        "tokenizer.ggml.merges": merges,
    }


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, rules: str) -> None:
    """Adds `tokenizer_fields` to a file."""
    fields = tokenizer_fields(tokenizer, rules)
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"])
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])


def _tensors(architecture: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns (name, Hugging Face key, shape) of every tensor."""
    rows = {"attn_q": HEADS * HEAD_DIM, "attn_k": KV_HEADS * HEAD_DIM, "attn_v": KV_HEADS * HEAD_DIM}
    found = [
        ("token_embd.weight", "embed_tokens.weight", (VOCABULARY, WIDTH)),
        ("output_norm.weight", "norm.weight", (WIDTH,)),
    ]
    for layer in range(LAYERS):
        for part, key in PARTS.items():
            if part.endswith(("q_norm", "k_norm")):
                shape = (HEAD_DIM,)
            else:
                shape = (WIDTH,) if part.endswith("norm") else (rows.get(part, WIDTH), WIDTH)
            if len(shape) == 2 or shape == (WIDTH,) or architecture == "qwen3":
                found.append((f"blk.{layer}.{part}.weight", f"layers.{layer}.{key}.weight", shape))
            if part in rows and architecture == "qwen2":
                found.append((f"blk.{layer}.{part}.bias", f"layers.{layer}.{key}.bias", (rows[part],)))
    return found


def neighbours(rows: int) -> np.ndarray:
    """Returns the published row of every stored row: llama.cpp puts dimension i of a head next to i + E / 2."""
    order = [i for pair in range(HEAD_DIM // 2) for i in (pair, pair + HEAD_DIM // 2)]
    return np.concatenate([start + np.array(order) for start in range(0, rows, HEAD_DIM)])


def _random(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns stored rows and their float32 values."""
    if kind not in _BLOCKS:
        spread = generator.normal(size=shape) * (_SCALE if len(shape) > 1 else 0.3) + (len(shape) == 1)
        stored = spread.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind])
        raw = stored.view(np.uint8) if kind == "BF16" else stored
        return raw, stored.astype(np.float32)
    size, stored_bytes = _BLOCKS[kind]
    blocks = generator.integers(0, 256, (shape[0] * shape[1] // size, stored_bytes), np.uint8)
    step = {"Q8_0": 74, "Q4_0": 4.6, "Q4_1": 4.6, "Q4_K": 4.6 * 32, "Q6_K": 74 * 18}[kind]
    d = np.float16(_SCALE / step)
    if kind == "Q6_K":
        blocks[:, -2:] = np.frombuffer(d.tobytes(), np.uint8)
    else:
        blocks[:, :2] = np.frombuffer(d.tobytes(), np.uint8)
    if kind in ("Q4_1", "Q4_K"):
        least = np.float16(-7.5 * d if kind == "Q4_1" else 7.5 * d)
        blocks[:, 2:4] = np.frombuffer(least.tobytes(), np.uint8)
    values = np.stack([_decode(kind, block) for block in blocks]).reshape(shape)
    return blocks.reshape(shape[0], -1), values.astype(np.float32)


def _decode(kind: str, block: np.ndarray) -> np.ndarray:
    """Returns the values of one block, in float64."""
    low, high = block & 15, block >> 4
    if kind == "Q6_K":
        d, scales = _half(block[208:]), block[192:208].view(np.int8).astype(float)
        values = np.empty(256)
        for place in range(256):
            half, quarter, column = place // 128, place % 128 // 32, place % 32
            nibbles = low if quarter < 2 else high
            four = int(nibbles[64 * half + 32 * (quarter % 2) + column])
            two = int(block[128 + 32 * half + column] >> (2 * quarter)) & 3
            values[place] = d * scales[place // 16] * (four + 16 * two - 32)
        return values
    d = _half(block)
    if kind == "Q8_0":
        return d * block[2:].view(np.int8).astype(float)
    if kind == "Q4_0":
        return d * (np.concatenate([low[2:], high[2:]]).astype(float) - 8)
    least = _half(block[2:])
    if kind == "Q4_1":
        return d * np.concatenate([low[4:], high[4:]]).astype(float) + least
    packed, values = block[4:16].astype(int), np.empty(256)
    for part in range(8):
        if part < 4:
            scale, minimum = packed[part] & 63, packed[part + 4] & 63
        else:
            scale = (packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4
            minimum = (packed[part + 4] >> 4) | (packed[part] >> 6) << 4
        nibbles = (high if part % 2 else low)[16 + 32 * (part // 2) :][:32]
        values[32 * part : 32 * part + 32] = d * scale * nibbles - least * minimum
    return values


def _half(block: np.ndarray) -> float:
    return float(block[:2].copy().view(np.float16)[0])
