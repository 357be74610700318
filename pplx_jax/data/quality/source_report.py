"""What the first examples of one source are like."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.progress import Progress
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.io.json_lines import escaped
from pplx_jax.data.quality.near_duplicates import NearDuplicates
from pplx_jax.data.quality.report_text import shortened
from pplx_jax.data.sources import blocks
from pplx_jax.data.sources.example_reader import Example, texts_of
from pplx_jax.data.sources.file_formats import Row
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.table_maker import Block, table_maker
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.vocabulary import Vocabulary

_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "longest": 1.0}
_NO_TEXTS = ("text_lengths", "also_positive")  # ragged features of a table that hold no tokens


class SourceReport:
    """Reads the first examples of one part of a source.

    Args:
        source: the part.
        vocabulary: of the model.
        lengths: token limits.
        overlap: detects evaluation texts.
        drop: whether to leave out examples that overlap, as training does.
        samples: number of examples to show after every step.
    """

    def __init__(
        self, source: Source, vocabulary: Vocabulary, lengths: Lengths, overlap: Overlap, drop: bool, samples: int
    ):
        self._source, self._vocabulary, self._lengths = source, vocabulary, lengths
        self._overlap, self._drop, self._samples = overlap, drop, samples
        self._bad = BadRows(source.name, source.max_bad_share)
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()
        self._exact_duplicates = self._near_duplicates = 0
        self._overlaps = 0
        self._overlap_samples: list[str] = []
        self._shown: list[dict[str, str]] = []

    def read(self, folder: pathlib.Path, limit: int) -> dict[str, Any]:
        """Reads up to `limit` examples, writes their token table to `folder`, and returns their counts."""
        kind = self._source.kind
        languages: collections.Counter[str] = collections.Counter()
        token_lengths: dict[str, list[np.ndarray]] = {name: [] for name in blocks.TEXTS[kind]}
        count = read = 0
        with (
            Progress(f"data report: {self._source.name}", unit="example") as progress,
            table_maker(folder, kind, self._vocabulary, self._lengths, allow_empty=True) as maker,
        ):
            examples = self._source.prompted(itertools.islice(self._examples(), limit))
            for block in blocks.blocks(self._source, examples, self._bad):
                tokenised = self._tokenize(block)
                for name, found in token_lengths.items():
                    found.append(tokenised[name].lengths())
                if len(tokenised["language"]):
                    maker.add(tokenised)
                languages.update(block["language"])
                count += len(block["language"])
                read += len(block.get("chunk_counts", block["language"]))
                progress.update(count)
        self._bad.finish()
        table = TokenTable.open(folder)
        notes = ("truncated", "cut_tokens", "too_short", "empty")
        return {
            "examples": count,
            "stopped": read == limit,
            "rows_of_the_table": table.count,
            "tokens": int(sum(int(lengths.sum()) for found in token_lengths.values() for lengths in found)),
            "languages": {name or "(none named)": number for name, number in languages.most_common()},
            "duplicates": {"exact": self._exact_duplicates, "near": self._near_duplicates},
            "overlap": {"examples": self._overlaps, "dropped": self._drop, "samples": self._overlap_samples},
            "token_lengths": {name: _quantiles(found) for name, found in token_lengths.items() if found},
            "rows": self._bad.summary(),
            **{name: table.manifest[name] for name in notes if name in table.manifest},
            "samples": self._shown,
        }

    def _examples(self) -> Iterator[Example]:
        for shard in self._source.shards():
            read = self._source.examples_with_rows(shard, self._bad, max_chunks=self._lengths.chunks)
            for place, row, example in read:
                texts = list(texts_of(example))
                if any(self._overlap.of(text) for text in texts):
                    self._overlaps += 1
                    if len(self._overlap_samples) < self._samples:
                        self._overlap_samples.append(shortened(" / ".join(texts)))
                    if self._drop:
                        continue
                self._count_duplicate(texts)
                if len(self._shown) < self._samples:
                    self._shown.append(self._steps(place, row, example))
                yield example

    def _steps(self, place: str, row: Row, example: Example) -> dict[str, str]:
        """Returns one example as read, as checked, as tokenised, and as cut in a table of its own."""
        kind = self._source.kind
        (block,) = blocks.blocks(self._source, self._source.prompted([example]), BadRows(self._source.name))
        tokenised = self._tokenize(block)
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / "table"
            with table_maker(folder, kind, self._vocabulary, self._lengths, allow_empty=True) as maker:
                maker.add(tokenised)
            cut = [
                f"{name}, {len(tokens)} tokens: {shortened(self._vocabulary.decode(tokens.tolist()))}"
                for name, texts in TokenTable.open(folder).features.items()
                if isinstance(texts, Ragged) and name not in _NO_TEXTS
                for tokens in texts
                if len(tokens)
            ]
        return {
            "read": f"{place}\n{shortened(_as_json(row))}",
            "checked": shortened(_as_json(example)),
            "tokenised": "\n".join(
                f"{name}: {shortened(' '.join(map(str, tokens.tolist())))}"
                for name in blocks.TEXTS[kind]
                for tokens in tokenised[name]
            ),
            "cut": "\n".join(cut) or "nothing is left: too short",
        }

    def _count_duplicate(self, texts: list[str]) -> None:
        key = hashlib.blake2b("\0".join(" ".join(text.split()) for text in texts).encode(), digest_size=16).digest()
        if key in self._seen:
            self._exact_duplicates += 1
            return
        self._seen.add(key)
        self._near_duplicates += self._near.add(texts) is not None

    def _tokenize(self, block: Mapping[str, Any]) -> Block:
        result: Block = {}
        for name in blocks.TEXTS[self._source.kind]:
            result[name] = Ragged.from_arrays(self._vocabulary.encode_batch(block[name]))
        for name, kind in blocks.columns_of(self._source).items():
            result[name] = np.array(block[name], object if kind == "string" else np.dtype(kind))
        return result


def _quantiles(found: Sequence[np.ndarray]) -> dict[str, float]:
    lengths = np.concatenate(found)
    if not len(lengths):
        return {}
    values = np.quantile(lengths, list(_QUANTILES.values()), method="nearest")
    quantiles = dict(zip(_QUANTILES, map(int, values), strict=True))
    return {"texts": len(lengths), "mean": round(float(lengths.mean()), 1), **quantiles}


def _as_json(row: Row) -> str:
    try:
        return escaped(json.dumps(row, ensure_ascii=False, default=_decoded))
    except RecursionError:
        return f"{', '.join(map(escaped, row))}: nested too deep to show"


def _decoded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
