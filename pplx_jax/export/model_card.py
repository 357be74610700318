"""The README.md of an export: how to use the model, and facts that the run has recorded."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pplx_jax.checkpoints.huggingface.families import QWEN3, family_of
from pplx_jax.export.run_record import RunRecord
from pplx_jax.models.transformer import Qwen3Config

_HEADER = """\
---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
- custom_code
---
"""

_USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(FOLDER, trust_remote_code=True)
embeddings = model.encode(["read a file line by line", "for line in open(path):"])  # [2, {dims}]
model.similarity(embeddings, embeddings)  # cosine
model.encode(["read a file line by line"], quantization="int8")  # the same integers in int8
model.encode(["read a file line by line"], quantization="ubinary")  # uint8 [1, {dims} / 8]
```

The default output holds the integers of INT8, -127 to 127, as float32, because the functions of sentence-transformers
(`similarity`, `semantic_search`, `normalize_embeddings=True`) compute with floats only. `quantization` is `int8`,
`binary` (int8 -1 and +1), `ubinary` (packed bits, the first dimension in the most significant bit), `tanh` or `none`
(the pooled vector). `dims={fewer}` keeps the first {fewer} dimensions. Use it instead of `truncate_dim`, which would
count bytes of `ubinary`.
"""

_USE_CONTEXT = """\

Chunks in the context of their document (late chunking):

```python
from transformers import AutoModel

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.encode([["first chunk", "second chunk"], ["a document of one chunk, or a query"]])
```

A document is a list of chunks and gives one array of shape [chunks, {dims}]. The same model encodes queries, as
documents of one chunk. `SentenceTransformer.encode` gives the same vectors for queries.
"""

_USE_PLAIN = """\

### Without remote code

The model is a Qwen3 without the causal mask. transformers' own class (since 4.51) computes the same if you pass the
full mask, as below. With a two-dimensional `attention_mask`, releases before 5.2 silently use a causal mask.

```python
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Model

tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
model = Qwen3Model.from_pretrained(FOLDER).eval()
batch = tokenizer(["read a file line by line", "a query"], padding=True, return_tensors="pt")
visible = batch["attention_mask"].bool()  # [batch, length]; leave out texts without tokens
bias = torch.zeros(len(visible), 1, visible.shape[1], visible.shape[1], dtype=model.dtype)
bias = bias.masked_fill(~visible[:, None, None, :], torch.finfo(model.dtype).min)
with torch.inference_mode():
    hidden = model(input_ids=batch["input_ids"], attention_mask=bias).last_hidden_state
v = (hidden * visible[..., None]).sum(1) / visible.sum(1, keepdim=True)
embeddings = torch.round(127 * torch.tanh(v)).to(torch.int8)
```
"""

_POOLED = "v = (hidden * visible[..., None]).sum(1) / visible.sum(1, keepdim=True)"

_USE_ONNX = """\

### ONNX

```python
import onnxruntime
from transformers import PreTrainedTokenizerFast

session = onnxruntime.InferenceSession(f"{FOLDER}/onnx/model.onnx")
batch = PreTrainedTokenizerFast.from_pretrained(FOLDER)(["read a file", "a query"], padding=True, return_tensors="np")
inputs = {name: batch[name].astype("int64") for name in ("input_ids", "attention_mask")}
hidden, v, int8, binary = session.run(None, inputs)
```

The outputs are `last_hidden_state`, `pooler_output` (the pooled vector), `pooler_output_int8` and
`pooler_output_binary` (-1 and +1; `numpy.packbits(binary > 0, axis=-1)` packs it). Weights are float32.
"""


def model_card(
    config: Qwen3Config,
    kind: str,
    stage: str,
    record: RunRecord,
    *,
    dims: int | None = None,
    onnx: bool = False,
    prompts: Mapping[str, str] | None = None,
) -> str:
    """Returns the text of the card.

    Args:
      config: the encoder.
      kind: "v1" or "context_v1".
      stage: the stage or merge that made the parameters.
      record: of the run. The card says what is not recorded.
      dims: width of the embeddings; None for that of the encoder.
      onnx: whether the export has an ONNX graph.
      prompts: of the model.
    """
    widths = {"dims": dims or config.width, "fewer": _fewer(dims or config.width)}
    use = _USE.format(**widths) + (_prompts(prompts) if prompts else "")
    use += _USE_CONTEXT.format(**widths) if kind == "context_v1" else ""
    cut = "" if dims is None else f"\nv = v[:, :{dims}]"
    plain = _USE_PLAIN.replace(_POOLED, _POOLED + cut).replace(QWEN3.title, family_of(config).title)
    plain += _USE_ONNX if onnx else ""
    title = "Contextual text embeddings" if kind == "context_v1" else "Text embeddings"
    return f"""{_HEADER}
# {title}, {config.parameters / 1e6:,.1f}M parameters

Made with pplx-jax, an open implementation of "Diffusion-Pretrained Dense and Contextual Embeddings"
(arXiv 2602.11151). The parameters come from: {stage}.

## Use

{use}{plain}
## Model

| | |
|---|---|
| layers, width, MLP width | {config.layers}, {config.width}, {config.mlp_width} |
| query heads, key heads, head dimension | {config.query_heads}, {config.kv_heads}, {config.head_dim} |
| vocabulary | {config.vocab_size} |
| longest text | {config.max_length} tokens |
| dimensions | {_dimensions(config, dims)} |

## Recipe of this run

{_recipe(stage, record)}
## Data of this run

{_table(record.corpus) or "Not recorded."}

## Scores of this run

{_table(record.scores) or "Not measured."}

## Limits

{_limits(config, record, dims, prompted=bool(prompts))}"""


def _recipe(stage: str, record: RunRecord) -> str:
    if not record.stages:
        return "The training of these parameters is not recorded.\n"
    rows = [
        f"| {trained.name} | {trained.summary} | {trained.steps} | {_plain(trained.loss)} "
        f"| {_plain(trained.examples)} | {_plain(trained.tokens)} |"
        for trained in record.stages
    ]
    heading = (
        "| stage | learns from | steps | last loss | examples there are | tokens in them |\n|---|---|---|---|---|---|\n"
    )
    settings = f"\n<details><summary>Settings</summary>\n\n```\n{record.settings.strip()}\n```\n\n</details>\n"
    return heading + "\n".join(rows) + "\n" + _merged(record) + settings * bool(record.settings)


def _merged(record: RunRecord) -> str:
    if not record.merged_from:
        return ""
    first, second = record.merged_from
    return f"\nThe parameters are the spherical interpolation of those of the {first} and the {second} stage.\n"


def _prompts(prompts: Mapping[str, str]) -> str:
    texts = {name: json.dumps(text, ensure_ascii=False).replace("|", "\\|") for name, text in prompts.items()}
    rows = "".join(f"| {name} | `{text}` |\n" for name, text in texts.items())
    return f"""
The model was trained with prompts, texts before each query and document:

| prompt | text |
|---|---|
{rows}
`encode_query` and `encode_document` of sentence-transformers use the prompts `query` and `document`. `encode` uses
none, unless you give `prompt_name`. The pooled mean includes the tokens of the prompt.
"""


def _fewer(dims: int) -> int:
    """Returns a smaller width for the example."""
    return 256 if dims > 256 else max(dims // 2, 1)


def _dimensions(config: Qwen3Config, dims: int | None) -> str:
    return str(config.width) if dims is None else f"{dims}: embeddings have the first {dims} of {config.width}"


def _limits(config: Qwen3Config, record: RunRecord, dims: int | None, *, prompted: bool) -> str:
    limits = [
        "No appended token: encode the text as it is, after its prompt."
        if prompted
        else "No instruction prefix and no appended token: encode the text as it is.",
        f"A text over {config.max_length} tokens is an error, never cut.",
        "int8, `tanh` and `none` are not normalized; compare them by cosine, as in training. Quantizers that\n"
        '  calibrate ranges, such as sentence-transformers\' `precision="int8"`, are not this quantizer.',
        "Names of special tokens in a text are encoded as plain text by transformers and sentence-transformers. The\n"
        "  package `tokenizers` alone, which text-embeddings-inference uses, may read them as special tokens: remove\n"
        "  them from texts there, or export with `--spell_special_tokens`.",
        "The tokenizer has no code of its own, but `AutoTokenizer` asks whether to run the code of the model. Use\n"
        "  `PreTrainedTokenizerFast`, or give `AutoTokenizer.from_pretrained` `trust_remote_code=False`.",
        "Use sentence-transformers 5.4 or later: earlier versions strip white space around a text.",
    ]
    lengths = [
        f"{trained.name} ({', '.join(f'{name} {most}' for name, most in trained.lengths.items())})"
        for trained in record.stages
        if trained.lengths
    ]
    if lengths:
        limits.append(
            f"Maximum lengths in training, in tokens: {'; '.join(lengths)}. Longer texts work, but their quality was\n"
            "  not measured."
        )
    if dims is not None and dims not in record.trained_prefixes:
        trained = ", ".join(map(str, record.trained_prefixes)) or "none is recorded"
        limits.append(f"Embeddings of {dims} dimensions were not trained (smaller widths that were: {trained}).")
    if record.untrained_prefixes:
        limits.append(
            "Prefixes of the dimensions were not trained (no MRL): `dims` works, but its quality was not measured."
        )
    return "".join(f"- {limit}\n" for limit in limits)


def _table(values: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in _flatten(values) if name != "fingerprint")
    return f"| | |\n|---|---|\n{rows}" if rows else ""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name.replace('_', ' ')}", value


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else json.dumps(value)
