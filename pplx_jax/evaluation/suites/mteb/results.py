"""Results in the form of mteb's leaderboard: `FOLDER/results/MODEL/REVISION/TASK.json` and a `model_meta.json`."""

import dataclasses
import pathlib
from typing import Any

from pplx_jax.evaluation.core.benchmark import Settings, System
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts
from pplx_jax.inference.encoder import quantizations
from pplx_jax.kernels.quantization import Quantization

_OUTPUT_TYPES = {"int8": "int8", "binary": "binary", "ubinary": "binary"}


def model_meta(system: System, prompts: Prompts, name: str | None = None) -> Any:
    """mteb's `ModelMeta`, of what is known: who trained a model on what, its languages and its licence are not.

    Settings that make other vectors than the model's own (of ours INT8, all dimensions, no prompts) are an experiment
    to mteb, which keeps its results in a folder of their own. Cutting long texts is not: mteb's models all do.

    Args:
        system: the model, or BM25.
        prompts: around its texts.
        name: "organization/model"; by default the system's, under "local" where it names no organization.
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
            # A model of others may have prompts in its folder.
            "use_instructions": prompts != NO_PROMPTS if ours else None,
        }
    return ModelMeta(**fields)


def _name(name: str) -> str:
    parts = pathlib.PurePath(name).parts
    return name if len(parts) == 2 and not pathlib.Path(name).exists() else f"local/{parts[-1]}"


def _experiment(settings: Settings, native: Quantization, prompts: Prompts) -> dict[str, Any]:
    usual = dataclasses.asdict(Settings(native, truncate=settings.truncate))
    differing = {field: value for field, value in dataclasses.asdict(settings).items() if value != usual[field]}
    templates = dataclasses.asdict(prompts) if prompts != NO_PROMPTS else {}
    return differing | {f"{kind}_prompt": template for kind, template in templates.items()}


def write_result(folder: pathlib.Path, result: Any, meta: Any) -> pathlib.Path:
    """Writes a `TaskResult`; languages that an earlier run of the same model and data scored stay beside the new ones.

    Returns:
        The JSON file.
    """
    from mteb import ResultCache

    results = ResultCache(folder)
    try:
        earlier = results.load_task_result(result.task_name, meta)
    except ValueError:  # mteb was killed while it wrote
        earlier = None
    if earlier is not None and earlier.is_mergeable(result):
        result = earlier.merge(result)
    results.save_to_cache(result, meta)
    return results.get_task_result_path(result.task_name, meta)
