"""Options of a benchmark family: from options.json in its data folder, overridden by arguments."""

import pathlib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.json_lines import parse_object

FILE = "options.json"
Options = TypeVar("Options")
_NAMES = {int: "an integer", str: "a string", types.NoneType: "null"}
_PLURALS = {int: "integers", str: "strings"}


def read_options(kind: type[Options], data: pathlib.Path, given: Mapping[str, Any]) -> Options:
    """Builds the dataclass `kind` from options.json and `given`.

    Args:
        kind: a frozen dataclass whose fields are the options.
        data: the folder that may contain options.json, one JSON object.
        given: options that override those of the file.

    Raises:
        BadInput: an option is unknown or has the wrong type, or the file is not a JSON object.
    """
    path, stored = data / FILE, {}
    if path.is_file():
        try:
            stored = parse_object(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"{path}: {error}; give one JSON object") from None
    hints, chosen = get_type_hints(kind), {}
    for where, options in ((str(path), stored), ("arguments", given)):
        for name, value in options.items():
            if name not in hints:
                raise BadInput(f"{where}: no option {name!r}; the options are {', '.join(hints)}")
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
        return f"a list of {_PLURALS[get_args(hint)[0]]}"
    return _NAMES[hint]
