"""What a training loop reads: an endless stream of examples out of the token tables of a stage.

A place in the stream is one integer, and what stands there depends on the seed, the mixtures and the sizes of the
tables alone. So a run goes on at any place at once, on any number of hosts: nothing is kept but the place.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pplx_jax.data.gather import Gatherer
from pplx_jax.data.loader import shuffled
from pplx_jax.data.mixture import Batches, Curriculum, Mixture, phases
from pplx_jax.data.schedule import Turns
from pplx_jax.data.token_files import MANIFEST, TokenTable
from pplx_jax.data.vocabulary import Vocabulary
from pplx_jax.errors import BadInput

if TYPE_CHECKING:
    from pplx_jax.data.features import PackedBatch
    from pplx_jax.stages.base import Stage

_POOL_BATCHES = 8  # whose lengths say how many rows a batch fills

Tables = Mapping[str, Sequence[TokenTable]]


def open_tables(
    folder: str | pathlib.Path, *, stage: str | None = None, vocabulary: Vocabulary | None = None
) -> dict[str, list[TokenTable]]:
    """The tables of a stage by the names of their sources: FOLDER itself, FOLDER/NAME or FOLDER/NAME/SHARD.

    Raises:
        BadInput: there is none, or one is no whole table of this stage and vocabulary.
    """
    folder = pathlib.Path(folder)

    def tables(folder: pathlib.Path) -> list[TokenTable]:
        if (folder / MANIFEST).exists():
            return [TokenTable.open(folder, stage=stage, vocabulary=vocabulary)]
        inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
        return [TokenTable.open(path, stage=stage, vocabulary=vocabulary) for path in inner]

    if (folder / MANIFEST).exists():
        return {folder.name: tables(folder)}
    children = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = {path.name: tables(path) for path in children if not path.name.startswith(".")}
    found = {name: opened for name, opened in found.items() if opened}
    if not found:
        return {folder.name: [TokenTable.open(folder, stage=stage, vocabulary=vocabulary)]}  # says what is missing
    return found


class Selection(NamedTuple):
    """Examples of one batch: `table` [n] and `row` [n], and the group of batches that share a number of rows."""

    table: np.ndarray
    row: np.ndarray
    group: int


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One mixture: from place `start` on, the tables numbered `tables` take `turns`; `read` examples of each before."""

    start: int
    tables: np.ndarray
    turns: Turns
    batches: Batches
    read: np.ndarray


class Examples:
    """The stream of a stage.

    Args:
        tables: name -> shards, as `open_tables` gives them.
        data: which of them are read when; all, in proportion to their examples, where None.
        batch_size: B, examples a step over all hosts.
        seed: of the order.

    Attributes:
        count: examples of all tables that are read.

    Raises:
        BadInput: a weight names no table; a batch may want more examples of a table than it has.
    """

    def __init__(self, tables: Tables, data: Mixture | Curriculum | None, batch_size: int, seed: int):
        self._names = sorted(tables)
        self._shards = [shard for name in self._names for shard in tables[name]]
        self._first_shard = np.cumsum([0] + [len(tables[name]) for name in self._names])
        self._shard_ends = [np.cumsum([shard.count for shard in tables[name]]) for name in self._names]
        self._counts = np.array([int(ends[-1]) for ends in self._shard_ends])
        self._batch_size, self._seed = batch_size, seed
        self._plain = data is None and len(self._shards) == 1
        self._gather = Gatherer(self._shards)
        self._phases = self._lay_out(data or Mixture())
        self._require_enough()
        read = np.unique(np.concatenate([phase.tables for phase in self._phases]))
        self.count = int(self._counts[read].sum())

    def select(self, places: np.ndarray) -> Selection:
        """The examples at these places of the stream (of one batch, or of a host's share of one)."""
        places = np.asarray(places, np.int64)
        if self._plain:
            return Selection(np.zeros(len(places), np.int64), shuffled(places, self.count, self._seed), 0)
        starts = [phase.start for phase in self._phases]
        number = int(np.searchsorted(starts, places[0], side="right")) - 1
        phase, local = self._phases[number], places - starts[number]
        if phase.batches == "mixed":
            source, rank, group = phase.turns.source(local), phase.turns.rank(local), number
        else:
            batch, within = np.divmod(local, self._batch_size)
            source = phase.turns.source(batch)
            rank = phase.turns.rank(batch) * self._batch_size + within
            group = len(self._phases) + int(phase.tables[source[0]])
        table, row = phase.tables[source], np.empty(len(places), np.int64)
        for own in np.unique(source):
            here = source == own
            row[here] = self._order(int(phase.tables[own]), phase.read[own] + rank[here])
        return Selection(table, row, group)

    def rows(self, stage: Stage, multiple_of: int) -> dict[int, int]:
        """B of the packed rows, by group: batches of one group fill about as many rows, so one shape serves them."""
        if self._plain:
            return {0: stage.rows(self._shards[0], multiple_of)}
        pools: dict[int, Selection] = {}
        for number, phase in enumerate(self._phases):
            if phase.batches == "mixed":
                following = self._phases[number + 1].start if number + 1 < len(self._phases) else None
                batches = ((following or phase.start + self.count) - phase.start) // self._batch_size
                chosen = np.unique(np.linspace(0, max(batches - 1, 0), _POOL_BATCHES, dtype=np.int64))
                places = phase.start + chosen[:, None] * self._batch_size + np.arange(self._batch_size)
                picked = [self.select(batch) for batch in places]
                table, row = (np.concatenate([getattr(one, name) for one in picked]) for name in ("table", "row"))
                pools[number] = Selection(table, row, number)
                continue
            for table in phase.tables.tolist():
                wanted = min(int(self._counts[table]), _POOL_BATCHES * self._batch_size)
                row = self._order(table, np.arange(wanted))
                group = len(self._phases) + table
                pools[group] = Selection(np.full(wanted, table), row, group)
        return {group: stage.rows(self._table(pool, lengths_only=True), multiple_of) for group, pool in pools.items()}

    def batch(self, stage: Stage, selection: Selection, rows: Mapping[int, int], **place: int) -> PackedBatch:
        """The packed batch of selected examples.

        Args:
            stage: packs them.
            selection: of `select`.
            rows: of `rows`.
            place: handed on to `Stage.features`.
        """
        if self._plain:
            return stage.features(self._shards[0], selection.row, rows[0], **place)
        table = self._table(selection)
        return stage.features(table, np.arange(table.count), rows[selection.group], **place)

    def names(self, selection: Selection) -> list[str]:
        """The table that each selected example is from."""
        return [self._names[table] for table in selection.table]

    def read_before(self, place: int) -> dict[str, int]:
        """How many examples of every table stand before a place of the stream; passes over a table count on."""
        read = np.zeros(len(self._names), np.int64)
        for number, phase in enumerate(self._phases):
            if phase.start < place:
                following = self._phases[number + 1].start if number + 1 < len(self._phases) else place
                read[phase.tables] = phase.read + self._taken(phase, min(place, following) - phase.start)
        return dict(zip(self._names, read.tolist(), strict=True))

    def order(self, name: str, places: np.ndarray) -> np.ndarray:
        """Rows at these places of the endless stream of one table."""
        return self._order(self._names.index(name), places)

    def table(self, name: str, rows: np.ndarray) -> TokenTable:
        """These rows of one source as a table in memory."""
        return self._table(Selection(np.full(len(rows), self._names.index(name)), np.asarray(rows), 0))

    def _lay_out(self, data: Mixture | Curriculum) -> list[_Phase]:
        examples = dict(zip(self._names, self._counts.tolist(), strict=True))
        firsts = [self._shards[shard] for shard in self._first_shard[:-1]]
        weights = {name: table.manifest.get("weight", 1.0) for name, table in zip(self._names, firsts, strict=True)}
        laid_out: list[_Phase] = []
        read = np.zeros(len(self._names), np.int64)
        for first_step, mixture in phases(data):
            start = first_step * self._batch_size
            if laid_out:
                before = laid_out[-1]
                read[before.tables] = before.read + self._taken(before, start - before.start)
            shares = mixture.shares(examples, weights)
            tables = np.array([self._names.index(name) for name in shares])
            laid_out.append(_Phase(start, tables, Turns(list(shares.values())), mixture.batches, read[tables].copy()))
        return laid_out

    def _taken(self, phase: _Phase, places: int) -> np.ndarray:
        """Examples of each of the phase's tables in its first so many places."""
        if phase.batches == "mixed":
            return phase.turns.before(np.array([places]))[0]
        batches, rest = divmod(places, self._batch_size)
        taken = phase.turns.before(np.array([batches]))[0] * self._batch_size
        taken[phase.turns.source(np.array([batches]))[0]] += rest
        return taken

    def _require_enough(self) -> None:
        if self._plain:
            return  # the loader says so
        for phase in self._phases:
            most = np.full(len(phase.tables), self._batch_size)
            if phase.batches == "mixed":
                starts = np.arange(phase.turns.cycle)
                most = (phase.turns.before(starts + self._batch_size) - phase.turns.before(starts)).max(axis=0)
            for table, wanted in zip(phase.tables.tolist(), most.tolist(), strict=True):
                if wanted > self._counts[table]:
                    raise BadInput(
                        f"{self._names[table]}: {self._counts[table]} examples, and a batch of {self._batch_size} "
                        f"wants {wanted} of them; lower its weight or the batch size"
                    )

    def _order(self, table: int, places: np.ndarray) -> np.ndarray:
        seed = self._seed if self._plain else self._seed + (zlib.crc32(self._names[table].encode()) << 32)
        return shuffled(places, int(self._counts[table]), seed)

    def _table(self, selection: Selection, lengths_only: bool = False) -> TokenTable:
        shard, row = np.empty_like(selection.row), selection.row.copy()
        for table in np.unique(selection.table):
            here = selection.table == table
            ends = self._shard_ends[table]
            own = np.searchsorted(ends, row[here], side="right")
            row[here] -= np.concatenate([[0], ends])[own]
            shard[here] = self._first_shard[table] + own
        return self._gather(shard, row, lengths_only=lengths_only)
