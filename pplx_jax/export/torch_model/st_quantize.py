"""From pooled vectors to embeddings: the last module of the sentence-transformers pipeline.

Three float conventions circulate for these models; each has one name: "none" is the pooled vector v, "tanh"
is tanh(v), and "int8" holds the integers clip(round(127 tanh v)), half to even. Compare by cosine.
"""

import pathlib
import shutil

import torch

QUANTIZATIONS = ("int8", "binary", "ubinary", "tanh", "none")
LEVELS = 127


def quantize(v: torch.Tensor, quantization: str = "int8", dims: int | None = None) -> torch.Tensor:
    """Embeddings of pooled vectors.

    Args:
      v: [..., D].
      quantization: one of `QUANTIZATIONS`.
      dims: a prefix of the dimensions, for models trained with MRL; all where None.

    Returns:
      "int8": int8; "binary": int8 -1 or +1, with v >= 0 giving +1; "ubinary": the same as uint8 bits, eight
      dimensions to a byte, the first in the most significant bit; "tanh" and "none": float32.

    Raises:
      ValueError: an unknown quantization, or dims that do not fit.
    """
    width = v.shape[-1]
    dims = width if dims is None else dims
    if not 0 < dims <= width:
        raise ValueError(f"dims={dims} of a model of {width} dimensions; ask for 1 to {width}")
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
            raise ValueError(f"{dims} dimensions do not fill whole bytes; take a multiple of 8")
        weights = 2 ** torch.arange(7, -1, -1, device=v.device)
        return ((v >= 0).unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)
    raise ValueError(f"quantization={quantization!r} is not one of {', '.join(QUANTIZATIONS)}")


class FlexibleQuantizer(torch.nn.Module):
    """Quantizes `sentence_embedding`; `SentenceTransformer.encode` passes `quantization` and `dims` on to it.

    While training the integers of "int8" come as floats with a straight-through gradient.
    """

    forward_kwargs = {"quantization", "dims"}

    def forward(
        self, features: dict[str, torch.Tensor], quantization: str = "int8", dims: int | None = None, **_
    ) -> dict[str, torch.Tensor]:
        v = features["sentence_embedding"]
        embedding = quantize(v, quantization, dims)
        if self.training and quantization == "int8":
            scaled = LEVELS * quantize(v, "tanh", dims)
            embedding = embedding.float() + (scaled - scaled.detach())
        return {**features, "sentence_embedding": embedding}

    @classmethod
    def load(cls, *_, **__) -> "FlexibleQuantizer":
        """A quantizer has neither weights nor settings to read."""
        return cls()

    def save(self, output_path: str, *_, **__) -> None:
        """Writes this file beside `modules.json`, where sentence-transformers looks for it when loading."""
        shutil.copy(__file__, pathlib.Path(output_path).parent)

    def get_config_dict(self) -> dict:
        return {}
