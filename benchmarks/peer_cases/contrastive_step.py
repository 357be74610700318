"""One optimizer step on pairs: ours, and sentence-transformers' (cached) multiple-negatives ranking loss.

Both have in-batch documents as negatives, cosines of INT8 embeddings with a straight-through gradient, scale 20, and
AdamW after clipping. The batch is prepared before: tokenized, and packed or padded. With `parts` above 1 both encode it
twice, in parts, so that activations are those of one part (GradCache, arXiv 2101.06983).
"""

import argparse
import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from peer_cases.subject import Subject, read_pairs
from peer_cases.turns import Different, chosen, measure, table_row
from pplx_jax.core.errors import BadInput

NAMES = ("ours_float32", "ours", "sentence_transformers_float32", "sentence_transformers_bfloat16")
SCALE, LEARNING_RATE, CLIP = 20.0, 1e-5, 1.0
_LEAST_LENGTH = 128
# Largest differences from ours in float32: of the loss, and of the gradient's norm, relative.
_MOST = {"float32": (1e-3, 1e-2), "bfloat16": (5e-2, 0.1)}


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the names and rows of the cases: one for each batch size."""
    pairs = [pair for pair in read_pairs(options.pairs) if all(text.strip() for text in pair)]
    for size in options.batch_sizes:
        if size > len(pairs):
            raise BadInput(f"--batch_sizes {size}: there are {len(pairs)} pairs; give more with --pairs")
        parts = -(-size // options.part_size) if size >= options.cached_from else 1
        case = {
            "ours": subject.ours,
            "exported": subject.exported,
            "pairs": pairs[:size],
            "length": options.pair_tokens,
            "parts": parts,
            "threads": options.threads,
        }
        found = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
        counts = subject.count_tokens([text for pair in pairs[:size] for text in pair])
        tokens = int(np.minimum(counts, options.pair_tokens).sum())
        row = table_row(found, {"pairs": size, "tokens": tokens, "parts": parts})
        yield f"{subject.name}, {size}{', cached' if parts > 1 else ''}", row


def open_side(name: str, case: Mapping[str, Any]) -> Any:
    """Opens an implementation.

    Args:
      name: one of `NAMES`.
      case: `ours`, `exported`: folders of the model; `pairs`: of texts; `length`: tokens to which texts are cut;
        `parts`; `threads`.
    """
    precision = name.rpartition("_")[2]
    if name.startswith("ours"):
        return Ours(case, None if name == "ours" else precision)
    return SentenceTransformers(case, precision)


def compare(first: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the differences of loss and gradient norm of the first step.

    Raises:
      Different: one of them is more than the precision explains.
    """
    most = _MOST.get(name.rpartition("_")[2], _MOST["bfloat16"])
    loss = abs(first["loss"] - other["loss"])
    norm = abs(first["gradient_norm"] - other["gradient_norm"]) / first["gradient_norm"]
    if not (loss <= most[0] and norm <= most[1]):
        values = f"loss {other['loss']:.5f} and gradient norm {other['gradient_norm']:.5f}"
        raise Different(f"{name}: {values}, ours {first['loss']:.5f} and {first['gradient_norm']:.5f}")
    return {"loss_difference": loss, "gradient_norm_difference": norm}


def optimizer() -> Any:
    """Returns ours; theirs has the same numbers."""
    from pplx_jax.training.optimizers import Optimizer

    return Optimizer(LEARNING_RATE, warmup_steps=0, b2=0.999, weight_decay=0.0, clip_norm=CLIP)


class OurStep:
    """A stage's compiled step with its state and batch; subclasses make the stage and the batch."""

    def __init__(self, case: Mapping[str, Any], dtype: str | None):
        import jax

        from pplx_jax.checkpoints.model_folder import load_model
        from pplx_jax.kernels.platform import fast_dtype
        from pplx_jax.parallel.mesh import Mesh
        from pplx_jax.training.train_state import make_step, new_state, trained_params

        model = load_model(case["ours"])
        dtype = dtype or fast_dtype(jax.default_backend())
        config = dataclasses.replace(model.config, dtype=dtype, remat=False)
        stage, batch = self.stage_and_batch(case, model.vocabulary)
        chain, self._mesh, self._jax = optimizer().build(1000), Mesh().build(), jax
        with jax.set_mesh(self._mesh):
            self._batch = jax.device_put(batch)
            self._state = new_state(trained_params(model.params, stage), chain, self._mesh)
        mask_id = model.vocabulary.mask_id
        self._step = make_step(stage, config, chain, steps=1000, seed=0, mask_id=mask_id, mesh=self._mesh)
        self._first: dict[str, float] = {}

    def stage_and_batch(self, case: Mapping[str, Any], vocabulary: Any) -> tuple[Any, dict[str, np.ndarray]]:
        raise NotImplementedError

    def run(self) -> None:
        with self._jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, self._batch)
            metrics = {name: float(metrics[name]) for name in ("loss", "gradient_norm")}
            self._jax.block_until_ready(self._state)
        self._first = self._first or metrics

    def check(self) -> dict[str, float]:
        return self._first


class Ours(OurStep):
    def stage_and_batch(self, case, vocabulary):
        from pplx_jax.data.tokens.ragged import Ragged
        from pplx_jax.data.tokens.token_table import TokenTable
        from pplx_jax.data.tokens.token_writer import write_table
        from pplx_jax.training.stages.pair import PairStage

        count = len(case["pairs"])
        columns: dict[str, Any] = {
            name: Ragged.from_arrays(
                [np.array(ids[: case["length"]], np.int32) for ids in vocabulary.encode_batch(texts)]
            )
            for name, texts in zip(("query", "document"), map(list, zip(*case["pairs"], strict=True)), strict=True)
        }
        longest = max(int(np.diff(column.offsets).max()) for column in columns.values())
        tokens = sum(int(column.offsets[-1]) for column in columns.values())
        columns |= {"document_hash": np.arange(count, dtype=np.int32), "source": np.zeros(count, np.int32)}
        length = max(1 << (longest - 1).bit_length(), _LEAST_LENGTH)
        stage = PairStage(
            batch_size=count,
            row_length=length,
            slots=length // 4,
            microbatches=case["parts"],
            temperature=1 / SCALE,
            margin=math.inf,
            mask_duplicates=False,
            query_negatives=False,
        )
        with tempfile.TemporaryDirectory() as folder:
            write_table(pathlib.Path(folder) / "pair", "pair", vocabulary, columns)
            table = TokenTable.open(pathlib.Path(folder) / "pair", kind="pair", vocabulary=vocabulary)
            rows = -(-tokens // (length * case["parts"])) * case["parts"]
            while (packed := stage.batch.pack(table, np.arange(count), rows)).metrics["cut_tokens"]:
                rows += case["parts"]
            return stage, {name: np.array(array) for name, array in packed.arrays.items()}


class SentenceTransformers:
    def __init__(self, case: Mapping[str, Any], precision: str):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

        torch.set_num_threads(case["threads"])
        self._torch, self._precision = torch, precision
        model = SentenceTransformer(case["exported"], trust_remote_code=True)
        model.max_seq_length = case["length"]
        model.train()
        if case["parts"] == 1:
            self._loss: Any = MultipleNegativesRankingLoss(model, scale=SCALE)
        else:
            size = -(-len(case["pairs"]) // case["parts"])
            self._loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=size)
        self._features = [model.preprocess(list(texts)) for texts in zip(*case["pairs"], strict=True)]
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, LEARNING_RATE, weight_decay=0.0, fused=True)
        self._first: dict[str, float] = {}

    def run(self) -> None:
        torch = self._torch
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bfloat16"):
            loss = self._loss([dict(each) for each in self._features], None)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        self._first = self._first or {"loss": loss.item(), "gradient_norm": float(norm)}

    def check(self) -> dict[str, float]:
        return self._first
