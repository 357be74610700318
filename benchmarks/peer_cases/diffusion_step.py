"""One optimizer step of masked diffusion: ours, and a plain PyTorch loop with the same masks.

The loop does what a careful user would: PyTorch's fused attention without a mask, logits of the masked tokens only,
fused AdamW; with and without `torch.compile`, in float32 and in bfloat16 (autocast).
"""

import argparse
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peer_cases import contrastive_step
from peer_cases.contrastive_step import CLIP, LEARNING_RATE, OurStep
from peer_cases.subject import Subject, read_texts
from peer_cases.turns import chosen, measure, table_row

NAMES = (
    "ours_float32",
    "ours",
    "torch_float32",
    "torch_bfloat16",
    "torch_compile_float32",
    "torch_compile_bfloat16",
)
compare = contrastive_step.compare


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names and rows of the cases: one for each length of a sequence."""
    texts = read_texts(options.texts)
    for length in options.row_lengths:
        rows = max(options.diffusion_tokens // length, 1)
        found: list[int] = []
        for text in itertools.cycle(texts):
            if len(found) >= rows * length:
                break
            found += subject.vocabulary.encode(text)
        tokens = np.array(found[: rows * length], np.int32).reshape(rows, length)
        masks = workdir / f"masks_{length}.npz"
        draw_masks(tokens, subject.vocabulary.mask_id, options.passes + 1, masks)
        folders = {"ours": subject.ours, "exported": subject.exported}
        case = {**folders, "masks": os.fspath(masks), "parts": 1, "threads": options.threads}
        measured = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
        facts = {"sequences": rows, "length": length, "tokens": rows * length}
        yield f"{subject.name}, {length}", table_row(measured, facts)


def draw_masks(tokens: np.ndarray, mask_id: int, steps: int, path: pathlib.Path) -> None:
    """Writes the corruption of each step as our stage draws it: inputs, corrupted and mask_probability, [steps, B, L].

    Args:
      tokens: [B, L], one text a sequence.
      mask_id: id of the mask token.
      steps: number of steps.
      path: `.npz` to write.
    """
    import jax

    from pplx_jax.objectives.corruption import corrupt

    segments, positions = np.ones_like(tokens), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    drawn = [
        corrupt(
            *map(jax.numpy.asarray, (tokens, segments, positions)),
            jax.random.fold_in(jax.random.key(0), step),
            mask_id=mask_id,
            random_length_share=0.0,
        )
        for step in range(steps)
    ]
    names = ("inputs", "corrupted", "mask_probability")
    np.savez(path, tokens=tokens, **{name: np.stack([getattr(each, name) for each in drawn]) for name in names})


def open_side(name: str, case: Mapping[str, Any]) -> Any:
    """Opens an implementation.

    Args:
      name: one of `NAMES`.
      case: `ours`, `exported`: folders of the model; `masks`: what `draw_masks` wrote; `parts`: microbatches of ours;
        `threads`.
    """
    precision = name.rpartition("_")[2]
    if name.startswith("ours"):
        return Ours(case, None if name == "ours" else precision)
    return Torch(case, precision, compiled=name.startswith("torch_compile"))


class Ours(OurStep):
    def stage_and_batch(self, case, vocabulary):
        from pplx_jax.training.stages.diffusion import DiffusionStage

        tokens = np.load(case["masks"])["tokens"]
        stage = DiffusionStage(len(tokens), tokens.shape[1], microbatches=case["parts"], random_length_share=0.0)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return stage, {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}


class Torch:
    def __init__(self, case: Mapping[str, Any], precision: str, compiled: bool):
        import torch
        from transformers import AutoModel

        torch.set_num_threads(case["threads"])
        self._torch, self._precision, self._step = torch, precision, 0
        self._model = AutoModel.from_pretrained(case["exported"], trust_remote_code=True).train()
        self._table = self._model.get_input_embeddings().weight
        if compiled:
            self._model.compile(dynamic=False)
        self._masks = {name: torch.from_numpy(array) for name, array in np.load(case["masks"]).items()}
        self._parameters = list(self._model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, LEARNING_RATE, weight_decay=0.0, fused=True)
        self._first: dict[str, float] = {}

    def run(self) -> None:
        torch, tokens = self._torch, self._masks["tokens"].long()
        inputs, corrupted, probability = (
            self._masks[name][self._step] for name in ("inputs", "corrupted", "mask_probability")
        )
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bfloat16"):
            hidden = self._model(inputs.long()).last_hidden_state
            target = corrupted[:, 1:]  # the state before a token predicts it
            logits = hidden[:, :-1][target] @ self._table.T
        losses = torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][target], reduction="none")
        loss = (losses / probability[:, 1:][target]).sum() / target.numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._step += 1
        self._first = self._first or {"loss": loss.item(), "gradient_norm": float(norm)}

    def check(self) -> dict[str, float]:
        return self._first
