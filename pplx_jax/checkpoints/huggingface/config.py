"""Reads `config.json` of a Hugging Face folder and checks that our encoder implements its features."""

import dataclasses
import pathlib
from typing import Any

from pplx_jax.checkpoints.huggingface.families import FAMILIES, QWEN3, Family
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, read_json_if_valid
from pplx_jax.core.prompts import checked_prompts
from pplx_jax.models.transformer import Qwen3Config

CONFIG = "config.json"
_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "query_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_length": "max_position_embeddings",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as its `config.json` describes it.

    Attributes:
      config: the encoder; `causal` if the model is.
      kind: "v1", or "context_v1" for a model that embeds chunks in their documents.
      tied: whether the embedding table is also the head, if there is a head.
      prompts: of a pplx-embed folder, as its sentence-transformers configuration names them. Those of other models
        belong to another pooling and are left out.
    """

    config: Qwen3Config
    kind: str
    tied: bool
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)


def read_source(folder: pathlib.Path) -> Source:
    """Reads a `config.json` of transformers 4 or 5.

    Raises:
      BadInput: the file is missing or not JSON, a size is missing, or the model has features that ours does not
        implement. One line names all problems.
    """
    content = read_json(folder / CONFIG, fix="download it again")
    family = _family(folder, content.get("model_type"))
    content = _with_defaults(content, family)
    published = content["model_type"] == family.pplx_model_type
    bidirectional = published or content.get("is_causal") is False
    problems = _unsupported(content)
    if content.get("use_bidirectional_attention") and not bidirectional:
        problems.append(
            "use_bidirectional_attention is true without is_causal false, which transformers ignores; give both or none"
        )
    sizes: dict[str, Any] = {field: content.get(key) for field, key in _SIZES.items()}
    problems += [
        f"{_SIZES[field]} is {value!r}, not a size"
        for field, value in sizes.items()
        if type(value) is not int or value < 1
    ]
    epsilon, theta = content.get("rms_norm_eps"), _rope_theta(content, problems)
    for name, value in (("rms_norm_eps", epsilon), ("rope_theta", theta)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            problems.append(f"{name} is {value!r}, not a positive number")
    if problems:
        raise BadInput(f"{folder / CONFIG}: {'; '.join(problems)}; these are not supported, or the file is damaged")
    architecture = "".join(map(str, content.get("architectures") or ()))
    return Source(
        config=Qwen3Config(
            **sizes,
            rms_norm_eps=float(epsilon),  # type: ignore[arg-type]
            rope_theta=float(theta),
            causal=not bidirectional,
            embedding_init_std=float(content.get("initializer_range") or Qwen3Config.embedding_init_std),
            qk_norm=family.qk_norm,
            qkv_bias=family.qkv_bias,
        ),
        kind="context_v1" if "Context" in architecture else "v1",
        tied=bool(content.get("tie_word_embeddings")),
        prompts=_prompts(folder) if published else {},
    )


def _prompts(folder: pathlib.Path) -> dict[str, str]:
    path = folder / "config_sentence_transformers.json"
    return checked_prompts(read_json(path).get("prompts") if path.exists() else None, str(path))


def other_pooling(folder: pathlib.Path) -> str | None:
    """Returns how a sentence-transformers folder pools, such as "lasttoken"; None for the mean, or if unknown."""
    for path in sorted(folder.glob(f"*_Pooling/{CONFIG}")):
        content = read_json_if_valid(path) or {}
        given = content.get("pooling_mode")
        modes = [given] if isinstance(given, str) else list(given or ())
        modes += [key.removeprefix("pooling_mode_") for key, on in content.items() if on is True]
        found = [mode for mode in modes if mode not in ("mean", "mean_tokens", "include_prompt")]
        if found:
            return ", ".join(mode.removesuffix("_token") for mode in found)
    return None


def _family(folder: pathlib.Path, model_type: Any) -> Family:
    for family in FAMILIES:
        if model_type in (family.model_type, family.pplx_model_type):
            return family
    known = ", ".join(name for family in FAMILIES for name in (family.model_type, family.pplx_model_type))
    raise BadInput(
        f"{folder / CONFIG}: model_type {model_type!r} is not supported; give a Qwen3, a Qwen3-Embedding, a Qwen2.5, a "
        f"Llama or a pplx-embed model ({known})"
    )


def _with_defaults(content: dict[str, Any], family: Family) -> dict[str, Any]:
    """Adds what `config.json` of a family may leave out, with the values of transformers."""
    if family is QWEN3:
        return content
    defaults = {"rms_norm_eps": family.rms_norm_eps, "rope_theta": family.rope_theta}
    if "rope_theta" in (content.get("rope_parameters") or ()):
        del defaults["rope_theta"]
    width, heads = content.get("hidden_size"), content.get("num_attention_heads")
    if type(width) is int and type(heads) is int and heads > 0 and width % heads == 0:
        defaults["head_dim"] = width // heads
    if family.model_type == "llama":
        defaults["num_key_value_heads"] = heads
    return content | {key: value for key, value in defaults.items() if content.get(key) is None}


def _unsupported(content: dict[str, Any]) -> list[str]:
    """Returns the features in use that change what the family computes and that our encoder does not implement."""
    layer_types = set(content.get("layer_types") or ())
    scaling = content.get("rope_scaling")
    in_use = {
        "attention_bias": content.get("attention_bias"),
        "mlp_bias": content.get("mlp_bias"),
        "use_sliding_window": content.get("use_sliding_window"),
        "layer_types": sorted(map(str, layer_types - {"full_attention"})),
        "rope_scaling": None if _plain_rope(scaling) else scaling,
        "hidden_act": None if content.get("hidden_act", "silu") == "silu" else content["hidden_act"],
        "quantization_config": content.get("quantization_config"),
    }
    return [f"{name} is {value!r}" for name, value in in_use.items() if value]


def _rope_theta(content: dict[str, Any], problems: list[str]) -> Any:
    """Returns the base of the rotary frequencies: a top-level key, or in `rope_parameters` (transformers 5)."""
    parameters = content.get("rope_parameters")
    if parameters is None:
        return content.get("rope_theta")
    if not isinstance(parameters, dict) or not _plain_rope(parameters):
        problems.append(f"rope_parameters is {parameters!r}")
        return 1.0
    theta = parameters.get("rope_theta", content.get("rope_theta"))
    if content.get("rope_theta") not in (None, theta):
        problems.append(f"rope_theta is {content['rope_theta']!r} and in rope_parameters {theta!r}")
    return theta


def _plain_rope(scaling: Any) -> bool:
    """Returns whether the rotary frequencies are not scaled."""
    if not scaling:
        return True
    if not isinstance(scaling, dict):
        return False
    kinds = {scaling.get("rope_type", "default"), scaling.get("type", "default")}
    return kinds == {"default"} and scaling.get("partial_rotary_factor", 1) == 1
