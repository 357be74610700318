"""One retrieval task in mteb's format: our runner and model, and mteb's with the exported one.

Both compare float vectors, because mteb's search takes no INT8."""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from peer_cases.subject import Subject, read_pairs
from peer_cases.turns import Different, chosen, measure, table_row
from pplx_jax.core.files import write_json

NAMES = ("ours", "mteb")
METRIC = "ndcg@10"
_MOST = 0.02  # difference of nDCG@10: ours may compute in bfloat16, and few queries make it coarse


def cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the row of the one case."""
    pairs = read_pairs(options.pairs)[: options.documents]
    write_json(workdir / "evaluated_pairs.json", pairs)
    folders = {"ours": subject.ours, "exported": subject.exported}
    case = {**folders, "pairs": os.fspath(workdir / "evaluated_pairs.json"), "threads": options.threads}
    found = measure(__name__, case, chosen(NAMES, options.implementations), compare, options.passes)
    tokens = int(subject.count_tokens([text for pair in pairs for text in pair]).sum())
    yield f"{subject.name}, {len(pairs)} documents", table_row(found, {"pairs": len(pairs), "tokens": tokens})


def retrieval_task(pairs: list[tuple[str, str]]) -> Any:
    """Returns mteb's task of finding the document of each query."""
    import mteb
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    class Pairs(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Pairs",
            dataset={"path": "local/pairs", "revision": "1"},
            description="",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            rows = {"query": [each[0] for each in pairs], "document": [each[1] for each in pairs]}
            sides = {
                name: Dataset.from_dict({"id": [f"{name}{place}" for place in range(len(pairs))], "text": texts})
                for name, texts in rows.items()
            }
            found = {
                "corpus": sides["document"],
                "queries": sides["query"],
                "relevant_docs": {f"query{place}": {f"document{place}": 1} for place in range(len(pairs))},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": found}}
            self.data_loaded = True

    return Pairs()


def open_side(name: str, case: Mapping[str, Any]) -> Any:
    """Opens an implementation: one of `NAMES`."""
    import json

    pairs = [tuple(pair) for pair in json.loads(pathlib.Path(case["pairs"]).read_text(encoding="utf-8"))]
    return Ours(case, pairs) if name == "ours" else Mteb(case, pairs)


class Ours:
    """`Embedder` in our runner of mteb's tasks."""

    def __init__(self, case: Mapping[str, Any], pairs: list[tuple[str, str]]):
        from pplx_jax.evaluation.scoring.system import Settings, System
        from pplx_jax.evaluation.suites.mteb.task import MtebTask
        from pplx_jax.inference.embedder import Embedder

        self._task = MtebTask("pairs", retrieval_task(pairs))
        self._system = System("ours", Embedder.load(case["ours"]), Settings("none"))
        self._score = 0.0

    def run(self) -> None:
        self._score = self._task.evaluate(self._system)[0].metrics[METRIC]

    def check(self) -> dict[str, float]:
        return {METRIC: self._score}


class Mteb:
    """mteb's own runner with sentence-transformers."""

    def __init__(self, case: Mapping[str, Any], pairs: list[tuple[str, str]]):
        import mteb
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(case["threads"])
        self._mteb, self._task = mteb, retrieval_task(pairs)
        self._model = SentenceTransformer(case["exported"], trust_remote_code=True)
        self._score = 0.0

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cache = self._mteb.cache.ResultCache(folder)
            options = {"encode_kwargs": {"quantization": "none", "batch_size": 32}, "overwrite_strategy": "always"}
            results = self._mteb.evaluate(self._model, self._task, cache=cache, **options)
        self._score = results.task_results[0].get_score()

    def check(self) -> dict[str, float]:
        return {METRIC: self._score}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns both scores.

    Raises:
      Different: they are further apart than rounding explains.
    """
    if abs(ours[METRIC] - theirs[METRIC]) > _MOST:
        raise Different(f"{name}: {METRIC} {theirs[METRIC]:.4f}, ours {ours[METRIC]:.4f}")
    return {METRIC: theirs[METRIC]}
