"""Counts rows that cannot be used, by reason, and stops when there are too many."""

import collections
from collections.abc import Mapping
from typing import Any, NoReturn

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import escaped

_SAMPLES = 20  # places listed for each reason
_GRACE = 1000  # `max_share` is applied to at least this many rows


class BadRows:
    """Counts of the rows that were read, and of the bad ones.

    Args:
        what: the name of the source, for messages.
        max_share: the largest share of rows that may be bad. With 0 the first bad row is an error.

    Attributes:
        rows: number of rows read so far, including bad ones.
        reasons: reason -> number of bad rows.
        samples: reason -> places of the first bad rows.
        dropped: number of good rows that were left out because they overlap with evaluation texts.
        duplicates: number of examples that were left out because they repeat earlier ones, by "exact" and "near".
        pending: (place, reason) of bad rows that `take` has not returned yet.
        failure: the exception that ended the reading, if any.
    """

    def __init__(self, what: str, max_share: float = 0.0):
        self.rows = self.dropped = 0
        self.duplicates: collections.Counter[str] = collections.Counter()
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
        """Counts a good row."""
        self.rows += 1

    def bad(self, place: str, reason: str) -> None:
        """Counts a bad row, which is skipped.

        Args:
            place: "FILE:LINE".
            reason: what is wrong with the row. Details in parentheses are not part of the counted reason.

        Raises:
            BadInput: there are too many bad rows.
        """
        self.rows += 1
        reason = escaped(reason)
        self._last = place, reason
        self.pending.append(self._last)
        kind = reason.partition(" (")[0]
        self.reasons[kind] += 1
        places = self.samples.setdefault(kind, [])
        if len(places) < _SAMPLES:
            places.append(place)
        if self.count > self._max_share * max(self.rows, _GRACE):
            self._stop(place, reason)

    def take(self) -> list[tuple[str, str]]:
        """Returns the bad rows since the last call."""
        taken, self.pending = self.pending, []
        return taken

    def finish(self) -> None:
        """Checks the share of bad rows at the end.

        Raises:
            BadInput: too many rows were bad.
        """
        if self.count > self._max_share * self.rows:
            self._stop(*self._last)

    def summary(self) -> dict[str, Any]:
        """Returns {"rows", "bad", "dropped", "reasons": {reason: count}, "samples": {reason: [place]}}.

        `duplicates` {"exact", "near"} is there if any were left out.
        """
        counts: dict[str, Any] = {"rows": self.rows, "bad": self.count, "dropped": self.dropped}
        if self.duplicates.total():
            counts["duplicates"] = {kind: self.duplicates[kind] for kind in ("exact", "near")}
        return {**counts, "reasons": dict(self.reasons), "samples": dict(self.samples)}

    def add(self, summary: Mapping[str, Any]) -> None:
        """Adds the `summary` of another part of the same source."""
        self.rows += summary["rows"]
        self.dropped += summary["dropped"]
        self.duplicates.update(summary.get("duplicates", {}))
        self.reasons.update(summary["reasons"])
        for reason, places in summary["samples"].items():
            known = self.samples.setdefault(reason, [])
            known.extend(places[: _SAMPLES - len(known)])
            self._last = places[-1], reason

    def _stop(self, place: str, reason: str) -> NoReturn:
        if self._max_share:
            share = f"; {self.count} of {self.rows} rows of {self._what} are bad, more than {self._max_share:g} of them"
        else:
            share = ""
        raise BadInput(f"{place}: {reason}{share}; fix the rows, or raise max_bad_share of the source to skip them")
