"""The README.md of an export."""

import json
from collections.abc import Mapping
from typing import Any

from pplx_jax.models.qwen3 import Qwen3Config

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
embeddings = model.encode(["read a file line by line", "for line in open(path):"])  # int8 [2, {dims}]
model.similarity(*embeddings.astype("float32"))  # cosine
model.encode(["read a file line by line"], quantization="ubinary")  # uint8 [1, {dims} / 8]
```

`quantization` is `int8` (the default, real int8), `binary` (int8 of -1 and +1), `ubinary` (packed bits, the
first dimension in the most significant), `tanh` or `none` (the pooled vector). `dims=256` keeps a prefix of
the dimensions; use it rather than `truncate_dim`, which would count bytes of `ubinary`.
"""

_USE_CONTEXT = """\

Chunks that see their whole document:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.encode([["first chunk", "second chunk"], ["a document of one chunk, or a query"]])
```

A document is a list of chunks and gives one array of shape [chunks, {dims}]. Queries are encoded by this same
model, as documents of one chunk; `SentenceTransformer.encode` does the same for them.
"""


def model_card(config: Qwen3Config, kind: str, stage: str, scores: Mapping[str, Any] | None) -> str:
    """The card's text.

    Args:
      config: the encoder.
      kind: "v1" or "context_v1".
      stage: what made the parameters: a stage, or the merge.
      scores: nested numbers of this run, printed as they are; None where nothing was measured.
    """
    use = (_USE + (_USE_CONTEXT if kind == "context_v1" else "")).format(dims=config.width)
    title = "Contextual text embeddings" if kind == "context_v1" else "Text embeddings"
    return f"""{_HEADER}
# {title}, {config.parameters / 1e6:,.1f}M parameters

Trained with pplx-jax, an open implementation of "Diffusion-Pretrained Dense and Contextual Embeddings"
(arXiv 2602.11151). These are not the weights released with that paper.

## Use

{use}
## Model

| | |
|---|---|
| layers, width, MLP width | {config.layers}, {config.width}, {config.mlp_width} |
| query heads, key heads, head dimension | {config.query_heads}, {config.kv_heads}, {config.head_dim} |
| vocabulary | {config.vocab_size} |
| longest text | {config.max_length} tokens |
| dimensions | {config.width} |

## Recipe

Masked-diffusion pretraining of a bidirectional encoder, pair training with in-batch negatives, then
contextual training and triplet training with hard negatives, merged by spherical interpolation. All
contrastive stages compare tanh INT8 embeddings by cosine. The parameters here come from: {stage}.

## Scores of this run

{_scores(scores)}

## Limits

- No instruction prefix and no appended token: encode the bare text.
- A text over {config.max_length} tokens is an error, never cut.
- int8, `tanh` and `none` are not normalised; cosine is the similarity they were trained for. Quantizers that
  calibrate ranges, such as sentence-transformers' `precision="int8"`, are not this quantizer.
- Names of control tokens in a text are text.
"""


def _scores(scores: Mapping[str, Any] | None) -> str:
    if not scores:
        return "None were measured."
    rows = "\n".join(f"| {name} | {value} |" for name, value in _flatten(scores))
    return f"| | |\n|---|---|\n{rows}"


def _flatten(scores: Mapping[str, Any], prefix: str = ""):
    for name, value in scores.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", f"{value:.4f}" if isinstance(value, float) else json.dumps(value)
