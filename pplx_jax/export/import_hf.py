"""The verb `import-hf`: a Hugging Face folder to a model folder, with a parity report against PyTorch."""

import dataclasses
import gc
import os
import pathlib
import tempfile
from typing import Any

from pplx_jax.checkpoints.huggingface.reader import ImportPlan
from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.core.output_folder import require_free, take_place
from pplx_jax.export import import_parity
from pplx_jax.export.packages import require_packages
from pplx_jax.export.peak_memory import PeakMemory


def import_hf(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    mask_token: str | None = None,
    separator_token: str | None = None,
    no_parity: bool = False,
) -> dict[str, Any]:
    """Writes a model folder that a recipe starts from, `Embedder.load` opens and `export_hf` turns back.

    The folder takes its name only after parity holds: hidden states and int8 embeddings are those of PyTorch, in
    the source's own mask and, for a causal source, in the bidirectional one too.

    Args:
      source: a folder of safetensors, `config.json` and `tokenizer.json`.
      output: the folder to write; it must not exist, or be empty.
      dtype: of the weights kept, "float32" or "bfloat16".
      mask_token: name of the token that diffusion masks with; see `data/tokens/tokenizer_vocabulary.py` where None.
      separator_token: name of the token between chunks; the same.
      no_parity: skip the comparison, which needs PyTorch and runs the model twice.

    Returns:
      `tensors` (how many were read), `parity` (`max_abs_diff`, `int8_equal_share`; None where skipped) and
      `peak_bytes` (growth of this process's peak resident memory while weights were read and written).

    Raises:
      BadInput: the source has a feature that is not supported, tensors are missing, left over, damaged or not finite,
        `output` holds something, or a package that parity takes is not installed.
      RuntimeError: what was imported does not compute what the source does.
    """
    source, output = pathlib.Path(source), pathlib.Path(output).absolute()
    require_free(output, "empty folder", lambda _: False)
    if not no_parity:
        require_packages("the parity report", "torch", "transformers", otherwise=", or give --no_parity")
    plan = ImportPlan.of(source, dtype, mask_token, separator_token)
    states = None
    if not no_parity:
        # Before our weights are read, and freed by then: the two are never in memory together.
        states = import_parity.source_states(source, plan.described, plan.vocabulary, dtype)
        gc.collect()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}-partial-", dir=output.parent) as scratch:
        partial = pathlib.Path(scratch) / "model"
        memory = PeakMemory()
        model = plan.load()
        save_model(partial, model.config, model.vocabulary, model.params, stage=model.stage, kind=model.kind)
        peak = memory.growth
        parity = None
        if states is not None:
            parity = dataclasses.asdict(import_parity.check_import(model, states))
        take_place(partial, output)
    return {"tensors": len(plan.tensors), "parity": parity, "peak_bytes": peak}
