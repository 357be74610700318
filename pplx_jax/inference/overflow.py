"""Where a document over the model's limit is cut in overlapping windows, so that no token is lost (numpy only)."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pplx_jax.core.errors import BadInput

Overflow = Literal["error", "truncate", "split"]


class TooLong(BadInput):
    """A text or document over the model's limit.

    Args:
      place: which of those that were given, from 0.
      tokens: it has.
      limit: of the model.
      noun: what it is.
      mend: what to do about it.
    """

    def __init__(self, place: int, tokens: int, limit: int, *, noun: str = "text", mend: str):
        super().__init__(f"{noun} {place} has {tokens} tokens, the model takes {limit}; {mend}")
        self.place, self.tokens, self.limit, self.noun, self.mend = place, tokens, limit, noun, mend

    def at(self, place: int) -> "TooLong":
        """The same of another list of texts, where it stands at `place`."""
        return TooLong(place, self.tokens, self.limit, noun=self.noun, mend=self.mend)


@contextlib.contextmanager
def too_long_by_name(names: Sequence[str], mend: str) -> Iterator[None]:
    """Names the text that is too long by what the user calls it.

    Args:
      names: of the texts that are encoded in the block, in order.
      mend: what the user can do about it.

    Raises:
      BadInput: a text is over the model's limit.
    """
    try:
        yield
    except TooLong as error:
        name, size = names[error.place], f"{error.tokens} tokens, the model takes {error.limit}"
        raise BadInput(f"{name!r} has {size}; {mend}") from None


@dataclasses.dataclass(frozen=True)
class Window:
    """Columns `start` to `stop` of a document are encoded together; those from `own` to `own_stop` are pooled."""

    start: int
    stop: int
    own: int
    own_stop: int


def windows(size: int, limit: int, overlap: int, boundaries: np.ndarray) -> list[Window]:
    """Cuts a document into the fewest windows of `limit` tokens that share `overlap` tokens or more.

    Every column is pooled in exactly one window. Two windows hand over in the middle of what they share, where a
    token has as much context on either side as it can have, or at the chunk boundary in there that is nearest to
    the middle: a chunk no longer than half of the overlap is so pooled from one window.

    Args:
      size: tokens of the document, separators included; more than `limit`.
      limit: tokens the model takes.
      overlap: least tokens that neighbouring windows share, under `limit`.
      boundaries: ascending first columns of the chunks.

    Raises:
      BadInput: an overlap that leaves no room.
    """
    if not 0 <= overlap < limit:
        raise BadInput(f"overlap={overlap} with a model of {limit} tokens; give 0 to {limit - 1}")
    count = -(-(size - overlap) // (limit - overlap))
    starts = [round(place * (size - limit) / (count - 1)) for place in range(count)]
    cuts = [0]
    for start, next_start in zip(starts, starts[1:], strict=False):
        lowest, highest = max(next_start, cuts[-1]), start + limit
        middle = max((next_start + highest) // 2, lowest)
        inside = boundaries[(boundaries >= lowest) & (boundaries <= highest)]
        cuts.append(int(inside[np.argmin(np.abs(inside - middle))]) if len(inside) else middle)
    cuts.append(size)
    return [
        Window(start, start + limit, own, own_stop)
        for start, own, own_stop in zip(starts, cuts, cuts[1:], strict=False)
    ]
