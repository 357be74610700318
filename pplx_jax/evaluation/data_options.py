"""Options of a benchmark family: those of the call, over those of the file options.json beside its data."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pplx_jax.errors import BadInput
from pplx_jax.retrieval import rows

FILE = "options.json"
Options = TypeVar("Options")


def read_options(kind: type[Options], data: pathlib.Path, given: Mapping[str, Any]) -> Options:
    """Makes the frozen dataclass `kind` of both.

    Args:
        kind: its fields are the options there are.
        data: the folder that may hold options.json, one JSON object.
        given: win over the file.

    Raises:
        BadInput: an option that there is not, or a file that is no JSON object.
    """
    path, kept = data / FILE, {}
    if path.is_file():
        try:
            kept = rows.parse_object(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"{path}: {error}; give one JSON object") from None
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for where, options in ((str(path), kept), ("the call", given)):
        for name in options:
            if name not in names:
                raise BadInput(f"{where}: no option {name!r}; there are {', '.join(names)}")
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in {**kept, **given}.items()}
    return kind(**lists)
