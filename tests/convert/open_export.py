"""Run by other releases of transformers than the environment's: opens an export and leaves what it computes.

Usage: python open_export.py EXPORT IDS_AND_MASK.npz OUTPUT.npz, with the release on PYTHONPATH.
"""

import sys

import numpy as np
import torch
import transformers


def main(export: str, inputs: str, output: str) -> None:
    arrays = np.load(inputs)
    ids, mask = torch.tensor(arrays["ids"]), torch.tensor(arrays["mask"])
    model = transformers.AutoModel.from_pretrained(export, trust_remote_code=True, torch_dtype=torch.float32).eval()
    plain = transformers.Qwen3Model.from_pretrained(export, torch_dtype=torch.float32).eval()
    bias = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])
    bias = bias.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(torch.float32).min)
    with torch.inference_mode():
        found = {
            "hidden": model(ids, mask).last_hidden_state.numpy(),
            "plain": plain(input_ids=ids, attention_mask=bias).last_hidden_state.numpy(),
        }
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(export)
    found["tokens"] = np.array(tokenizer("read a file line by line")["input_ids"])
    if hasattr(model, "encode"):
        found["chunks"] = np.concatenate(model.encode([["read a file", "line by line"], ["a query"]]))
    np.savez(output, version=np.array(transformers.__version__), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
