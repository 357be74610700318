"""What a recipe reads, looked at before it is trained on: counts, lengths, languages, duplicates, fill, overlap."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.data.batches.examples import Examples, Tables, open_tables
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.io.json_lines import escaped
from pplx_jax.data.quality.near_duplicates import NearDuplicates
from pplx_jax.data.quality.overlap import Overlap
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources.blocks import Block
from pplx_jax.data.sources.mixture import Curriculum, Mixture
from pplx_jax.data.sources.readers import Row
from pplx_jax.data.sources.source import Example, Source, texts_of
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.table_maker import table_maker
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary


class Reading(Protocol):
    """What a stage of a recipe reads; `training.settings.Training` is one."""

    @property
    def stage(self) -> Any: ...

    @property
    def data(self) -> Mixture | Curriculum | None: ...


QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
_SHOWN_CHARACTERS = 600
_FILL_BATCHES = 20


def look_at_sources(
    sources: Sequence[Source],
    vocabulary: Vocabulary,
    lengths: Lengths,
    overlap: Overlap,
    *,
    stages: Sequence[Reading] = (),
    drop_overlap: bool = False,
    examples: int = 100_000,
    samples: int = 3,
) -> dict[str, Any]:
    """Looks at the first examples of every source. Token ids, cuts and packing are those of training.

    Args:
        sources: of a recipe.
        vocabulary: of the model.
        lengths: token limits.
        overlap: evaluation texts.
        stages: whose batches are packed, to see how full they are.
        drop_overlap: whether training leaves out rows that overlap with evaluation texts.
        examples: looked at of each part of a source.
        samples: shown of each, after every step.

    Returns:
        Over all sources: `examples`, `tokens`, `fill` (share of the cells of packed rows that hold a token),
        `duplicates` {exact, near}, `languages` {name: examples}, `overlap` (examples that share text with an
        evaluation set), `bad_rows`; `looked_at` (at most, of each source); `fill_by_stage`; and `sources`, the same
        of every source, and more.
    """
    looked: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        tokens = pathlib.Path(temporary)
        for source in sources:
            for name, part in source.parts().items():
                table = tokens / part.stage / name
                look = _Look(part, vocabulary, lengths, overlap, drop_overlap, samples)
                looked.setdefault(part.stage, {})[name] = look.read(table, examples)
        fills = {}
        for training in stages:
            if (stage := training.stage.name) in looked:
                tables = open_tables(tokens / stage)
                fills[stage] = _fill(training.stage, training.data, tables, vocabulary, samples)
                for name, one in looked[stage].items():
                    one["fill"] = _fill(training.stage, None, {name: tables[name]}, vocabulary, samples)["fill"]
    return {**_totals(looked, fills), "looked_at": examples, "fill_by_stage": fills, "sources": looked}


class _Look:
    """One part of a source, looked at."""

    def __init__(
        self,
        source: Source,
        vocabulary: Vocabulary,
        lengths: Lengths,
        overlap: Overlap,
        drop: bool,
        samples: int,
    ):
        self._source, self._vocabulary, self._lengths = source, vocabulary, lengths
        self._overlap, self._drop, self._samples = overlap, drop, samples
        self._bad = BadRows(source.name, source.max_bad_share)
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()
        self._exact = self._nearly = 0
        self._overlapping: list[str] = []
        self._overlaps = 0
        self._token_lengths: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        self._shown: list[dict[str, str]] = []

    def read(self, folder: pathlib.Path, limit: int) -> dict[str, Any]:
        """Reads up to `limit` examples, writes their token table to `folder`, and says what there was."""
        kind = self._source.kind
        languages: collections.Counter[str] = collections.Counter()
        count = given = 0
        with (
            Progress(f"data report: {self._source.name}", unit="example") as progress,
            table_maker(folder, kind, self._vocabulary, self._lengths, allow_empty=True) as maker,
        ):
            for block in blocks.blocks(kind, itertools.islice(self._examples(), limit), self._bad):
                tokenised = self._tokenize(block)
                for text in blocks.TEXTS[kind]:
                    self._token_lengths[text].append(tokenised[text].lengths())
                if len(tokenised["language"]):
                    maker.add(tokenised)
                languages.update(block["language"])
                count += len(block["language"])
                given += len(block.get("chunk_counts", block["language"]))
                progress.update(count)
        self._bad.finish()
        table = TokenTable.open(folder)
        notes = {name: table.manifest[name] for name in ("truncated", "cut_tokens", "too_short", "empty")
                 if name in table.manifest}  # fmt: skip
        return {
            "examples": count,
            "stopped": given == limit,
            "rows_of_the_table": table.count,
            "tokens": int(sum(int(lengths.sum()) for found in self._token_lengths.values() for lengths in found)),
            "languages": {name or "(none named)": number for name, number in languages.most_common()},
            "duplicates": {"exact": self._exact, "near": self._nearly},
            "overlap": {"examples": self._overlaps, "dropped": self._drop, "samples": self._overlapping},
            "token_lengths": {name: _quantiles(found) for name, found in self._token_lengths.items() if found},
            "rows": self._bad.summary(),
            **notes,
            "samples": self._shown,
        }

    def _examples(self) -> Iterator[Example]:
        for shard in self._source.shards():
            read = self._source.examples_with_rows(shard, self._bad, max_chunks=self._lengths.chunks)
            for place, row, example in read:
                texts = list(texts_of(example))
                if any(self._overlap.of(text) for text in texts):
                    self._overlaps += 1
                    if len(self._overlapping) < self._samples:
                        self._overlapping.append(_short(" / ".join(texts)))
                    if self._drop:
                        continue
                self._count_duplicate(texts)
                if len(self._shown) < self._samples:
                    self._shown.append(self._steps(place, row, example))
                yield example

    def _steps(self, place: str, row: Row, example: Example) -> dict[str, str]:
        """One example as read, checked, tokenised, and cut as it is in a table of its own."""
        kind = self._source.kind
        (block,) = blocks.blocks(kind, [example], BadRows(self._source.name))
        tokenised = self._tokenize(block)
        with tempfile.TemporaryDirectory() as folder:
            alone = pathlib.Path(folder) / "alone"
            with table_maker(alone, kind, self._vocabulary, self._lengths, allow_empty=True) as maker:
                maker.add(tokenised)
            features = TokenTable.open(alone).features
            cut = [
                f"{name}, {len(tokens)} tokens: {_short(self._vocabulary.decode(tokens.tolist()))}"
                for name, texts in features.items()
                if isinstance(texts, Ragged) and name not in ("text_lengths", "also_positive")
                for tokens in texts
                if len(tokens)
            ]
        return {
            "read": f"{place}\n{_short(_as_json(row))}",
            "checked": _short(_as_json(example)),
            "tokenised": "\n".join(
                f"{name}: {_short(' '.join(map(str, tokens.tolist())))}"
                for name in blocks.TEXTS[kind]
                for tokens in tokenised[name]
            ),
            "cut": "\n".join(cut) or "nothing is left: too short",
        }

    def _count_duplicate(self, texts: list[str]) -> None:
        key = hashlib.blake2b("\0".join(" ".join(text.split()) for text in texts).encode(), digest_size=16).digest()
        if key in self._seen:
            self._exact += 1
            return
        self._seen.add(key)
        self._nearly += self._near.add(texts) is not None

    def _tokenize(self, block: Mapping[str, Any]) -> Block:
        result: Block = {}
        for name in blocks.TEXTS[self._source.kind]:
            result[name] = Ragged.from_arrays(self._vocabulary.encode_batch(block[name]))
        for name, kind in blocks.COLUMNS[self._source.kind].items():
            result[name] = np.array(block[name], object if kind == "string" else np.dtype(kind))
        return result


def _fill(
    stage: Any, data: Mixture | Curriculum | None, tables: Tables, vocabulary: Vocabulary, samples: int
) -> dict[str, Any]:
    """Packs batches of a stage as training would; a batch is as large as there are examples for."""
    tables = {name: found for name, found in tables.items() if sum(table.count for table in found)}
    count = sum(table.count for found in tables.values() for table in found)
    batch_size, stream = stage.batch_size, None
    while stream is None and batch_size:
        try:
            stage = dataclasses.replace(stage, batch_size=batch_size)
            stream = Examples(tables, data, batch_size, seed=0) if count >= batch_size else None
        except BadInput:
            pass
        if stream is None:
            batch_size //= 2
    if stream is None:
        return {"batch_size": 0, "fill": 0.0, "tokens": 0, "cut_tokens": 0, "cells": 0, "sample": ""}
    spec = stage.batch
    sequences = stream.sequences(spec, multiple_of=1)
    cells = tokens = cut = 0
    sample = ""
    for batch in range(min(_FILL_BATCHES, max(count // batch_size, 1))):
        selection = stream.select(batch * batch_size + np.arange(batch_size))
        packed = stream.pack(spec, selection, sequences[selection.group])
        tokens, cut = tokens + packed.metrics["tokens"], cut + packed.metrics["cut_tokens"]
        cells += packed.arrays["tokens"].size
        if not sample:
            sample = _show_row(packed.arrays["tokens"][0], packed.arrays["segment_ids"][0], vocabulary, samples)
    fill = tokens / cells
    return {"batch_size": batch_size, "fill": fill, "tokens": int(tokens), "cut_tokens": int(cut), "cells": cells,
            "sample": sample}  # fmt: skip


def _show_row(tokens: np.ndarray, segments: np.ndarray, vocabulary: Vocabulary, limit: int) -> str:
    lines = []
    for segment in np.unique(segments)[: limit + 1]:
        own = tokens[segments == segment].tolist()
        text = "padding" if not segment else _short(vocabulary.decode(own))
        lines.append(f"segment {segment}, {len(own)} tokens: {text}")
    return "\n".join(lines)


def _totals(sources: Mapping[str, Mapping[str, Any]], fills: Mapping[str, Any]) -> dict[str, Any]:
    every = [one for named in sources.values() for one in named.values()]
    languages: collections.Counter[str] = collections.Counter()
    for one in every:
        languages.update(one["languages"])
    cells = sum(one["cells"] for one in fills.values())
    return {
        "examples": sum(one["examples"] for one in every),
        "tokens": sum(one["tokens"] for one in every),
        "fill": sum(one["tokens"] for one in fills.values()) / cells if cells else 0.0,
        "duplicates": {kind: sum(one["duplicates"][kind] for one in every) for kind in ("exact", "near")},
        "languages": dict(languages.most_common()),
        "overlap": sum(one["overlap"]["examples"] for one in every),
        "bad_rows": sum(one["rows"]["bad"] for one in every),
    }


def _quantiles(found: Sequence[np.ndarray]) -> dict[str, float]:
    lengths = np.concatenate(found)
    if not len(lengths):
        return {}
    values = np.quantile(lengths, list(QUANTILES.values()), method="nearest")
    return {"texts": len(lengths), "mean": round(float(lengths.mean()), 1),
            **dict(zip(QUANTILES, map(int, values), strict=True))}  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"


def _as_json(row: Row) -> str:
    try:
        return escaped(json.dumps(row, ensure_ascii=False, default=_decoded))
    except RecursionError:
        return f"{', '.join(map(escaped, row))}: nested too deep to show"


def _decoded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
