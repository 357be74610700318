"""Converts pooled vectors to embeddings: the last module of the sentence-transformers pipeline.

"none" is the pooled vector v, "tanh" is tanh(v), and "int8" holds the integers clip(round(127 tanh v)), rounded half to
even. Compare them by cosine.
"""

import json
import pathlib
import shutil

import torch

QUANTIZATIONS = ("int8", "binary", "ubinary", "tanh", "none")
LEVELS = 127
DIMS: int | None = None  # the width of all embeddings; None for that of the model


def quantize(v: torch.Tensor, quantization: str = "int8", dims: int | None = None) -> torch.Tensor:
    """Returns the embeddings of pooled vectors.

    Args:
      v: [..., D].
      quantization: one of `QUANTIZATIONS`.
      dims: number of leading dimensions, for models trained with MRL; None for `DIMS`.

    Returns:
      "int8": int8. "binary": int8 -1 or +1; v >= 0 gives +1. "ubinary": these signs as uint8 bits, eight dimensions per
      byte, the first in the most significant bit. "tanh" and "none": float32.

    Raises:
      ValueError: the quantization is unknown, or dims is invalid.
    """
    width = v.shape[-1] if DIMS is None else DIMS
    dims = width if dims is None else dims
    if not 0 < dims <= width:
        raise ValueError(f"dims={dims} of a model of {width} dimensions; give 1 to {width}")
    v = v[..., :dims].float()
    if quantization == "none":
        return v
    if quantization == "tanh":
        return torch.tanh(v)
    if quantization == "int8":
        return torch.clamp(torch.round(LEVELS * torch.tanh(v)), -LEVELS, LEVELS).to(torch.int8)
    if quantization == "binary":
        return torch.where(v >= 0, 1, -1).to(torch.int8)
    if quantization == "ubinary":
        if dims % 8:
            raise ValueError(f"{dims} dimensions do not fill whole bytes; give a multiple of 8")
        weights = 2 ** torch.arange(7, -1, -1, device=v.device)
        return ((v >= 0).unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)
    raise ValueError(f"quantization={quantization!r} is not one of {', '.join(QUANTIZATIONS)}")


class FlexibleQuantizer(torch.nn.Module):
    """Quantizes `sentence_embedding`. `SentenceTransformer.encode` passes `quantization` and `dims` to it.

    Without `quantization`, the embeddings are the integers of "int8" as float32, because sentence-transformers computes
    similarities and norms of floats only. In training mode they have a straight-through gradient.
    """

    forward_kwargs = {"quantization", "dims"}

    def forward(
        self, features: dict[str, torch.Tensor], quantization: str | None = None, dims: int | None = None, **_
    ) -> dict[str, torch.Tensor]:
        v = features["sentence_embedding"]
        embedding = quantize(v, quantization or "int8", dims)
        if quantization is None:
            embedding = embedding.float()
        if self.training and quantization in (None, "int8"):
            scaled = LEVELS * quantize(v, "tanh", dims)
            embedding = embedding.float() + (scaled - scaled.detach())
        return {**features, "sentence_embedding": embedding}

    if DIMS is not None:  # else the width is that of the modules before this one

        def get_sentence_embedding_dimension(self) -> int | None:
            return DIMS

        get_embedding_dimension = get_sentence_embedding_dimension

    @classmethod
    def load(cls, *_, **__) -> "FlexibleQuantizer":
        """Returns a quantizer. It has no weights or settings to read."""
        return cls()

    def save(self, output_path: str, *_, **__) -> None:
        """Copies this file next to `modules.json`, where sentence-transformers looks for it.

        The limit of texts is written again too, if it is above that of the model, so that a longer text is an error in
        the model. sentence-transformers does not save it, and would cut such texts silently.
        """
        folder = pathlib.Path(output_path).parent
        shutil.copy(__file__, folder)
        paths = [folder / f"{name}.json" for name in ("config", "tokenizer_config", "sentence_bert_config")]
        if not all(path.is_file() for path in paths):
            return
        model, tokenizer, module = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        limit = tokenizer.get("model_max_length", 0)
        if limit > model["max_position_embeddings"]:
            module["max_seq_length"] = limit
            paths[-1].write_text(json.dumps(module, indent=2) + "\n", encoding="utf-8")

    def get_config_dict(self) -> dict:
        return {}
