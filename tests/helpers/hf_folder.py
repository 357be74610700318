"""Small random models in folders like those of their publishers."""

import json
import os
import pathlib

import numpy as np

from helpers.bpe_tokenizer import write_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not width / heads
    "vocab_size": 350,
    "max_position_embeddings": 4096,
}


def write_source(
    folder: pathlib.Path,
    *,
    dtype: str = "float32",
    prefix: bool = True,
    tied: bool = True,
    sharded: bool = False,
    bidirectional: bool = False,
    theta: float = 50_000.0,
    family: str = "Qwen3",
    **sizes,
) -> pathlib.Path:
    """Writes weights, config.json and a tokenizer; returns the folder.

    Args:
        folder: made where missing.
        dtype: of the weights.
        prefix: save the causal model, whose keys begin with `model.`, or the encoder alone.
        tied: whether the embedding table is the causal model's head.
        sharded: in several files.
        bidirectional: under pplx-embed's model_type.
        theta: of RoPE.
        family: the start of transformers' class names: "Qwen3", "Llama" or "Qwen2".
        sizes: over `SIZES`.
    """
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": theta}
    config_class = getattr(transformers, f"{family}Config")
    config = config_class(**{**SIZES, **sizes}, tie_word_embeddings=tied, rope_theta=theta, rope_parameters=rope)
    model = getattr(transformers, f"{family}ForCausalLM" if prefix else f"{family}Model")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales of norms too: all ones would hide a norm left out or applied twice.
            scale = "norm" in name
            fan_in = 1 if "embed" in name or "bias" in name else parameter.shape[-1]
            values = torch.rand_like(parameter) * 1.5 + 0.5 if scale else torch.randn_like(parameter) * fan_in**-0.5
            parameter.copy_(values)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="60KB" if sharded else "1GB")
    if bidirectional:
        architecture = {"architectures": ["PPLXQwen3Model"], "auto_map": {"AutoModel": "modeling.PPLXQwen3Model"}}
        edit_config(folder, model_type="bidirectional_pplx_qwen3", **architecture)
        (folder / "modeling.py").write_text("raise SystemExit('code of the folder was run')\n")
    return write_tokenizer(folder)


def edit_config(folder: pathlib.Path, **changes) -> None:
    """Sets keys of config.json, or drops those that are None."""
    content = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in content.items() if key not in changes or changes[key] is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a folder's safetensors by the keys of the encoder alone; bfloat16 as its bits."""
    import torch
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for key, tensor in load_file(path).items():
            bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            tensors[key.removeprefix("model.")] = bits.numpy()
    return tensors
