"""Options of a benchmark family: those of the call, over those of the file options.json beside its data."""

import pathlib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io import json_lines as rows

FILE = "options.json"
Options = TypeVar("Options")
_NAMES = {int: "a whole number", str: "a text", types.NoneType: "null"}


def read_options(kind: type[Options], data: pathlib.Path, given: Mapping[str, Any]) -> Options:
    """Makes the frozen dataclass `kind` of both.

    Args:
        kind: its fields are the options there are.
        data: the folder that may hold options.json, one JSON object.
        given: win over the file.

    Raises:
        BadInput: an option that there is not or that is of another type, or a file that is no JSON object.
    """
    path, kept = data / FILE, {}
    if path.is_file():
        try:
            kept = rows.parse_object(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"{path}: {error}; give one JSON object") from None
    hints, chosen = get_type_hints(kind), {}
    for where, options in ((str(path), kept), ("the call", given)):
        for name, value in options.items():
            if name not in hints:
                raise BadInput(f"{where}: no option {name!r}; there are {', '.join(hints)}")
            chosen[name] = tuple(value) if isinstance(value, list) else value
            if not _fits(chosen[name], hints[name]):
                raise BadInput(f"{where}: {name}={value!r}; set it to {_in_words(hints[name])}")
    return kind(**chosen)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is types.UnionType:
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    return type(value) is hint


def _in_words(hint: Any) -> str:
    if get_origin(hint) is types.UnionType:
        return " or ".join(map(_in_words, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_in_words(get_args(hint)[0])} each"
    return _NAMES[hint]
