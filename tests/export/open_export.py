"""Run by other releases of transformers than the environment's: opens exports and leaves what they compute.

Usage: python open_export.py IDS_AND_MASK.npz EXPORT..., with the release on PYTHONPATH; writes EXPORT's name.npz here.
"""

import json
import pathlib
import re
import sys
import tempfile

import numpy as np
import torch
import transformers


def main(inputs: str, *exports: str) -> None:
    arrays = np.load(inputs)
    for export in exports:
        found = computed(export, torch.tensor(arrays["ids"]), torch.tensor(arrays["mask"]))
        np.savez(f"{pathlib.Path(export).name}.npz", version=np.array(transformers.__version__), **found)


def computed(export: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
    model = transformers.AutoModel.from_pretrained(export, trust_remote_code=True, torch_dtype=torch.float32).eval()
    (architecture,) = json.loads((pathlib.Path(export) / "config.json").read_text())["architectures"]
    family = re.match("PPLX(.*?)(Contextual)?Model", architecture)[1]
    plain = getattr(transformers, f"{family}Model").from_pretrained(export, torch_dtype=torch.float32).eval()
    bias = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])
    bias = bias.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(torch.float32).min)
    with torch.inference_mode():
        found = {
            "hidden": model(ids, mask).last_hidden_state.numpy(),
            "without_mask": model(ids[:1]).last_hidden_state.numpy(),
            "plain": plain(input_ids=ids, attention_mask=bias).last_hidden_state.numpy(),
        }
    eager = transformers.AutoModel.from_pretrained(
        export, trust_remote_code=True, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        found["eager_without_mask"] = eager(ids[:1]).last_hidden_state.numpy()
    with tempfile.TemporaryDirectory() as scratch:
        saved = pathlib.Path(scratch) / pathlib.Path(export).name
        model.save_pretrained(saved)
        found["saved"] = np.array(sorted(path.name for path in saved.glob("*.py")))
        again = transformers.AutoModel.from_pretrained(saved, trust_remote_code=True, torch_dtype=torch.float32).eval()
        with torch.inference_mode():
            found["again"] = again(ids, mask).last_hidden_state.numpy()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(export)
    found["tokens"] = np.array(tokenizer("read a file line by line")["input_ids"])
    if hasattr(model, "encode"):
        found["chunks"] = np.concatenate(model.encode([["read a file", "line by line"], ["a query"]]))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
