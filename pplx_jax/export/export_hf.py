"""The verb `export-hf`: writes a model in the published PyTorch layout, for transformers and sentence-transformers."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from absl import logging

from pplx_jax.checkpoints.hub_folder import find_model
from pplx_jax.checkpoints.huggingface.families import QWEN3, Family, family_of
from pplx_jax.checkpoints.huggingface.name_map import to_torch_layout
from pplx_jax.checkpoints.huggingface.safetensors import WRITTEN_DTYPES
from pplx_jax.checkpoints.loaded_model import LoadedModel
from pplx_jax.checkpoints.model_folder import Kind, load_model
from pplx_jax.core.errors import BadInput
from pplx_jax.core.output_folder import require_free, scratch_beside, take_place
from pplx_jax.core.packages import require_packages
from pplx_jax.core.paths import absolute, as_path
from pplx_jax.core.peak_memory import process_peak_bytes
from pplx_jax.export.export_parity import check_parity
from pplx_jax.export.model_card import model_card
from pplx_jax.export.onnx_graph import write_onnx
from pplx_jax.export.onnx_parity import check_onnx_parity
from pplx_jax.export.run_record import RunRecord, read_run
from pplx_jax.export.tokenizer import save_tokenizer
from pplx_jax.export.weights import write_weights
from pplx_jax.inference.sentence_transformer import MODULES, is_foreign

# The files are those of Qwen3. Those of another family differ only in its name: transformers gives the classes of all
# families the same modules, and what differs between families is inside them.
_TORCH_MODEL = pathlib.Path(__file__).with_name("torch_model")
_FILES = ("configuration_pplx_qwen3.py", "modeling_pplx_qwen3.py", "st_quantize.py")
_ALL_DIMS = "DIMS: int | None = None"
_CLASSES = {
    "v1": ("modeling_pplx_qwen3", "PPLXQwen3Model"),
    "context_v1": ("contextual_pplx_qwen3", "PPLXQwen3ContextualModel"),
}
# Keys of Qwen3's configuration that another family's configuration does not have.
_UNKNOWN_KEYS = {
    "llama": ("use_sliding_window", "sliding_window", "max_window_layers"),
    "qwen2": ("attention_bias",),
}


def export_hf(
    model_folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    kind: Kind | None = None,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    scores: Mapping[str, Any] | None = None,
    onnx: bool = False,
    spell_special_tokens: bool = False,
    dims: int | None = None,
) -> dict[str, Any]:
    """Writes a folder that `SentenceTransformer(output, trust_remote_code=True)` and `AutoModel` open.

    The folder is renamed to `output` only after the parity check. An earlier export is replaced. The layout has no
    causal mask: a causal model (an import that was not trained) is exported as a bidirectional model with the same
    weights.

    Args:
      model_folder: folder of a stage, a merge or an import.
      output: the folder to write.
      kind: "context_v1" adds late chunking to the model; None for the kind of the model folder.
      dtype: of the weights, "float32" or "bfloat16".
      shard_bytes: maximum bytes of weights per file.
      scores: this run's scores for the model card; None for those in `results.json` of the run.
      onnx: whether to write `onnx/model.onnx` too, with float32 weights.
      spell_special_tokens: whether `tokenizer.json` has no special tokens, so that the package `tokenizers` alone reads
        their names in a text as plain text too.
      dims: the number of leading dimensions that embeddings of the export have; None for the width of the model. The
        weights are the same. A warning says if no stage trained this width.

    Returns:
      `tensors` (their number), `parity` (`max_abs_diff`, `int8_equal_share`, `longest_text` in tokens), with `onnx`
      also `onnx_parity` with the same keys, and `peak_bytes` (peak memory of this process).

    Raises:
      BadInput: the model folder is damaged, an argument is unknown, `output` contains something else, or a required
        package is not installed.
      RuntimeError: the export does not compute the same as the model.
    """
    source, output = find_model(model_folder), absolute(as_path(output))
    if dtype not in WRITTEN_DTYPES:
        raise BadInput(f"dtype={dtype!r} of an export is not one of {', '.join(WRITTEN_DTYPES)}")
    if kind is not None and kind not in get_args(Kind):
        raise BadInput(f"kind={kind!r} of an export is not one of {', '.join(get_args(Kind))}")
    require_packages("an export", "torch", "transformers", "sentence_transformers", extra="convert")
    if onnx:
        require_packages("an ONNX export", "onnx", "onnxruntime", extra="convert")
    require_free(output, "export", lambda folder: (folder / MODULES).is_file() and not is_foreign(folder))
    model = load_model(source)
    family_of(model.config)  # refuses a model that no family describes
    if model.config.causal:
        logging.warning("%s is causal, but the published layout is not: the export is bidirectional", model_folder)
    config = dataclasses.replace(model.config, causal=False)
    model = dataclasses.replace(model, config=config, kind=kind or model.kind, params=_rounded(model.params, dtype))
    record = read_run(source, model.stage, model.kind)
    record = dataclasses.replace(record, scores=record.scores if scores is None else scores)
    dims = _checked_dims(dims, model, record)
    tensors = to_torch_layout(model.params, model.config)
    with scratch_beside(output) as scratch:
        # The folder has its final name already, because transformers names the modules that it loads after it.
        partial = scratch / output.name
        partial.mkdir()
        write_weights(tensors, partial, dtype=dtype, shard_bytes=shard_bytes)
        _write_description(partial, model, dtype, dims)
        save_tokenizer(model.vocabulary, partial, model.config.max_length, spell_special_tokens=spell_special_tokens)
        card = model_card(model.config, model.kind, model.stage, record, dims=dims, onnx=onnx, prompts=model.prompts)
        (partial / "README.md").write_text(card, encoding="utf-8")
        checked = {"parity": check_parity(partial, model, dims)}
        if onnx:
            (partial / "onnx").mkdir()
            graph = write_onnx(tensors, model.config, partial / "onnx", dims)
            checked["onnx_parity"] = check_onnx_parity(graph, model, dims)
        take_place(partial, output, last=MODULES)
    reports = {name: dataclasses.asdict(parity) for name, parity in checked.items()}
    return {"tensors": len(tensors), **reports, "peak_bytes": process_peak_bytes()}


def hf_config(model: LoadedModel, dtype: str) -> dict[str, Any]:
    """Returns the content of `config.json` for transformers 4.57 to 5.x and text-embeddings-inference."""
    config, family = model.config, family_of(model.config)
    module, class_name = (_renamed(name, family) for name in _CLASSES[model.kind])
    configuration = _renamed("PPLXQwen3Config", family)
    content = {
        "architectures": [class_name],
        # The configuration class comes from the model's module: transformers finds a model class by its configuration
        # class, so if two kinds shared one, the second would open as the first.
        "auto_map": {"AutoConfig": f"{module}.{configuration}", "AutoModel": f"{module}.{class_name}"},
        "model_type": family.pplx_model_type,
        "use_bidirectional_attention": True,
        "is_causal": False,  # transformers' own classes use it since 5.2
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_length,
        "initializer_range": config.embedding_init_std,
        "tie_word_embeddings": config.tied,
        "use_cache": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.layers,
        "pad_token_id": model.vocabulary.pad_id,
        # Texts do not end with it, but text-embeddings-inference requires it and pads with it.
        "eos_token_id": model.vocabulary.pad_id,
        "dtype": dtype,
        **({"prompts": dict(model.prompts)} if model.prompts and model.kind == "context_v1" else {}),
    }
    return {key: value for key, value in content.items() if key not in _UNKNOWN_KEYS.get(family.model_type, ())}


def _renamed(text: str, family: Family) -> str:
    """Returns text or a name of Qwen3's files for another family."""
    return text.replace(QWEN3.title, family.title).replace(QWEN3.model_type, family.model_type)


def _checked_dims(dims: int | None, model: LoadedModel, record: RunRecord) -> int | None:
    """Returns the width of the embeddings; None for all dimensions. Warns if it was not trained."""
    width = model.config.width
    if dims is None or dims == width:
        return None
    if not 1 <= dims < width:
        raise BadInput(f"--dims={dims}: the model has {width} dimensions; give 1 to {width}")
    if dims not in record.trained_prefixes:
        trained = ", ".join(map(str, record.trained_prefixes)) or "no smaller width"
        logging.warning("dims=%d of the export: the record of the run says that %s was trained", dims, trained)
    return dims


def _write_description(folder: pathlib.Path, model: LoadedModel, dtype: str, dims: int | None) -> None:
    def write(name: str, content: Any) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    files = (*_FILES, "contextual_pplx_qwen3.py") if model.kind == "context_v1" else _FILES
    family = family_of(model.config)
    for name in files:
        text = (_TORCH_MODEL / name).read_text(encoding="utf-8")
        if dims is not None:
            text = text.replace(_ALL_DIMS, f"{_ALL_DIMS.removesuffix('None')}{dims}")
        (folder / _renamed(name, family)).write_text(_renamed(text, family), encoding="utf-8")
    write("config.json", hf_config(model, dtype))
    modules = (
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "", "type": "st_quantize.FlexibleQuantizer", "kwargs": ["quantization", "dims"]},
    )
    write("modules.json", [{"idx": i, "name": str(i), **module} for i, module in enumerate(modules)])
    # The names that sentence-transformers (since version 2) and text-embeddings-inference read.
    write(
        "1_Pooling/config.json",
        {"word_embedding_dimension": model.config.width, "pooling_mode_mean_tokens": True},
    )
    # One more than the model's limit: a text cut to the limit would be embedded silently without its end, but a text of
    # this length raises an error in the model.
    write("sentence_bert_config.json", {"max_seq_length": model.config.max_length + 1})
    write("config_sentence_transformers.json", {"prompts": dict(model.prompts), "similarity_fn_name": "cosine"})


def _rounded(params: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the parameters rounded to `dtype`, so that parity checks only the conversion."""
    if dtype == "float32":
        return dict(params)
    return {
        name: _rounded(value, dtype)
        if isinstance(value, Mapping)
        else value.astype(WRITTEN_DTYPES[dtype][0]).astype(np.float32)
        for name, value in params.items()
    }
