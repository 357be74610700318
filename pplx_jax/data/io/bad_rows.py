"""Rows that cannot be used: counted by reason, sampled, skipped, and too many of them end the work."""

import collections
from collections.abc import Mapping
from typing import Any, NoReturn

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import escaped

_SAMPLES = 20  # kept of each reason
_GRACE = 1000  # rows before a share above zero means anything


class BadRows:
    """What was read, and what of it was bad.

    Args:
        what: the source, for messages.
        max_share: of the rows that may be bad; with 0 the first one ends the work.

    Attributes:
        rows: rows read so far, bad ones among them.
        reasons: reason -> how many.
        samples: reason -> the places of the first few.
        dropped: good rows that were left out for what they say.
        pending: (place, reason) of bad rows that `take` has not given yet.
        failure: what ended the reading, where something did.
    """

    def __init__(self, what: str, max_share: float = 0.0):
        self.rows = self.dropped = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.samples: dict[str, list[str]] = {}
        self.pending: list[tuple[str, str]] = []
        self.failure: BaseException | None = None
        self._last = "", ""
        self._what, self._max_share = what, max_share

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    def good(self) -> None:
        """Counts a row that is fine."""
        self.rows += 1

    def bad(self, place: str, reason: str) -> None:
        """Counts a row that is skipped.

        Args:
            place: "FILE:LINE".
            reason: what is wrong with it.

        Raises:
            BadInput: these are too many bad rows.
        """
        self.rows += 1
        reason = escaped(reason)
        self._last = place, reason
        self.pending.append(self._last)
        kind = reason.partition(" (")[0]
        self.reasons[kind] += 1
        kept = self.samples.setdefault(kind, [])
        if len(kept) < _SAMPLES:
            kept.append(place)
        if self.count > self._max_share * max(self.rows, _GRACE):
            self._stop(place, reason)

    def take(self) -> list[tuple[str, str]]:
        """The bad rows since it was called before."""
        taken, self.pending = self.pending, []
        return taken

    def finish(self) -> None:
        """Judges the share over all rows.

        Raises:
            BadInput: too many were bad.
        """
        if self.count > self._max_share * self.rows:
            self._stop(*self._last)

    def summary(self) -> dict[str, Any]:
        """{"rows", "bad", "dropped", "reasons": {reason: count}, "samples": {reason: [place]}}."""
        counts = {"rows": self.rows, "bad": self.count, "dropped": self.dropped}
        return {**counts, "reasons": dict(self.reasons), "samples": dict(self.samples)}

    def add(self, summary: Mapping[str, Any]) -> None:
        """Adds what `summary` says of another part of the same source."""
        self.rows += summary["rows"]
        self.dropped += summary["dropped"]
        self.reasons.update(summary["reasons"])
        for reason, places in summary["samples"].items():
            kept = self.samples.setdefault(reason, [])
            kept.extend(places[: _SAMPLES - len(kept)])
            self._last = places[-1], reason

    def _stop(self, place: str, reason: str) -> NoReturn:
        if self._max_share:
            share = f"; {self.count} of {self.rows} rows of {self._what} are bad, more than {self._max_share:g} of them"
        else:
            share = ""
        raise BadInput(f"{place}: {reason}{share}; mend the rows, or raise max_bad_share of the source to skip them")
