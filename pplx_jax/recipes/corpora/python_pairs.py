"""Makes pairs of summary and definition, and raw text, out of Python files, and removes duplicates."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from pplx_jax.recipes.corpora import python_definitions
from pplx_jax.recipes.corpora.python_packages import SourceFile

_HEAD_CHARACTERS = 240  # of a class: its bases and first fields, about as many tokens as a short chunk


@dataclasses.dataclass(frozen=True)
class Pair:
    """A definition with hashes that ignore white space and case, to find duplicates."""

    definition: python_definitions.Definition
    query: bytes
    document: bytes


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The result of a file.

    Attributes:
        found: number of its documented definitions before any is dropped.
        pairs: its documented definitions.
        windows: its raw text.
        heads: the start of each class that has methods, by qualified name.
        methods: all methods of a held-out file, documented or not.
    """

    found: int
    pairs: list[Pair]
    windows: list[str]
    heads: dict[str, str]
    methods: list[Pair]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pairs and rows of text to write, without duplicates. Pairs are by file, in source order."""

    training: list[tuple[SourceFile, list[Pair]]]
    evaluation: list[tuple[SourceFile, list[Pair]]]
    texts: list[dict[str, str]]
    dropped: dict[str, int]


def read_file(
    file: SourceFile,
    gives_text: bool,
    is_held_out: bool,
    *,
    min_characters: int,
    max_characters: int,
    window_characters: int,
) -> Parsed | None:
    """Reads a file, with raw text if `gives_text`. None if it is not Python. Limits are as in `PythonCorpus`."""
    module = python_definitions.read_module(pathlib.Path(file.root, file.path), methods=is_held_out)
    if module is None:
        return None

    def pairs(definitions: Iterable[python_definitions.Definition]) -> Iterator[Pair]:
        for definition in definitions:
            if len(definition.text) >= min_characters:
                cut = dataclasses.replace(definition, text=_cut(definition.text, max_characters))
                yield Pair(cut, query_key(definition.summary), text_key(cut.text))

    documented, methods = list(pairs(module.definitions)), list(pairs(module.methods))
    windows = _windows(module.source, window_characters) if gives_text else ()
    windows = [window for window in windows if len(window) >= min_characters]
    owners = dict.fromkeys(pair.definition.owner for pair in (*documented, *methods) if pair.definition.owner)
    heads = {owner: _cut(module.heads[owner], _HEAD_CHARACTERS) for owner in owners}
    return Parsed(len(module.definitions), documented, windows, heads, methods)


def query_key(query: str) -> bytes:
    """Returns a hash that ignores white space, case and full stops at the end."""
    return text_key(query.rstrip("."))


def text_key(text: str) -> bytes:
    """Returns a hash that ignores white space and case."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=12).digest()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    end = text.rfind("\n", limit // 2, limit + 1)
    return text[: end if end > 0 else limit].rstrip()


_LICENCE = re.compile(r"\A(?:[ \t]*(?:#[^\n]*)?\n)+")


def _windows(source: str, limit: int) -> Iterator[str]:
    """Yields the text of a module without its first comments, in windows of whole lines; longer lines are cut."""
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
    """The pairs so far."""

    def __init__(self):
        self.queries: set[bytes] = set()
        self.documents: set[bytes] = set()

    def add(self, pair: Pair) -> bool:
        """Adds a pair if both its query and its document are new, and returns whether they are."""
        if pair in self:
            return False
        self.queries.add(pair.query)
        self.documents.add(pair.document)
        return True

    def __contains__(self, pair: Pair) -> bool:
        return pair.query in self.queries or pair.document in self.documents


def select(files: Sequence[SourceFile], parsed: Sequence[Parsed | None], held_out: Collection[str]) -> Selection:
    """Drops duplicates. What occurs in a held-out source too is dropped from training."""
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
            continue  # a module that copies held-out code gives no raw text
        for window in result.windows:
            if (key := text_key(window)) not in texts_seen:
                texts_seen.add(key)
                selection.texts.append({"text": window, "source": file.source})
    return selection
