"""Which rows of the input files are in which shard of an embedding folder.

A shard is a range of rows, also over the ends of files. Its size follows bytes: a row counts the bytes of its line, or
of its columns in Parquet, and 1 KiB for its vector. A shard ends when it has 4 MiB. In a large input several of these
are joined, so that there are at most 2,000 shards.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
import pathlib
import sys
from collections.abc import Collection, Iterator, Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import numbered_lines
from pplx_jax.data.io.parquet import open_parquet
from pplx_jax.data.io.row_files import opened, raw_rows
from pplx_jax.retrieval.embeddings.input_rows import BadRow, InputRow, columns_to_read, parse_row

SHARD_BYTES = 4 << 20
MOST_SHARDS = 2000
_VECTOR_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """A range of rows.

    Attributes:
        first: its first row, from 0.
        rows: number of rows.
        weight: approximate bytes.
    """

    first: int
    rows: int
    weight: int


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """The shards of an input.

    Attributes:
        files: F files.
        rows_before: F + 1 numbers of rows in the files before each.
        numbers_before: F numbers to add to the lines of each file, so that no two rows of the input have one number.
        shards: in order.
    """

    files: Sequence[pathlib.Path]
    rows_before: Sequence[int]
    numbers_before: Sequence[int]
    shards: Sequence[PlannedShard]

    @property
    def rows(self) -> int:
        """The number of rows of the input."""
        return self.rows_before[-1]

    def where(self, number: int) -> str:
        """Returns "FILE, line N" of the row with this number."""
        file, line = self._place(number)
        return f"{file}, line {line}"

    def line(self, number: int) -> str:
        """Returns "line N" of the row with this number; with its file if there are several."""
        file, line = self._place(number)
        return f"line {line}" + (f" of {file}" if len(self.files) > 1 else "")

    def _place(self, number: int) -> tuple[pathlib.Path, int]:
        file = bisect.bisect_left(self.numbers_before, number) - 1
        return self.files[file], number - self.numbers_before[file]

    def sha256(self) -> str:
        """Returns the digest of the file, or of the digests of several files."""
        digests = [_sha256(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(
        self, text_field: str, chunks_field: str, wanted: Collection[int]
    ) -> Iterator[tuple[int, list[InputRow | BadRow]]]:
        """Yields (number, rows) of the wanted shards, in order. Reads only the files that have some of their rows.

        Args:
            text_field, chunks_field: as in `input_rows.read_rows`.
            wanted: numbers of shards.

        Raises:
            BadInput: a file cannot be read, or has changed.
        """
        file, place, rows = -1, 0, iter(())
        for number in sorted(wanted):
            batch: list[InputRow | BadRow] = []
            begin, end = self.shards[number].first, self.shards[number].first + self.shards[number].rows
            while begin < end:
                if begin >= self.rows_before[file + 1]:
                    file = bisect.bisect_right(self.rows_before, begin) - 1
                    rows = raw_rows(self.files[file], columns_to_read(self.files[file], text_field, chunks_field))
                    place = self.rows_before[file]
                stop = min(end, self.rows_before[file + 1])
                taken = list(itertools.islice(rows, begin - place, stop - place))
                if len(taken) != stop - begin:
                    raise BadInput(f"{self.files[file]} has fewer rows than before; do not change the input meanwhile")
                before = self.numbers_before[file]
                batch += [parse_row(before + line, source, text_field, chunks_field) for line, source in taken]
                begin = place = stop
            yield number, batch


def plan_shards(
    files: Sequence[pathlib.Path], text_field: str, chunks_field: str, shard_size: int | None = None
) -> ShardPlan:
    """Reads the input once and divides its rows.

    Args:
        files: JSON lines, plain or gzipped, or Parquet.
        text_field, chunks_field: names of the columns; their bytes count in Parquet.
        shard_size: rows of a shard in place of bytes.

    Raises:
        BadInput: a file cannot be read.
    """
    shards, rows_before, numbers_before = _Shards(shard_size), [0], [0]
    for file in files:
        if file.suffix == ".parquet":
            rows = numbers = _add_parquet(shards, file, columns_to_read(file, text_field, chunks_field))
        else:
            rows = numbers = 0
            for number, line in numbered_lines(file):
                shards.add(1, len(line))
                rows, numbers = rows + 1, number
        rows_before.append(rows_before[-1] + rows)
        numbers_before.append(numbers_before[-1] + numbers)
    return ShardPlan(files, rows_before, numbers_before[:-1], shards.joined())


class _Shards:
    def __init__(self, shard_size: int | None):
        self._by_bytes = shard_size is None
        self._most_rows = shard_size or sys.maxsize
        self._most_bytes = SHARD_BYTES if self._by_bytes else sys.maxsize
        self._full: list[PlannedShard] = []
        self._first = self._rows = self._bytes = 0

    def add(self, rows: int, bytes_of_each: int) -> None:
        each = bytes_of_each + _VECTOR_BYTES
        while rows:
            missing = min(self._most_rows - self._rows, -(-(self._most_bytes - self._bytes) // each))
            taken = min(rows, missing)
            self._rows, self._bytes, rows = self._rows + taken, self._bytes + taken * each, rows - taken
            if self._rows >= self._most_rows or self._bytes >= self._most_bytes:
                self._close()

    def _close(self) -> None:
        self._full.append(PlannedShard(self._first, self._rows, self._bytes))
        self._first, self._rows, self._bytes = self._first + self._rows, 0, 0

    def joined(self) -> list[PlannedShard]:
        """Returns the shards; those of a size in bytes are joined if there are too many."""
        if self._rows:
            self._close()
        together = max(math.ceil(len(self._full) / MOST_SHARDS), 1) if self._by_bytes else 1
        groups = (self._full[begin : begin + together] for begin in range(0, len(self._full), together))
        return [
            PlannedShard(group[0].first, sum(one.rows for one in group), sum(one.weight for one in group))
            for group in groups
        ]


def _add_parquet(shards: _Shards, path: pathlib.Path, columns: Collection[str] | None) -> int:
    """Adds the rows of each row group, which count the mean of the group. Returns the number of rows."""
    with opened(path) as file:
        metadata = open_parquet(file, str(path)).metadata
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        parts = [group.column(column) for column in range(group.num_columns)]
        read = [part for part in parts if columns is None or _is_of(part.path_in_schema, columns)]
        shards.add(group.num_rows, sum(part.total_uncompressed_size for part in read) // max(group.num_rows, 1))
    return metadata.num_rows


def _is_of(path: str, columns: Collection[str]) -> bool:
    """Returns whether a leaf of a Parquet file, such as "a.b.list.element", belongs to one of the columns ("a.b")."""
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
