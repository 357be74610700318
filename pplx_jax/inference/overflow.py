"""Texts over the model's limit: the error that names them, and the split into overlapping windows."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pplx_jax.core.errors import BadInput

Overflow = Literal["error", "truncate", "split"]
SHORTEN = 'shorten it, or pass overflow="split" or "truncate"'


class TooLong(BadInput):
    """A text or document over the model's limit.

    Args:
      place: its index in the input, from 0.
      tokens: its number of tokens.
      limit: of the model.
      noun: "text" or "document".
      fix: what the user can do.
      at_least: whether it may have more tokens.
      over: how many of how many texts are over the limit, if all were counted.
    """

    def __init__(
        self,
        place: int,
        tokens: int,
        limit: int,
        *,
        noun: str = "text",
        fix: str,
        at_least: bool = False,
        over: tuple[int, int] | None = None,
    ):
        self.size = f"{'at least ' if at_least else ''}{tokens} tokens, the model takes {limit}"
        self.size += "" if over is None else f" ({over[0]} of {over[1]} texts are over it)"
        super().__init__(f"{noun} {place} has {self.size}; {fix}")
        self.place, self._rest = place, {"noun": noun, "fix": fix, "at_least": at_least, "over": over}
        self.tokens, self.limit = tokens, limit

    def at(self, place: int) -> "TooLong":
        """Returns the same error with another index."""
        return TooLong(place, self.tokens, self.limit, **self._rest)


def shorter_limit(limit: int, wanted: int | None) -> int:
    """Returns the limit in tokens that a user wants, or the model's if None.

    Raises:
      BadInput: it is below 1 or above the model's.
    """
    if wanted is not None and not 1 <= wanted <= limit:
        raise BadInput(f"max_length={wanted}: the model takes {limit} tokens; give a number from 1 to {limit}")
    return limit if wanted is None else wanted


@contextlib.contextmanager
def too_long_by_name(names: Sequence[str], fix: str) -> Iterator[None]:
    """Replaces a `TooLong` error of the block by one with the name of the text.

    Args:
      names: of the texts that are encoded in the block, in order.
      fix: what the user can do.

    Raises:
      BadInput: a text is over the model's limit.
    """
    try:
        yield
    except TooLong as error:
        raise BadInput(f"{names[error.place]!r} has {error.size}; {fix}") from None


def chunks_fit(lengths: Sequence[int], limit: int) -> bool:
    """Returns whether a document that is cut to `limit` tokens keeps a token of each of its chunks of these lengths.

    A chunk that keeps none would have a zero vector.
    """
    return sum(length > 0 for length in lengths) + len(lengths) - 1 <= limit


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document are encoded together. Those from `own` to `own_stop` are pooled."""

    start: int
    stop: int
    own: int
    own_stop: int


def windows(size: int, limit: int, overlap: int, boundaries: np.ndarray) -> list[Window]:
    """Splits a document into the fewest windows of `limit` tokens that share at least `overlap` tokens.

    Every token is pooled in exactly one window. The boundary between two windows is the middle of their overlap, where
    tokens have the most context on both sides, or the chunk boundary in the overlap that is closest to the middle. So a
    chunk of up to half of the overlap is pooled from one window.

    Args:
      size: tokens of the document, including separators; more than `limit`.
      limit: maximum tokens of the model.
      overlap: minimum tokens shared by adjacent windows, less than `limit`.
      boundaries: first token of each chunk, ascending.

    Raises:
      BadInput: the overlap is negative or not less than `limit`.
    """
    if not 0 <= overlap < limit:
        raise BadInput(f"overlap={overlap} with a model of {limit} tokens; give 0 to {limit - 1}")
    count = -(-(size - overlap) // (limit - overlap))
    starts = [round(window * (size - limit) / (count - 1)) for window in range(count)]
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
