"""Whether a new index may take the place of one that is there: the same index again, or any other with `--replace`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.retrieval.embedding_folder import COMMON, Settings

UPDATED = "updated"
_NO_PART = ("shard_size",)  # another number of shards gives the same vectors


def embedded_from(settings: Settings) -> dict[str, Any]:
    """Returns what the description of an index stores of the settings of its vectors, beside `COMMON`."""
    values = dataclasses.asdict(settings)
    return {name: values[name] for name in values if name not in (*COMMON, *_NO_PART)}


def identity(settings: Settings, **more: Any) -> dict[str, Any]:
    """Returns everything that the vectors of an index depend on, and `more`, by name. The model is the first."""
    first = {name: getattr(settings, name) for name in COMMON}
    return {**first, **embedded_from(settings), **more}


def described_identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `identity` of a described index, as far as it is known, and whether it was updated."""
    return {"prompts": {}, **description, **description.get("embedded_from", {})}


def difference(former: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Returns in words what building an index again would lose, or None if it would be the same index.

    Args:
        former: the `described_identity` of the index that is there.
        new: the `identity` of the index to build.
    """
    for name, value in new.items():
        if name in former and former[name] != value:
            return "other texts" if name == "input_sha256" else f"{name}={former[name]!r}, not {value!r}"
    return "changes of `update`" if former.get(UPDATED) else None


def require_replaceable(where: str, former: Mapping[str, Any], new: Mapping[str, Any], *, replace: bool) -> bool:
    """Checks that an index may take the place of a former one.

    Args:
        where: the former index in words, for the message.
        former, new: see `difference`.
        replace: whether the user wants it replaced.

    Returns:
        Whether they differ.

    Raises:
        BadInput: they differ, and `replace` is false.
    """
    lost = difference(former, new)
    if lost and not replace:
        raise BadInput(f"{where} has an index with {lost}; give another --output, or --replace to replace it")
    return lost is not None
