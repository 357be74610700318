"""Finds examples that repeat earlier ones, exactly or nearly, over all sources of a kind.

Examples are numbered in source order: the sources as the corpus lists them, their parts, shards and rows. The first of
several equal ones is kept. Two examples are

- exact duplicates if all their texts are equal, apart from white space;
- near duplicates if their queries have the same words, and the runs of five words of their other texts are nearly the
  same: at least `SHARE` of the runs of both. The share is estimated by MinHash (Broder, "On the resemblance and
  containment of documents", 1997). Only examples that share a band of minima are compared (Indyk and Motwani, 1998).

Each near duplicate that is left out has an earlier example that is kept and nearly equal. The hash functions are fixed,
so the result depends on the texts and their order alone. Files hold what is needed of each example, 8 bytes, for near
duplicates 392; memory is about 50 bytes for each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.example_reader import Example, texts_of
from pplx_jax.data.sources.overlap import run_hashes, word_hashes
from pplx_jax.data.sources.source import Source

Drop = Callable[[str], bool]
Mode = Literal["", "exact", "near"]  # what is left out: nothing, exact duplicates, or near ones too

KEPT, EXACT, NEAR = range(3)
SHARE = 0.8
_WORDS = 5  # words of a run
_BANDS, _ROWS = 16, 4  # examples that share 50% of their runs meet with probability 64%, 80%: 99.98%
_HASHES = _BANDS * _ROWS
_FACTORS, _OFFSETS = np.frombuffer(hashlib.shake_128(b"MinHash").digest(16 * _HASHES), "<u8").reshape(2, _HASHES, 1)
_ONE, _HALF = np.uint64(1), np.uint64(32)
_EXAMPLES = 1024  # whose marks are written together
_RUNS_AT_ONCE, _PAIRS_AT_ONCE = 1 << 12, 1 << 15


def check_mode(field: str, mode: str) -> None:
    """Raises BadInput if `mode` is none."""
    if mode not in get_args(Mode):
        raise BadInput(f"{field}={mode!r}: set it to 'exact', 'near' (exact and near ones), or '' to keep duplicates")


class Marks(NamedTuple):
    """What examples are compared by.

    Attributes:
        digests: [n] uint64, of all texts.
        signatures: [n, 64] uint32, minima of hashes; [n, 0] if near duplicates do not matter.
    """

    digests: np.ndarray
    signatures: np.ndarray


def marks_of(examples: Iterable[Example], *, near: bool) -> Iterator[Marks]:
    """Yields the marks of examples, without prompts, in groups of up to 1,024 in order."""
    source = iter(examples)
    while group := list(itertools.islice(source, _EXAMPLES)):
        digests = np.array([_digest(example) for example in group], np.uint64)
        signatures = [_signature(example) for example in group] if near else []
        yield Marks(digests, np.array(signatures, np.uint32).reshape(len(group), _HASHES if near else 0))


def joined(groups: Sequence[Marks]) -> Marks:
    """Returns the marks of several groups as one."""
    if not groups:
        return Marks(np.zeros(0, np.uint64), np.zeros((0, 0), np.uint32))
    return Marks(*(np.concatenate(arrays) for arrays in zip(*groups, strict=True)))


class Finder:
    """Collects marks in files, and finds the duplicates among them.

    Args:
        folder: an empty folder for the files, or one to make.
        near: whether to find near duplicates too.
    """

    def __init__(self, folder: pathlib.Path, *, near: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._near = folder, near
        self._count = 0
        self._digests, self._signatures = (folder / name for name in ("digests", "signatures"))

    def add(self, marks: Marks) -> int:
        """Adds the next examples, and returns their number."""
        with self._digests.open("ab") as digests, self._signatures.open("ab") as signatures:
            marks.digests.tofile(digests)
            marks.signatures.tofile(signatures)
        self._count += len(marks.digests)
        return len(marks.digests)

    def find(self) -> np.ndarray:
        """Returns for each example that was added KEPT, EXACT or NEAR, uint8 [n]."""
        found = np.full(self._count, KEPT, np.uint8)
        if not self._count:
            return found
        repeats, _ = _repeats(np.fromfile(self._digests, np.uint64))
        found[repeats] = EXACT
        if self._near:
            signatures = np.memmap(self._signatures, np.uint32, "r", shape=(self._count, _HASHES))
            found[_near(signatures, np.flatnonzero(found == KEPT), self._folder)] = NEAR
        return found


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which examples are left out as duplicates.

    Attributes:
        mode: which kinds are left out.
        of_shard: (name of a part of a source, shard) -> KEPT, EXACT or NEAR for each of its examples, uint8 [n]. They
            are those of the good rows that do not overlap with evaluation texts.
    """

    mode: Mode
    of_shard: Callable[[str, str], np.ndarray]


def find_duplicates(
    parts: Sequence[Source],
    mode: Mode,
    drop: Drop | None,
    *,
    shards: Mapping[str, Sequence[str]] | None = None,
    marks: Callable[[Source, str], Iterable[Marks]] | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """Reads all shards once and returns (name of the part, shard) -> KEPT, EXACT or NEAR for each of its examples.

    Args:
        parts: all parts of all sources, in order. Sources of different kinds are not compared.
        mode: "exact" or "near".
        drop: as in `Source.examples`.
        shards: part -> its shards, if they are known.
        marks: (part, shard) -> the marks of its examples, if other processes have made them.

    Raises:
        BadInput: there are no files, or too many rows are bad.
    """
    listed = shards or {part.name: part.shards() for part in parts}
    found: dict[tuple[str, str], np.ndarray] = {}
    with Progress("find duplicates", total=sum(map(len, listed.values())), unit="shard") as progress:
        for kind in dict.fromkeys(part.kind for part in parts):
            with tempfile.TemporaryDirectory(prefix="pplx-jax-") as folder:
                finder = Finder(pathlib.Path(folder), near=mode == "near")
                counts: dict[tuple[str, str], int] = {}
                for part in (part for part in parts if part.kind == kind):
                    bad = BadRows(part.name, part.max_bad_share)
                    for shard in listed[part.name]:
                        groups = marks(part, shard) if marks else shard_marks(part, shard, bad, mode, drop)
                        counts[part.name, shard] = sum(map(finder.add, groups))
                        progress.update(len(found) + len(counts))
                    bad.finish()
                ends = np.cumsum([0, *counts.values()])
                result = finder.find()
                for key, (start, stop) in zip(counts, itertools.pairwise(ends), strict=True):
                    found[key] = result[start:stop]
    return found


def shard_marks(part: Source, shard: str, bad: BadRows, mode: Mode, drop: Drop | None) -> Iterator[Marks]:
    """Yields the marks of the examples of one shard."""
    return marks_of(part.examples(shard, bad, drop=drop), near=mode == "near")


def _digest(example: Example) -> int:
    texts = [" ".join(text.split()) for text in texts_of(example)]
    chunks = [str(chunk) for _, chunk in example.get("queries", ())]
    return _number("\0".join([*texts, *chunks]).encode(errors="surrogatepass"))


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _signature(example: Example) -> np.ndarray:
    """Returns the minima of the hashes of all runs of words: uint32 [64]. The queries are a part of every run."""
    asked = [example["query"]] if "query" in example else [text for text, _ in example.get("queries", ())]
    other = list(texts_of(example))
    for text in asked:
        other.remove(text)
    words = word_hashes(" ".join(other))
    if not len(words):  # such as punctuation alone
        words = np.array([_number(" ".join(other).encode(errors="surrogatepass"))], np.uint64)
    queries = np.uint64(_number(word_hashes("\n".join(asked)).tobytes()))
    runs = np.unique(run_hashes(words, min(_WORDS, len(words)))) ^ queries
    least = np.full(_HASHES, np.iinfo(np.uint64).max)
    for start in range(0, len(runs), _RUNS_AT_ONCE):
        # Multiply-shift hashing (Dietzfelbinger and others, 1997), modulo 2^64.
        hashes = (_FACTORS | _ONE) * runs[start : start + _RUNS_AT_ONCE] + _OFFSETS
        least = np.minimum(least, hashes.min(axis=1))
    return (least >> _HALF).astype(np.uint32)


def _repeats(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of keys that came before, and for each the first and the latest earlier place of its key.

    Returns:
        [m]; [m, 2].
    """
    order = np.argsort(keys, kind="stable")
    equal = np.zeros(len(keys), bool)
    np.equal(keys[order[1:]], keys[order[:-1]], out=equal[1:])
    repeated = np.flatnonzero(equal)
    starts = np.maximum.accumulate(np.where(equal, 0, np.arange(len(keys))))
    return order[repeated], np.stack([order[starts[repeated]], order[repeated - 1]], axis=1)


def _near(signatures: np.ndarray, rows: np.ndarray, folder: pathlib.Path) -> list[int]:
    """Returns which of `rows` are nearly equal to an earlier one that is kept."""
    kept_for: dict[int, int] = {}  # example that is left out -> the one that is kept in its place
    for later, earlier in _alike(signatures, _candidates(signatures, rows, folder), len(signatures)):
        keeper = kept_for.get(earlier, earlier)
        if later not in kept_for and (keeper == earlier or np.mean(signatures[keeper] == signatures[later]) >= SHARE):
            kept_for[later] = keeper
    return list(kept_for)


def _candidates(signatures: np.ndarray, rows: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """Returns pairs of `rows` that share a band, each as later * len(signatures) + earlier, in rising order."""
    keys = np.memmap(folder / "keys", np.uint64, "w+", shape=(_BANDS, len(rows)))
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        block = signatures[rows[start : start + _PAIRS_AT_ONCE]].reshape(-1, _BANDS, _ROWS).astype(np.uint64)
        key = np.zeros(block.shape[:2], np.uint64)
        for place in range(_ROWS):
            key = (key + block[..., place]) * (_FACTORS[place] | _ONE)
        keys[:, start : start + len(block)] = key.T
    pairs = np.zeros(0, np.int64)
    for band in range(_BANDS):
        later, earlier = _repeats(np.asarray(keys[band]))
        found = rows[later][:, None] * len(signatures) + rows[earlier]
        pairs = np.union1d(pairs, found)
    return pairs


def _alike(signatures: np.ndarray, pairs: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """Yields (later, earlier) of the pairs whose signatures are nearly equal."""
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        later, earlier = np.divmod(pairs[start : start + _PAIRS_AT_ONCE], count)
        near = np.mean(signatures[later] == signatures[earlier], axis=1) >= SHARE
        yield from zip(later[near].tolist(), earlier[near].tolist(), strict=True)
