"""The JSON file that describes an index: its model, the form of its vectors, and what else they depend on.

A new index takes the place of one that is there if it is the same index again, or with `--replace`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.core.paths import relative
from pplx_jax.retrieval.embeddings.folder import COMMON, EmbeddingFolder, Settings

UPDATED = "updated"
_NOT_COMPARED = ("shard_size",)  # shards of another size have the same vectors
_FIX = "make the index again"


def describe(source: EmbeddingFolder, output: pathlib.Path) -> dict[str, Any]:
    """Returns what every description has of the embeddings. The path of the model is relative to `output`."""
    settings = source.settings
    return {
        "model": relative(source.model_folder, output),
        "model_fingerprint": settings.model_fingerprint,
        "dims": settings.dims,
        "quantization": settings.quantization,
        "bit_order": settings.bit_order,
        **({"prompts": settings.prompts} if settings.prompts else {}),
        "embedded_from": _embedded_from(settings),
    }


@contextlib.contextmanager
def read_description(file: pathlib.Path, version: int) -> Iterator[dict[str, Any]]:
    """Yields a description. An error in its values, also one that the block raises, becomes BadInput.

    Raises:
        BadInput: the file cannot be read, is damaged or of another format than `version`.
    """
    description = read_json(file, fix=_FIX)
    try:
        if description["format"] != version:
            raise ValueError(f"format {description['format']}, this version reads {version}")
        yield description
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} cannot be used ({error}); {_FIX}") from None


def identity(settings: Settings, **more: Any) -> dict[str, Any]:
    """Returns everything that the vectors of an index depend on, and `more`, by name. The model is the first."""
    first = {name: getattr(settings, name) for name in COMMON}
    return {**first, **_embedded_from(settings), **more}


def _embedded_from(settings: Settings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {name: values[name] for name in values if name not in (*COMMON, *_NOT_COMPARED)}


def require_replaceable(where: str, former: Mapping[str, Any], new: Mapping[str, Any], *, replace: bool) -> bool:
    """Checks that an index may take the place of a former one.

    Args:
        where: the former index in words, for the message.
        former: its description.
        new: the `identity` of the index to build.
        replace: whether the user wants it replaced.

    Returns:
        Whether they differ.

    Raises:
        BadInput: they differ, and `replace` is false.
    """
    lost = _difference({"prompts": {}, **former, **former.get("embedded_from", {})}, new)
    if lost and not replace:
        raise BadInput(f"{where} has an index with {lost}; give another --output, or --replace to replace it")
    return lost is not None


def _difference(former: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Returns in words what building an index again would lose; None if it would be the same index."""
    for name, value in new.items():
        if name in former and former[name] != value:
            return "other texts" if name == "input_sha256" else f"{name}={former[name]!r}, not {value!r}"
    return "changes of `update`" if former.get(UPDATED) else None
