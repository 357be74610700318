"""The verb `update`: adds documents to an index, replaces and deletes them, without building it again."""

import pathlib
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.retrieval.embeddings.open_embeddings import open_embeddings
from pplx_jax.retrieval.open_index import open_index


def update_index(
    index: str | pathlib.Path,
    *,
    embeddings: str | pathlib.Path | None = None,
    delete: str | pathlib.Path | None = None,
    url: str | None = None,
) -> dict[str, Any]:
    """Deletes documents, then adds those of an embedding folder, which replace documents of equal ids.

    Args:
        index: the folder that `build_index` wrote, of any engine.
        embeddings: what `embed_file` wrote, see `open_embeddings`, with the model and the options of the index.
        delete: a text file of ids, one a line.
        url: of the server of the index, if it is not the one that the index names.

    Returns:
        {"deleted", "missing": ids that were not there, "added": number of vectors, "replaced": number of documents,
        "count": number of vectors that the index now has}.

    Raises:
        BadInput: neither `embeddings` nor `delete` is given, a file cannot be read, or see `SearchableIndex.update`.
    """
    if embeddings is None and delete is None:
        raise BadInput("give --embeddings FOLDER to add, --delete FILE to delete, or both")
    source = None if embeddings is None else open_embeddings(embeddings)
    ids = [] if delete is None else _read_ids(as_path(delete))
    opened = open_index(index, url)
    if source is not None:
        opened.require_same_form(source)  # before anything is deleted
    result: dict[str, Any] = {} if delete is None else opened.delete(ids)
    if source is not None:
        result |= opened.update(source)
    return result | {"count": opened.count}


def _read_ids(path: pathlib.Path) -> list[str]:
    try:
        ids = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); give a text file of ids, one a line") from None
    return [line.removesuffix("\r") for line in ids if line]
