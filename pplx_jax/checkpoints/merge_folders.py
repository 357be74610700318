"""Merges two model folders into a third, by SLERP."""

import pathlib
from typing import Any

from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.merge import Merge, Per, slerp
from pplx_jax.checkpoints.model_folder import MODEL, load_model, save_model, stage_of
from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import replaced_folder, require_free
from pplx_jax.core.paths import as_path

MERGED = "merged"  # the stage name of a merged folder


def merge_checkpoints(
    a: pathlib.Path,
    b: pathlib.Path,
    output: pathlib.Path,
    weight: float = Merge.weight,
    per: Per = Merge.per,
) -> dict[str, Any]:
    """Writes the SLERP of two model folders to `output`; an earlier merge there is replaced.

    Raises:
      BadInput: a folder is not a model, the two differ in vocabulary or in a field that embeddings depend on, a weight
        is non-finite, `output` is something other than a merge, or `Merge` refuses an argument.
    """
    output, merge = as_path(output), Merge(weight=weight, per=per)
    require_free(output, "merged model", lambda folder: stage_of(folder) == MERGED)
    first, second = load_model(a), load_model(b)
    require_alike("merge", a, first, b, second)
    params = slerp(first.params, second.params, weight=merge.weight, per=merge.per)
    with replaced_folder(output, last=MODEL) as folder:
        save_model(
            folder,
            first.config,
            first.vocabulary,
            params,
            stage=MERGED,
            merged_from=(first.stage, second.stage),
            prompts=first.prompts,
        )
    return {"output": str(output), "weight": weight, "per": per}


def require_alike(verb: str, a: pathlib.Path, first: LoadedModel, b: pathlib.Path, second: LoadedModel) -> None:
    """Raises BadInput if two models differ in vocabulary, prompts or a field that embeddings depend on."""
    if first.vocabulary.fingerprint != second.vocabulary.fingerprint:
        raise BadInput(f"{verb}: {a} and {b} have different vocabularies; {verb} models of one run")
    differing = [
        f"{name} is {getattr(first.config, name)} and {getattr(second.config, name)}"
        for name in first.config.computing | second.config.computing
        if first.config.computing.get(name) != second.config.computing.get(name)
    ]
    if first.prompts != second.prompts:
        differing.append(f"prompts are {dict(first.prompts)} and {dict(second.prompts)}")
    if differing:
        raise BadInput(f"{verb}: {a} and {b} differ: {'; '.join(differing)}; {verb} models of one run")
