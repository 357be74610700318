"""Opens finished embeddings: one folder that `embed` wrote, or several as if they were one."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.input_files import matching_paths
from pplx_jax.retrieval.embeddings.folder import COMMON, MANIFEST, PROGRESS, EmbeddingFolder


def open_embeddings(path: str | os.PathLike[str]) -> EmbeddingFolder:
    """Opens an embedding folder, or several: a folder of them, or a pattern. Their order is that of their paths.

    Raises:
        BadInput: there are none, one is unfinished or damaged, or they are of different models or forms.
    """
    folders = [folder for match in matching_paths(path) for folder in _folders_at(match)]
    found = [EmbeddingFolder.read(folder) for folder in sorted(folders, key=str)]
    if not found:
        raise BadInput(f"no embeddings match {path}: give the --output folder of `embed`, or several")
    return found[0] if len(found) == 1 else JoinedEmbeddings(path, found)


def open_to_index(path: str | os.PathLike[str]) -> EmbeddingFolder:
    """Opens embeddings for an index; see `open_embeddings`. Raises BadInput also if they hold no vectors."""
    source = open_embeddings(path)
    if source.totals()["count"] == 0:
        raise BadInput(f"{source.path} holds no vectors; its input had no row that could be embedded")
    return source


class JoinedEmbeddings(EmbeddingFolder):
    """Several embedding folders, read as one. The shards are numbered through; `settings` are those of the first."""

    def __init__(self, path: str | os.PathLike[str], folders: Sequence[EmbeddingFolder]):
        """Joins finished folders of one model. Use `open_embeddings` instead."""
        first = folders[0].settings
        for folder in folders[1:]:
            for name in COMMON:
                ours, theirs = getattr(first, name), getattr(folder.settings, name)
                if ours != theirs:
                    raise BadInput(
                        f"{folder.path} has {name}={theirs!r}, {folders[0].path} {ours!r}; embeddings that are read "
                        "together must agree"
                    )
        shards = dict(enumerate(shard for folder in folders for shard in folder.shards))
        digest = hashlib.sha256("".join(folder.settings.input_sha256 for folder in folders).encode()).hexdigest()
        settings = dataclasses.replace(first, input_sha256=digest)
        super().__init__(pathlib.Path(path), settings, folders[0].model, shards, complete=True)
        self._folders = folders

    @property
    def model_folder(self) -> pathlib.Path:
        return self._folders[0].model_folder

    def vector_paths(self) -> list[pathlib.Path]:
        return [path for folder in self._folders for path in folder.vector_paths()]

    def line_paths(self) -> list[pathlib.Path]:
        return [path for folder in self._folders for path in folder.line_paths()]


def _folders_at(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns an embedding folder itself, or those in it; a folder without any is left to the reader's message."""
    if not path.is_dir() or _is_embeddings(path):
        return [path]
    return [inner for inner in path.iterdir() if inner.is_dir() and _is_embeddings(inner)] or [path]


def _is_embeddings(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in (MANIFEST, PROGRESS))
