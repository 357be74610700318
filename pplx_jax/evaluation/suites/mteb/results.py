"""Writes results in the format of mteb's leaderboard: `FOLDER/results/MODEL/REVISION/TASK.json`, `model_meta.json`."""

import dataclasses
import pathlib
from typing import Any

from pplx_jax.evaluation.scoring.system import Settings, System
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts
from pplx_jax.inference.encoder import quantizations
from pplx_jax.kernels.quantization import Quantization

_OUTPUT_TYPES = {"int8": "int8", "binary": "binary", "ubinary": "binary"}


def model_meta(system: System, prompts: Prompts, name: str | None = None) -> Any:
    """Returns mteb's `ModelMeta` with what is known. Training data, languages and licence stay unknown.

    mteb treats settings other than the model's native ones (for our models INT8, all dimensions, no prompts) as an
    experiment, and keeps its results in a separate folder. Cutting long texts is not an experiment, because all models
    of mteb do it.

    Args:
        system: the model, or BM25.
        prompts: templates around its texts.
        name: "organization/model"; None for the system's name, under "local" if it has no organization.
    """
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import OutputDType

    encoder, settings = system.encoder, system.settings
    unknown = [field for field, about in ModelMeta.model_fields.items() if about.is_required()]
    fields: dict[str, Any] = dict.fromkeys(unknown) | {
        "name": name or _name(system.name),
        "framework": ["NumPy"],
    }
    if encoder is None:
        fields |= {"revision": "lucene", "model_type": ["sparse"], "use_instructions": False}
    else:
        native = quantizations(encoder)[0]
        ours = native == "int8"
        output = _OUTPUT_TYPES.get(settings.quantization, "float32")
        fields |= {
            "revision": encoder.fingerprint,
            "max_tokens": encoder.config.max_length,
            "embed_dim": settings.dims or encoder.dims,
            "similarity_fn_name": ScoringFunction.COSINE,
            "output_dtypes": OutputDType(output),
            "experiment_kwargs": _experiment(settings, native, prompts) or None,
            "framework": ["JAX"] if ours else ["Sentence Transformers", "PyTorch"],
            # The folder of a sentence-transformers model may define prompts.
            "use_instructions": prompts != NO_PROMPTS if ours else None,
        }
    return ModelMeta(**fields)


def _name(name: str) -> str:
    parts = pathlib.PurePath(name).parts
    return name if len(parts) == 2 and not pathlib.Path(name).exists() else f"local/{parts[-1]}"


def _experiment(settings: Settings, native: Quantization, prompts: Prompts) -> dict[str, Any]:
    default = dataclasses.asdict(Settings(native, truncate=settings.truncate, split=settings.split))
    differing = {field: value for field, value in dataclasses.asdict(settings).items() if value != default[field]}
    templates = dataclasses.asdict(prompts) if prompts != NO_PROMPTS else {}
    return differing | {f"{kind}_prompt": template for kind, template in templates.items()}


def write_result(folder: pathlib.Path, result: Any, meta: Any) -> pathlib.Path:
    """Writes a `TaskResult`. It is merged with languages that an earlier run of the same model and data evaluated.

    Returns:
        The JSON file.
    """
    from mteb import ResultCache

    results = ResultCache(folder)
    try:
        earlier = results.load_task_result(result.task_name, meta)
    except ValueError:  # an interrupted run left a damaged file
        earlier = None
    if earlier is not None and earlier.is_mergeable(result):
        result = earlier.merge(result)
    results.save_to_cache(result, meta)
    return results.get_task_result_path(result.task_name, meta)
