"""Looks at training data before training: counts, lengths, languages, duplicates, fill, overlap with evaluation."""

from __future__ import annotations

import collections
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.data.quality.fill import Packed, measure_fill
from pplx_jax.data.quality.source_report import SourceReport
from pplx_jax.data.quality.word_vocabulary import WordVocabulary
from pplx_jax.data.sources.duplicates import EXACT, NEAR, Finder, Mode, joined
from pplx_jax.data.sources.overlap import Overlap
from pplx_jax.data.sources.source import Source
from pplx_jax.data.tokens.kinds import FOLDERS
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.vocabulary import Vocabulary


def report_sources(
    sources: Sequence[Source],
    vocabulary: Vocabulary | None,
    lengths: Lengths,
    overlap: Overlap | None,
    *,
    stages: Mapping[str, Packed] | None = None,
    drop_overlap: bool = False,
    drop_duplicates: Mode = "",
    examples: int = 100_000,
    samples: int = 3,
) -> dict[str, Any]:
    """Looks at the first examples of every source. Token ids, cuts and packing are those of training.

    Args:
        sources: the sources to look at.
        vocabulary: the vocabulary of the model. If None, words are counted instead of tokens.
        lengths: token limits.
        overlap: detects evaluation texts; None if there is no evaluation set.
        stages: stage -> batches to pack, to measure their fill.
        drop_overlap: whether training leaves out rows that overlap with evaluation texts.
        drop_duplicates: which duplicates training leaves out. If any, those of all sources of a kind are counted, else
            those within a source. The other counts include them.
        examples: number of examples to look at, of each part of a source.
        samples: number of examples to show, of each part of a source.

    Returns:
        Over all sources: `examples`, `tokens`, `unit` ("tokens" or "words"), `fill` (share of the positions of packed
        sequences that hold a token), `duplicates` {exact, near}, `languages` {name: examples}, `overlap` (examples that
        share text with an evaluation set; None without one), `bad_rows`, `looked_at` (the limit per source),
        `fill_by_stage`; and `sources`, the same and more of every source.
    """
    found: dict[str, dict[str, Any]] = {}
    compared: dict[str, tuple[Finder, dict[str, int]]] = {}  # marks of sources that are compared, and their numbers
    counted, known = vocabulary or WordVocabulary(), overlap or Overlap(())
    with tempfile.TemporaryDirectory() as temporary:
        tokens = pathlib.Path(temporary)
        for part in (part for source in sources for part in source.parts().values()):
            report = SourceReport(part, counted, lengths, known, drop_overlap, samples)
            folder = part.table_folder
            found.setdefault(folder, {})[part.name] = report.read(tokens / folder / part.name, examples)
            group = folder if drop_duplicates else f"{folder}.{part.name}"
            if group not in compared:
                compared[group] = Finder(tokens / "marks" / group, near=True), {}
            finder, counts = compared[group]
            counts[part.name] = finder.add(joined(report.marks))
        for group, (finder, counts) in compared.items():
            ends = np.cumsum([*counts.values()])
            for name, own in zip(counts, np.split(finder.find(), ends[:-1]), strict=True):
                duplicates = {"exact": int(np.sum(own == EXACT)), "near": int(np.sum(own == NEAR))}
                found[group.partition(".")[0]][name]["duplicates"] = {**duplicates, "dropped": drop_duplicates}
        fills = {}
        for stage, packed in (stages or {}).items():
            folder = FOLDERS[packed.spec.kind]
            if folder not in found:
                continue
            tables = open_tables(tokens / folder)
            fills[stage] = measure_fill(packed, tables, counted, samples)
            for name, one in found[folder].items():
                if "fill" not in one:
                    alone = measure_fill(Packed(packed.spec), {name: tables[name]}, counted, samples)
                    one["fill"] = alone["fill"]
    unit = "tokens" if vocabulary else "words"
    totals = _totals(found, fills)
    if overlap is None:
        totals["overlap"] = None
        for one in (one for named in found.values() for one in named.values()):
            one["overlap"]["examples"] = None
    return {**totals, "unit": unit, "looked_at": examples, "fill_by_stage": fills, "sources": found}


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
