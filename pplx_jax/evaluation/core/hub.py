"""Reads tables of benchmark data sets from the Hugging Face hub, or from the same files in a local folder."""

import dataclasses
import pathlib
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import parse_object
from pplx_jax.data.io.row_files import raw_rows
from pplx_jax.evaluation.core.revisions import revision_of_files


@dataclasses.dataclass(frozen=True)
class Table:
    """One split of one configuration of a data set.

    Attributes:
        repo: OWNER/NAME on the hub. A local folder has its files under NAME/CONFIG/SPLIT*, like the hub.
        config, split: their names on the hub.
        columns: required columns of strings. A missing value becomes "".
        revision: a commit of the hub, so that scores can be reproduced; None for the newest.
    """

    repo: str
    config: str
    split: str
    columns: tuple[str, ...]
    revision: str | None = None

    def read(self, data: pathlib.Path | None) -> list[dict[str, Any]]:
        """Returns the rows, in file order.

        Args:
            data: a local folder; None for the hub (or its cache).

        Raises:
            BadInput: the data is missing (the message says which files to put where), a column is missing, or a value
                is not a string.
        """
        rows = self._fetch() if data is None else self._read_files(data)
        found = dict.fromkeys(column for row in rows for column in row)
        missing = [column for column in self.columns if column not in found]
        if missing:
            line = f"no column {', '.join(missing)}, only {', '.join(found) or 'no rows'}"
            raise BadInput(f"{self.repo}, {self.config}: {line}; check that these are its files")
        empty = dict.fromkeys(self.columns, "")
        filled = [{**empty, **{name: value for name, value in row.items() if value is not None}} for row in rows]
        for number, row in enumerate(filled, start=1):
            for column in self.columns:
                if not isinstance(row[column], str):
                    line = f"{column} of row {number} is {type(row[column]).__name__}, not a string"
                    raise BadInput(f"{self.repo}, {self.config}: {line}; download its files again")
        return filled

    def digest(self, data: pathlib.Path | None) -> str:
        """Returns a string that changes with the rows: a hash of local files, or the revision on the hub."""
        return self.revision or "" if data is None else revision_of_files(self._files(data))

    def _files(self, data: pathlib.Path) -> list[pathlib.Path]:
        folder = data / self.repo.partition("/")[2] / self.config
        files = [
            path
            for path in sorted(folder.glob(f"{self.split}*"))
            if path.name[len(self.split)] in "-." and path.name.removesuffix(".gz").endswith((".parquet", ".jsonl"))
        ]
        if not files:
            raise BadInput(
                f"no {folder / self.split}-*.parquet (nor .jsonl): put the files of "
                f"https://huggingface.co/datasets/{self.repo} in {folder.parent}"
            )
        return files

    def _read_files(self, data: pathlib.Path) -> list[dict[str, Any]]:
        rows = []
        for path in self._files(data):
            for number, row in raw_rows(path):
                try:
                    rows.append(parse_object(row) if isinstance(row, bytes) else row)
                except ValueError as error:
                    raise BadInput(f"{path}, line {number}: {error}; download the file again") from None
        return rows

    def _fetch(self) -> list[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise BadInput(f"{self.repo} needs the library datasets: pip install 'pplx-jax[eval]'") from None
        try:
            table = datasets.load_dataset(self.repo, self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:  # no network, no such data set, a broken cache
            name = self.repo.partition("/")[2]
            raise BadInput(
                f"cannot fetch {self.repo} ({str(error).splitlines()[0]}); put its files in FOLDER/{name}/ "
                f"({self.config}/{self.split}-*.parquet, ...) and give --data FOLDER"
            ) from None
        return table.to_list()
