"""The endless stream of examples that a training loop reads from the token tables of a stage.

A place in the stream is one integer. The example there depends only on the seed, the mixtures and the sizes of the
tables. So a run resumes at any place at once, on any number of hosts, and the place is the only state to save.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import NamedTuple

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.balance import bin_size, deal
from pplx_jax.data.batches.batch_spec import BatchSpec
from pplx_jax.data.batches.gather import Gatherer, example_lengths
from pplx_jax.data.batches.order import shuffled
from pplx_jax.data.batches.packed_batch import PackedBatch
from pplx_jax.data.batches.schedule import Turns
from pplx_jax.data.sources.mixture import Batches, Curriculum, Mixture, phases
from pplx_jax.data.tokens.open_tables import Tables
from pplx_jax.data.tokens.token_table import TokenTable

_WINDOW_EXAMPLES, _WINDOW_BATCHES = 1 << 15, 64  # most examples and most batches of a window
_HASHES_AT_ONCE = 1 << 22
_LOOK_AHEAD, _LOOKED_AT = 1000, 12  # `sequences` packs _LOOKED_AT of the first _LOOK_AHEAD batches


class Selection(NamedTuple):
    """Examples of one batch: `table` [n], `row` [n], and the group of batches with the same number of sequences."""

    table: np.ndarray
    row: np.ndarray
    group: int


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One mixture: tables numbered `tables` take `turns` from `start` to `stop`; `read` of each were read earlier."""

    start: int
    stop: int | None
    tables: np.ndarray
    turns: Turns
    batches: Batches
    read: np.ndarray


class _Window(NamedTuple):
    """Consecutive batches whose examples are dealt together: `table` and `row` of each place."""

    table: np.ndarray
    row: np.ndarray


class Examples:
    """The stream of a stage.

    Args:
        tables: name -> shards, as `open_tables` returns them.
        data: which tables are read when; if None, all in proportion to their examples.
        batch_size: B, examples per step over all hosts.
        seed: of the order.
        held_out: the last examples of each table, this many, are never in the stream. A table that would have fewer
            left than these, or fewer than a batch, holds none out.

    Attributes:
        count: examples of all tables that are read, without those held out.
        read_names: names of the tables that are read.
        pad_id: token id of padding.

    Raises:
        BadInput: a weight names no table; a batch may need more examples of a table than it has.
    """

    def __init__(
        self, tables: Tables, data: Mixture | Curriculum | None, batch_size: int, seed: int, held_out: int = 0
    ):
        self._names = sorted(tables)
        self.pad_id = tables[self._names[0]][0].pad_id
        self._shards = [shard for name in self._names for shard in tables[name]]
        self._first_shard = np.cumsum([0] + [len(tables[name]) for name in self._names])
        self._shard_ends = [np.cumsum([shard.count for shard in tables[name]]) for name in self._names]
        whole = np.array([int(ends[-1]) for ends in self._shard_ends])
        self._held_out = np.where(whole - held_out >= max(held_out, batch_size), held_out, 0)
        self._counts = whole - self._held_out
        self._batch_size, self._seed = batch_size, seed
        self._plain = data is None and len(self._shards) == 1
        self._gather = Gatherer(self._shards)
        self._phases = self._lay_out(data or Mixture())
        self._require_enough()
        read = np.unique(np.concatenate([phase.tables for phase in self._phases]))
        self.count = int(self._counts[read].sum())
        self.read_names = [self._names[table] for table in read]
        # Batches vary the less the larger they are.
        self._window_batches = min(max(_WINDOW_EXAMPLES // batch_size, 1), _WINDOW_BATCHES)
        self._window = functools.lru_cache(maxsize=2)(self._deal_window)

    def select(self, places: np.ndarray) -> Selection:
        """Returns the examples at these places: consecutive places of one batch or of a host's share of it."""
        places = np.asarray(places, np.int64)
        step, first = divmod(int(places[0]), self._batch_size)
        number = int(np.searchsorted([phase.start for phase in self._phases], places[0], side="right")) - 1
        phase = self._phases[number]
        batch = step - phase.start // self._batch_size
        source = -1 if phase.batches == "mixed" else int(phase.turns.source(np.array([batch]))[0])
        if source >= 0:
            batch = int(phase.turns.rank(np.array([batch]))[0])
        window, within = divmod(batch, self._window_batches)
        dealt = self._window(number, source, window)
        at = within * self._batch_size + first + (places - places[0])
        group = number if source < 0 else len(self._phases) + int(phase.tables[source])
        return Selection(dealt.table[at], dealt.row[at], group)

    def sequences(self, spec: BatchSpec, multiple_of: int) -> dict[int, int]:
        """B of the packed sequences, by group: batches of one group fill about as many, so one shape serves them.

        Found by packing some batches of each group. Three in four need no more sequences; the others are cut by a few
        tokens.
        """
        wanted: dict[int, list[int]] = {}
        for number, phase in enumerate(self._phases):
            steps = (phase.stop - phase.start) // self._batch_size if phase.stop else _LOOK_AHEAD
            first = phase.start // self._batch_size
            groups = [number] if phase.batches == "mixed" else (len(self._phases) + phase.tables).tolist()
            batches = np.unique(np.linspace(0, min(steps, _LOOK_AHEAD) - 1, _LOOKED_AT, dtype=np.int64))
            if phase.batches != "mixed":
                source = phase.turns.source(np.arange(min(steps, phase.turns.cycle)))
                batches = np.concatenate([np.flatnonzero(source == own)[:_LOOKED_AT] for own in range(len(groups))])
            for batch in batches.tolist():
                # If the spec is of a part of a batch, the first part is measured.
                selection = self.select((first + batch) * self._batch_size + np.arange(spec.batch_size))
                needed = spec.sequences_needed(self._table(selection, lengths_only=True), multiple_of)
                wanted.setdefault(selection.group, []).append(needed)
        return {group: sorted(needed)[len(needed) * 3 // 4] for group, needed in wanted.items()}

    def pack(self, spec: BatchSpec, selection: Selection, sequences: int, first_sequence: int = 0) -> PackedBatch:
        """Packs selected examples; `sequences` and `first_sequence` as in `BatchSpec.pack`."""
        if self._plain:
            return spec.pack(self._shards[0], selection.row, sequences, first_sequence)
        table = self._table(selection)
        return spec.pack(table, np.arange(table.count), sequences, first_sequence)

    def names(self, selection: Selection) -> list[str]:
        """Returns the name of the table of each selected example."""
        return [self._names[table] for table in selection.table]

    def read_before(self, place: int) -> dict[str, int]:
        """Returns the examples of every table before a place of the stream, summed over all passes over the table."""
        read = np.zeros(len(self._names), np.int64)
        for phase in self._phases:
            if phase.start < place:
                stop = place if phase.stop is None else min(place, phase.stop)
                read[phase.tables] = phase.read + self._taken(phase, stop - phase.start)
        return dict(zip(self._names, read.tolist(), strict=True))

    def unread(self, name: str, steps: int) -> np.ndarray:
        """Returns the rows of one table that the first `steps` batches do not hold, in order; all if none are left."""
        number, place = self._names.index(name), steps * self._batch_size
        count, read = int(self._counts[number]), self.read_before(place)[name]
        if read >= count:
            return np.arange(count)
        order = self._order(number, np.arange(count))
        here = max((one for one, phase in enumerate(self._phases) if phase.start <= place), default=0)
        phase = self._phases[here]
        if number not in phase.tables:
            return order[read:]
        # Earlier windows are read completely; the current one is dealt, so its rows are in another order.
        source = int(np.flatnonzero(phase.tables == number)[0])
        batch = (place - phase.start) // self._batch_size
        if phase.batches == "mixed":
            window, within = divmod(batch, self._window_batches)
            dealt = self._window(here, -1, window)
            before = phase.turns.before(np.array([window * self._window_batches * self._batch_size]))[0, source]
        else:
            own = int(phase.turns.before(np.array([batch]))[0, source])
            window, within = divmod(own, self._window_batches)
            dealt = self._window(here, source, window)
            before = window * self._window_batches * self._batch_size
        met = np.zeros(count, bool)
        met[order[: int(phase.read[source] + before)]] = True
        under_way = slice(0, within * self._batch_size)
        met[dealt.row[under_way][dealt.table[under_way] == number]] = True
        return order[~met[order]]

    def held_out(self, name: str) -> np.ndarray:
        """Returns the rows of one table that are never in the stream; none if the table is too small."""
        number = self._names.index(name)
        return self._counts[number] + np.arange(self._held_out[number])

    def are_read(self, documents: np.ndarray) -> np.ndarray:
        """Returns for each document hash whether the stream has such a document. Examples of text have no hash."""
        found = np.zeros(len(documents), bool)
        for name in self.read_names if self._shards[0].kind != "text" else ():
            number = self._names.index(name)
            left = int(self._counts[number])
            for shard in self._shards[self._first_shard[number] : self._first_shard[number + 1]]:
                stop = min(left, shard.count)
                for start in range(0, stop, _HASHES_AT_ONCE):
                    found |= np.isin(documents, shard["document_hash"][start : min(start + _HASHES_AT_ONCE, stop)])
                left -= stop
        return found

    def table(self, name: str, rows: np.ndarray) -> TokenTable:
        """Returns these rows of one source as a table in memory."""
        return self._table(Selection(np.full(len(rows), self._names.index(name)), np.asarray(rows), 0))

    def _lay_out(self, data: Mixture | Curriculum) -> list[_Phase]:
        examples = dict(zip(self._names, self._counts.tolist(), strict=True))
        firsts = [self._shards[shard] for shard in self._first_shard[:-1]]
        weights = {name: table.manifest.get("weight", 1.0) for name, table in zip(self._names, firsts, strict=True)}
        laid_out: list[_Phase] = []
        read = np.zeros(len(self._names), np.int64)
        schedule = phases(data)
        stops = [step * self._batch_size for step, _ in schedule[1:]] + [None]
        for first_step, mixture in schedule:
            start = first_step * self._batch_size
            if laid_out:
                before = laid_out[-1]
                read[before.tables] = before.read + self._taken(before, start - before.start)
            shares = mixture.shares(examples, weights)
            tables = np.array([self._names.index(name) for name in shares])
            turns = Turns(list(shares.values()))
            stop = stops[len(laid_out)]
            laid_out.append(_Phase(start, stop, tables, turns, mixture.batches, read[tables].copy()))
        return laid_out

    def _taken(self, phase: _Phase, places: int) -> np.ndarray:
        """Returns the examples of each of the phase's tables in its first `places` places."""
        if phase.batches == "mixed":
            return phase.turns.before(np.array([places]))[0]
        batches, rest = divmod(places, self._batch_size)
        taken = phase.turns.before(np.array([batches]))[0] * self._batch_size
        taken[phase.turns.source(np.array([batches]))[0]] += rest
        return taken

    def _require_enough(self) -> None:
        for phase in self._phases:
            most = np.full(len(phase.tables), self._batch_size)
            if phase.batches == "mixed":
                starts = np.arange(phase.turns.cycle)
                most = (phase.turns.before(starts + self._batch_size) - phase.turns.before(starts)).max(axis=0)
            for table, wanted in zip(phase.tables.tolist(), most.tolist(), strict=True):
                if wanted > self._counts[table]:
                    where = self._shards[self._first_shard[table]].folder if self._plain else self._names[table]
                    raise BadInput(
                        f"{where}: {self._counts[table]} examples, a batch wants {wanted} of them; "
                        "lower its weight or the batch size"
                    )

    def _deal_window(self, number: int, source: int, window: int) -> _Window:
        """Deals one window of a phase's batches; if `source` is not negative, of the batches of that source."""
        phase = self._phases[number]
        first = window * self._window_batches * self._batch_size
        last = first + self._window_batches * self._batch_size
        if source < 0:
            last = last if phase.stop is None else min(last, phase.stop - phase.start)
            places = np.arange(first, last)
            sources, rank = phase.turns.source(places), phase.turns.rank(places)
        else:
            if phase.stop is not None:
                batches = phase.turns.before(np.array([(phase.stop - phase.start) // self._batch_size]))[0, source]
                last = min(last, int(batches) * self._batch_size)
            rank = np.arange(first, last)
            sources = np.full(len(rank), source)
        table, at = phase.tables[sources], phase.read[sources] + rank
        passes = at // self._counts[table]
        row = np.empty(len(at), np.int64)
        for own in np.unique(sources):
            here = sources == own
            row[here] = self._order(int(phase.tables[own]), at[here])
        # Dealing stays within one pass over a table, to keep an example of one pass away from the same one in the next.
        groups = np.unique(np.stack([table, passes]), axis=1, return_inverse=True)[1].reshape(-1)
        if self._shards[0].kind == "text":  # the rows of a text table are already full
            return _Window(table, row)
        lengths, keys = self._lengths_and_documents(table, row)
        dealt = deal(groups, lengths, keys, bin_size(self._batch_size), self._batch_size)
        return _Window(table[dealt], row[dealt])

    def _lengths_and_documents(self, table: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of each example, and the hash of its document."""
        shard, row = self._in_shards(table, row)
        lengths, documents = np.empty((2, len(row)), np.int64)
        for number in np.unique(shard):
            here = shard == number
            lengths[here] = example_lengths(self._shards[number], row[here])
            documents[here] = self._shards[number]["document_hash"][row[here]]
        return lengths, documents

    def _order(self, table: int, places: np.ndarray) -> np.ndarray:
        seed = self._seed if self._plain else self._seed + (zlib.crc32(self._names[table].encode()) << 32)
        return shuffled(places, int(self._counts[table]), seed)

    def _table(self, selection: Selection, lengths_only: bool = False) -> TokenTable:
        shard, row = self._in_shards(selection.table, selection.row)
        return self._gather(shard, row, lengths_only=lengths_only)

    def _in_shards(self, table: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shard of each example, and its row there."""
        shard, inner = np.empty_like(row), row.copy()
        for number in np.unique(table):
            here = table == number
            ends = self._shard_ends[number]
            own = np.searchsorted(ends, row[here], side="right")
            inner[here] -= np.concatenate([[0], ends])[own]
            shard[here] = self._first_shard[number] + own
        return shard, inner
