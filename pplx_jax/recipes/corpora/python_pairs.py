"""What Python files give to a corpus: pairs of summary and definition, raw text; and which of it is kept."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

from pplx_jax.recipes.corpora import python_source
from pplx_jax.recipes.corpora.python_packages import SourceFile


@dataclasses.dataclass(frozen=True)
class Pair:
    """A definition with what tells duplicates: hashes that white space and case do not change."""

    definition: python_source.Definition
    query: bytes
    document: bytes


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a file gives; `found` counts its documented definitions before any is dropped."""

    found: int
    pairs: list[Pair]
    windows: list[str]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is written: pairs by file in source order, and rows of text, without duplicates."""

    training: list[tuple[SourceFile, list[Pair]]]
    evaluation: list[tuple[SourceFile, list[Pair]]]
    texts: list[dict[str, str]]
    dropped: dict[str, int]


def read_file(
    file: SourceFile,
    gives_text: bool,
    *,
    min_characters: int,
    max_characters: int,
    window_characters: int,
) -> Parsed | None:
    """Reads a file, with raw text if `gives_text`; None if it is no Python. Limits as in `PythonCorpus`."""
    module = python_source.read_module(pathlib.Path(file.root, file.path))
    if module is None:
        return None
    pairs = []
    for definition in module.definitions:
        if len(definition.text) >= min_characters:
            cut = dataclasses.replace(definition, text=_cut(definition.text, max_characters))
            pairs.append(Pair(cut, _key(definition.summary.rstrip(".")), _key(cut.text)))
    windows = _windows(module.source, window_characters) if gives_text else ()
    windows = [window for window in windows if len(window) >= min_characters]
    return Parsed(len(module.definitions), pairs, windows)


def _key(text: str) -> bytes:
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=12).digest()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = text.rfind("\n", limit // 2, limit + 1)
    return text[: end if end > 0 else limit].rstrip()


_LICENCE = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)+")


def _windows(source: str, limit: int) -> Iterator[str]:
    """A module's text, comments at its head left out, as runs of whole lines; longer lines are cut."""
    window, length = [], 0
    for line in _LICENCE.sub("", source).split("\n"):
        line = line[: limit - 1]
        if length + len(line) + 1 > limit:
            yield "\n".join(window).strip("\n")
            window, length = [], 0
        window.append(line)
        length += len(line) + 1
    yield "\n".join(window).strip("\n")


class _Seen:
    """The pairs met so far."""

    def __init__(self):
        self.queries: set[bytes] = set()
        self.documents: set[bytes] = set()

    def add(self, pair: Pair) -> bool:
        """Whether neither the query nor the document was met; then the pair is."""
        if pair in self:
            return False
        self.queries.add(pair.query)
        self.documents.add(pair.document)
        return True

    def __contains__(self, pair: Pair) -> bool:
        return pair.query in self.queries or pair.document in self.documents


def select(files: Sequence[SourceFile], parsed: Sequence[Parsed | None], held_out: Collection[str]) -> Selection:
    """Drops what stands twice; what training shares with the held-out sources is dropped from training."""
    evaluation, training, texts_seen = _Seen(), _Seen(), set()
    dropped = {f"duplicates_{where}": 0 for where in ("within_training", "within_evaluation", "across")}
    selection = Selection([], [], [], dropped)
    results = [(file, result) for file, result in zip(files, parsed, strict=True) if result]
    for file, result in results:
        if file.source in held_out:
            new = [pair for pair in result.pairs if evaluation.add(pair)]
            dropped["duplicates_within_evaluation"] += len(result.pairs) - len(new)
            selection.evaluation.append((file, new))
    for file, result in results:
        if file.source in held_out:
            continue
        apart = [pair for pair in result.pairs if pair not in evaluation]
        new = [pair for pair in apart if training.add(pair)]
        dropped["duplicates_across"] += len(result.pairs) - len(apart)
        dropped["duplicates_within_training"] += len(apart) - len(new)
        selection.training.append((file, new))
        if any(pair.document in evaluation.documents for pair in result.pairs):
            continue  # a module that copies held-out code gives no raw text either
        for window in result.windows:
            if (key := _key(window)) not in texts_seen:
                texts_seen.add(key)
                selection.texts.append({"text": window, "source": file.source})
    return selection
