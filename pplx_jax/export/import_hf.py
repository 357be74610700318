"""The verb `import-hf`: converts a Hugging Face folder or a GGUF file, with a parity report against PyTorch."""

import dataclasses
import gc
import os
from typing import Any

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.checkpoints.huggingface.gguf_file import SUFFIX
from pplx_jax.checkpoints.huggingface.reader import ImportPlan, warn_of_pooling
from pplx_jax.checkpoints.model_folder import MODEL, save_model
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.output_folder import require_free, scratch_beside, take_place
from pplx_jax.core.packages import require_packages
from pplx_jax.core.paths import absolute, as_path
from pplx_jax.core.peak_memory import PeakMemory
from pplx_jax.export import import_parity


def import_hf(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    mask_token: str | None = None,
    separator_token: str | None = None,
    pad_token: str | None = None,
    layers: int | None = None,
    no_parity: bool = False,
) -> dict[str, Any]:
    """Writes a model folder from which a recipe can start, and which `Embedder.load` and `export_hf` read.

    The folder is renamed to `output` only after the parity check: hidden states and int8 embeddings equal those of
    PyTorch, with the source's own mask and, for a causal source, also with the bidirectional mask.

    Args:
      source: a folder of safetensors, `config.json` and `tokenizer.json`, the name of a model of the Hugging Face hub,
        or a file that ends with `.gguf`.
      output: the folder to write; it must not exist, or be empty.
      dtype: of the written weights, "float32" or "bfloat16".
      mask_token: name of the mask token for diffusion; None for the default of `data/tokens/tokenizer_vocabulary.py`.
      separator_token: name of the separator token between chunks; None for the default.
      pad_token: name of the token that fills sequences; None for the default.
      layers: number of layers to keep, from the first; None for all. The final norm stays.
      no_parity: whether to skip the comparison, which needs PyTorch and runs the model twice.

    Returns:
      `tensors` (their number), `parity` (`max_abs_diff`, `int8_equal_share`; None if skipped) and `peak_bytes` (growth
      of this process's peak resident memory while weights are read and written).

    Raises:
      BadInput: the source has an unsupported feature, tensors are missing, unexpected, damaged or non-finite, `output`
        is not empty, or a package for the parity check is not installed.
      RuntimeError: the import does not compute the same as the source.
    """
    source, output = local_copy(find_model(source)), absolute(as_path(output))
    require_free(output, "empty folder", lambda _: False)
    if not no_parity:
        needed = ("torch", "transformers", *(("accelerate",) if source.suffix == SUFFIX else ()))
        require_packages("the parity report", *needed, extra="convert", otherwise=", or give --no_parity")
    plan = ImportPlan.of(source, dtype, mask_token, separator_token, pad_token, layers)
    warn_of_pooling(source)
    states = None
    if not no_parity:
        # Run PyTorch first and free it, so that both models are never in memory together.
        states = import_parity.source_states(source, plan.described, plan.vocabulary, dtype)
        gc.collect()
    with scratch_beside(output) as scratch:
        partial = scratch / "model"
        memory = PeakMemory()
        model = plan.load()
        save_model(
            partial,
            model.config,
            model.vocabulary,
            model.params,
            stage=model.stage,
            kind=model.kind,
            prompts=model.prompts,
        )
        peak = memory.growth
        parity = None
        if states is not None:
            parity = dataclasses.asdict(import_parity.check_import(model, states))
        take_place(partial, output, last=MODEL)
    return {"tensors": len(plan.tensors), "parity": parity, "peak_bytes": peak}
