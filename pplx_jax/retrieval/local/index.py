"""An index folder with what was added to it and deleted from it since it was built.

    index.json, ...  what `build` wrote, see `index_part`
    added/00001/ ... the same for each update: the index of its documents
    updates.json     {"format", "added": number of these folders, "version": of the file with the marks}
    deleted-*.npz    for each folder, bool [N]: vectors that were deleted or replaced

`updates.json` is written last, so an update counts completely or not at all. Every search reads all folders and merges
their hits. Build the index again when there are many: a search takes a little longer with each.
"""

import contextlib
import io
import itertools
import pathlib
import zipfile
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path, read_json, write_json
from pplx_jax.core.paths import as_path
from pplx_jax.core.sole_owner import sole_owner
from pplx_jax.retrieval.embeddings.folder import COMMON, EmbeddingFolder, document_of
from pplx_jax.retrieval.local.build import build
from pplx_jax.retrieval.local.index_part import UPDATES, IndexPart
from pplx_jax.retrieval.search_options import SearchOptions
from pplx_jax.retrieval.searchable_index import Hit, SearchableIndex

FORMAT = 1
_DESCRIBED = (*COMMON, "count")
_FIX = "build the index again"


class LocalIndex(SearchableIndex):
    """An index folder, searched by FAISS, NumPy or JAX; more attributes in `BaseIndex`.

    Attributes:
        parts: the index that was built, then the index of each update.
    """

    def __init__(self, path: str | pathlib.Path):
        """Opens the folder.

        Raises:
            BadInput: there is no index, or it is damaged or of another version.
        """
        path = as_path(path)
        first = IndexPart.load(path)
        super().__init__(path, {"model": str(first.model)} | {name: getattr(first, name) for name in _DESCRIBED})
        self._read()

    def _read(self) -> None:
        """Opens all parts that the folder has now."""
        self._updates = _read_updates(self.path)
        added = self._updates["added"] if self._updates else 0
        folders = [self.path, *(_added(self.path, number) for number in range(1, added + 1))]
        marks = self._read_marks()
        self.parts = [IndexPart.load(folder, marks.get(place)) for place, folder in enumerate(folders)]
        self._marks = [marks.get(place, np.zeros(part.count, bool)) for place, part in enumerate(self.parts)]
        self.count = sum(int(np.count_nonzero(~mark)) for mark in self._marks)

    def _read_marks(self) -> dict[int, np.ndarray]:
        if not self._updates:
            return {}
        file = _marks_file(self.path, self._updates["version"])
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                return {int(name.removeprefix("arr_")): stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{file} cannot be used ({error}); {_FIX}") from None

    def search_pooled(
        self, queries: np.ndarray, k: int = 10, options: SearchOptions = SearchOptions()
    ) -> list[list[Hit]]:
        of_parts = [part.search_pooled(queries, k, options) for part in self.parts]
        return [_best(itertools.chain(*of_query), k) for of_query in zip(*of_parts, strict=True)]

    def update(self, embeddings: EmbeddingFolder) -> dict[str, int]:
        self.require_same_form(embeddings)
        with self._changing():
            marks, replaced = self._marked({document_of(row) for row in embeddings.described()})
            first, number = self.parts[0], len(self.parts)
            lists = 0 if not first.lists else None
            built = build(
                embeddings.path,
                _added(self.path, number),
                engine="faiss" if first.engine == "faiss" else "numpy",
                lists=lists,
                replace=True,  # what an interrupted update left there
            )
            self._write(number, [*marks, np.zeros(built["count"], bool)])
        return {"added": built["count"], "replaced": len(replaced)}

    def delete(self, ids: Collection[str]) -> dict[str, int]:
        with self._changing():
            marks, found = self._marked(set(ids))
            if found:
                self._write(len(self.parts) - 1, marks)
        return {"deleted": len(found), "missing": len(set(ids) - found)}

    def _marked(self, ids: Collection[str]) -> tuple[list[np.ndarray], set[str]]:
        """Returns the marks with the vectors of these documents, and which of them have vectors until now."""
        marks, found = [mark.copy() for mark in self._marks], set[str]()
        for part, mark in zip(self.parts, marks, strict=True):
            for name, numbers in part.numbers_of(ids).items():
                if not mark[numbers].all():
                    found.add(name)
                mark[numbers] = True
        return marks, found

    def _write(self, added: int, marks: list[np.ndarray]) -> None:
        former = self._updates["version"] if self._updates else 0
        version = former + 1
        with atomic_path(_marks_file(self.path, version)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, *marks)
        write_json(self.path / UPDATES, {"format": FORMAT, "added": added, "version": version})
        _marks_file(self.path, former - 1).unlink(missing_ok=True)  # a reader may be about to open that of `former`
        self._read()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Locks the folder, unless it is in a bucket, and reads again what another process may have changed."""
        with sole_owner(self.path):
            self._read()
            yield


def _read_updates(path: pathlib.Path) -> dict[str, Any] | None:
    if not (path / UPDATES).exists():
        return None
    content = read_json(path / UPDATES, fix=_FIX)
    if content.get("format") != FORMAT or not all(isinstance(content.get(n), int) for n in ("added", "version")):
        raise BadInput(f"{path / UPDATES} is not of format {FORMAT}; {_FIX}")
    return content


def _added(path: pathlib.Path, number: int) -> pathlib.Path:
    return path / "added" / f"{number:05d}"


def _marks_file(path: pathlib.Path, version: int) -> pathlib.Path:
    return path / f"deleted-{version:05d}.npz"


def _best(hits: Iterable[Hit], k: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (hit["score"], hit["id"]), reverse=True)[:k]
