"""Reads the values of a resolved recipe (`config.gin` of a run) as text, without gin and without what it names."""

import re
from collections.abc import Mapping

# Strings, which may contain anything, and macros: %NAME, %scope/NAME.
_STRING_OR_MACRO = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|%([A-Za-z_][\w./]*)""")


def read_resolved(text: str) -> dict[str, str]:
    """Returns key -> value as gin text. Macros are keys without a dot."""
    values = {}
    for line in text.splitlines():
        key, equals, rest = line.partition(" = ")
        if equals and not key.startswith("#"):
            value, mark, _ = rest.rpartition("  # ")
            values[key] = value if mark else rest
    return values


def with_macro_values(values: Mapping[str, str]) -> dict[str, str]:
    """Returns what `read_resolved` found with the value of each macro in its place."""
    return {key: _without_macros(value, values) for key, value in values.items()}


def _without_macros(value: str, values: Mapping[str, str], within: tuple[str, ...] = ()) -> str:
    def replaced(match: re.Match[str]) -> str:
        string, name = match.groups()
        if string is not None or name not in values or name in within:
            return match[0]
        return _without_macros(values[name], values, (*within, name))

    return _STRING_OR_MACRO.sub(replaced, value)
