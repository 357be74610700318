"""The system under test: a model with encoding settings, or BM25."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.overflow import Overflow, too_long_by_name
from pplx_jax.kernels.quantization import Quantization

# The fix named in errors about texts over the limit.
TOO_LONG = "give --truncate, --overflow split or a model with a larger limit"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model represents texts. Equal settings of the same model give equal scores.

    Attributes:
        quantization: of the compared vectors. They are compared by cosine, "ubinary" by Hamming distance.
        dims: number of leading dimensions to use; None for all.
        context: whether passages are encoded together with their neighbours in the same document (late chunking).
        truncate: whether texts over the model's limit are cut instead of raising an error.
        split: whether they are encoded as overlapping windows, of which every token is pooled once.
    """

    quantization: Quantization = "int8"
    dims: int | None = None
    context: bool = False
    truncate: bool = False
    split: bool = False

    @property
    def overflow(self) -> Overflow:
        """What happens to texts over the model's limit, see `Embedder`."""
        return "truncate" if self.truncate else "split" if self.split else "error"

    @property
    def name(self) -> str:
        """The name of the settings in results, such as "int8" or "binary-256-context"."""
        parts = (self.quantization, self.dims, "context" if self.context else None)
        return "-".join(str(part) for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class System:
    """A system to score.

    Attributes:
        name: the user's name for it: a model folder or "bm25".
        encoder: the model; None for BM25.
        settings: the model's encoding settings; unused for BM25.
    """

    name: str
    encoder: Encoder | None
    settings: Settings = Settings()

    @property
    def setting(self) -> str:
        """The name of the settings. BM25 has only one setting, "bm25"."""
        return self.name if self.encoder is None else self.settings.name


def pool(encode: Callable[..., np.ndarray], ids: Sequence[str], texts: Sequence[str], settings: Settings) -> np.ndarray:
    """Returns the pooled vectors of texts [n, width] without their documents. An empty text has zeros.

    Args:
        encode: a method of an encoder, such as `query_encoder(encoder)`.
        ids, texts: n each.
        settings: of the vectors, which are not quantized yet.

    Raises:
        BadInput: a text is over the model's limit; the message names its id.
    """
    with too_long_by_name(ids, TOO_LONG):
        return encode(texts, quantization="none", dims=settings.dims, overflow=settings.overflow)


def refuse_context(settings: Settings) -> None:
    """Raises BadInput if the settings request document context, for a benchmark whose documents have none."""
    if settings.context:
        raise BadInput("this benchmark encodes each document alone; leave --context out")
