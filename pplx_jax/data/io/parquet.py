"""Reads Parquet rows with strings as bytes, so that a string that is not UTF-8 makes only its own row bad."""

from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from pplx_jax.core.errors import BadInput

_ROWS_AT_ONCE = 1024


def parquet_rows(file: BinaryIO, path: str, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows in order, without null values. Strings are bytes, also within lists and structs.

    A column with a time that Python cannot represent, such as the year 10000, has its dates and times as strings.

    Args:
        file: the open file.
        path: its name in messages.
        columns: names of the columns to read, `a.b` for field b of column a; None for all. If the file has none of
            them, all are read.

    Raises:
        BadInput: it is not a Parquet file, it is damaged, or pyarrow is not installed.
    """
    table = open_parquet(file, path)
    import pyarrow

    number = 0
    try:
        wanted = _wanted(table, columns)
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=_paths(table, wanted)):
            found = [name for name in batch.schema.names if name in wanted]
            for values in zip(*(_as_python(batch.column(name)) for name in found), strict=True):
                number += 1
                yield {name: value for name, value in zip(found, values, strict=True) if value is not None}
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise damaged(path, number + 1, error) from None


def _wanted(table, columns: Collection[str] | None) -> dict[str, list[str]]:
    """Returns the columns to read, each with the paths of its fields that are needed: its name for all of them."""
    names: list[str] = table.schema_arrow.names
    leaves = [table.schema.column(number).path for number in range(len(table.schema))]
    wanted: dict[str, list[str]] = {}
    for path in columns or ():
        top = path if path in names else path.partition(".")[0]
        if top in names:
            known = any(f"{leaf}.".startswith(f"{path}.") for leaf in leaves)
            wanted.setdefault(top, []).append(path if known else top)
    return wanted or {name: [name] for name in names}


def _paths(table, wanted: dict[str, list[str]]) -> list[str] | None:
    """Returns the paths to read; None for all, because Parquet takes a name with a dot for a path into a column."""
    if any("." in name for name in table.schema_arrow.names):
        return None
    return [path for paths in wanted.values() for path in paths]


def open_parquet(file: BinaryIO, path: str):
    """Opens a `pyarrow.parquet.ParquetFile`. Raises BadInput as `parquet_rows`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadInput(f"{path}: Parquet needs pyarrow: pip install pyarrow, or give JSON lines") from None
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise BadInput(f"{path}: not a Parquet file ({str(error).splitlines()[0]}); copy the file again") from None


def decoded(value: Any) -> Any:
    """Returns the value with bytes decoded, also within lists and structs. Bytes that are not UTF-8 stay bytes."""
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def damaged(path: str, line: int, error: Exception) -> BadInput:
    """Returns the error for a file that cannot be read from `line` on."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return BadInput(f"{path}:{line}: cannot be read from here on ({reason}); copy the file again")


def _as_python(column) -> list[Any]:
    try:
        return column.cast(_as_bytes(column.type)).to_pylist()
    except (OverflowError, ValueError):  # a time that Python cannot represent
        return column.cast(_as_bytes(column.type, times=True)).to_pylist()


def _as_bytes(kind, times: bool = False):
    """Returns the Arrow type with strings replaced by bytes and, if `times`, dates and times by strings."""
    import pyarrow

    types = pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind):
        return pyarrow.large_binary()
    if times and types.is_duration(kind):
        return pyarrow.int64()
    if times and types.is_temporal(kind):
        return pyarrow.string()
    if types.is_dictionary(kind):
        return _as_bytes(kind.value_type, times)
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.large_list(_as_bytes(kind.value_type, times))
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type, times)) for field in kind])
    return kind
