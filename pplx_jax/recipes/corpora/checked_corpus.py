"""Writes a corpus folder of rows and retrieval sets; no text of a set is trained on."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pplx_jax.data.io.beir import RetrievalSet
from pplx_jax.data.io.set_samples import draw
from pplx_jax.data.sources.corpus_writer import corpus_folder, write_beir, write_rows
from pplx_jax.data.sources.overlap import Overlap, texts_within
from pplx_jax.recipes.corpora.training_rows import Row, TrainingRows, read_rows


@dataclasses.dataclass(frozen=True)
class PairSamples:
    """Seeded samples of the pairs of each source.

    Attributes:
        most: number of pairs of each source; 0 for all.
        most_of: source -> another number for it.
        seed: seed of the draws.
    """

    most: int = 0
    most_of: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def of(self, pairs: list[Row]) -> list[Row]:
        """Returns the pairs that are kept."""
        if not self.most and not self.most_of:
            return pairs
        taken: collections.Counter[str] = collections.Counter()
        kept = []
        for row in sorted(pairs, key=lambda row: draw(self.seed, "sample", row["query"], row["document"])):
            source = row["source"]
            taken[source] += 1
            if taken[source] <= (self.most_of.get(source, self.most) or len(pairs)):
                kept.append(row)
        return kept


def write_corpus(
    output: pathlib.Path,
    rows: TrainingRows,
    evaluation: Mapping[str, RetrievalSet],
    searched: Iterable[Row] = (),
    samples: PairSamples = PairSamples(),
) -> dict[str, Any]:
    """Writes a corpus folder completely or not at all, and returns its counts.

    Args:
        output: the folder.
        rows: training rows. Those that overlap with an evaluation set are left out and counted, and every written row
            is checked again.
        evaluation: name -> evaluation set.
        searched: rows of search.jsonl besides the passages of the sets. They have the passages of the set `python`.
        samples: which pairs are kept.

    Raises:
        BadInput: `output` is no corpus folder, or a written row overlaps with the evaluation.
    """
    overlap = Overlap(text for data in evaluation.values() for text in (*data.documents, *data.queries))
    rows, dropped = rows.without(lambda row: any(map(overlap.of, texts_within(row))))
    rows.pairs = samples.of(rows.pairs)
    with corpus_folder(output) as partial:
        write_rows(partial / "text.jsonl", rows.texts)
        write_rows(partial / "pairs.jsonl", rows.pairs)
        write_rows(partial / "documents.jsonl", rows.documents)
        (partial / "evaluation").mkdir()
        for name, data in evaluation.items():
            write_beir(partial / "evaluation" / name, data)
        write_rows(partial / "search.jsonl", [*searched, *_passages(evaluation)])
        checked = sum(overlap.refuse(_written(partial / f"{name}.jsonl")) for name in ("text", "pairs", "documents"))
        counts = {
            **{name: len(of) for name, of in vars(rows).items()},
            "pairs_of": dict(collections.Counter(row["source"] for row in rows.pairs)),
            "documents_of": dict(collections.Counter(row["source"] for row in rows.documents)),
            "dropped_for_overlap": dropped,
            "checked_texts": checked,
            "evaluated": {
                name: {"queries": len(data.query_ids), "documents": len(data.document_ids)}
                for name, data in evaluation.items()
            },
        }
        (partial / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return counts


def _written(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    for number, row in enumerate(read_rows(path), start=1):
        yield f"{path.name}, line {number}", list(texts_within(row))


def _passages(evaluation: Mapping[str, RetrievalSet]) -> Iterator[dict[str, Any]]:
    """Yields the passages of every set except `python`, each text once, with unique ids."""
    seen = set()
    for name, data in evaluation.items():
        for document, text, parent, chunk in zip(
            data.document_ids, data.documents, data.parents, data.chunks, strict=True
        ):
            if name != "python" and text not in seen:
                seen.add(text)
                yield {"_id": f"{name}:{document}", "text": text, "parent": f"{name}:{parent}", "chunk": chunk}
