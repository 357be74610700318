"""A retrieval task of mteb with its splits and subsets. `Search` ranks the documents, mteb computes the metrics."""

import contextlib
import dataclasses
import datetime
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.evaluation.core.benchmark import Part
from pplx_jax.evaluation.core.revisions import revision_of_folder
from pplx_jax.evaluation.scoring.retrieval_sets import REPORTED_METRICS
from pplx_jax.evaluation.scoring.scorers import OwnDocument
from pplx_jax.evaluation.scoring.system import System
from pplx_jax.evaluation.suites.mteb.results import model_meta, write_result
from pplx_jax.evaluation.suites.mteb.search import Search
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts, document_texts

Measures = Mapping[str, float]  # a query's metrics, by trec_eval's names
Grades = Mapping[str, int]  # a query's judged documents
_TREC_NAMES = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut", "precision": "P", "hit_rate": "success"}


@dataclasses.dataclass(frozen=True)
class MtebTask:
    """One `AbsTaskRetrieval` of mteb as a `benchmark.Task`.

    Attributes:
        name: in the benchmark.
        task: mteb's task with the subsets and splits to evaluate. Its data is loaded only during evaluation.
        data: folder with the files of its repository as DATA/NAME; None for the hub.
        prompts: templates around the texts.
        results: folder for mteb's own result files; None for none.
        model_name: "organization/model" in those files.
        scratch: folder for the vectors of a corpus until it is ranked, so that an interrupted run resumes.
        own_document: whether the document with the id of a query is ranked for it; None for mteb's choice.
    """

    name: str
    task: Any
    data: pathlib.Path | None = None
    prompts: Prompts = NO_PROMPTS
    results: pathlib.Path | None = None
    model_name: str | None = None
    scratch: pathlib.Path | None = None
    own_document: OwnDocument | None = None

    @property
    def main_metric(self) -> str:
        """The main metric, such as "ndcg@10"."""
        return self.task.metadata.main_score.replace("_at_", "@")

    def within(self, folder: pathlib.Path) -> Self:
        """Returns the task with mteb's result files in FOLDER/leaderboard and unfinished vectors in FOLDER/scratch."""
        results, scratch = self.results or folder / "leaderboard", self.scratch or folder / "scratch"
        return dataclasses.replace(self, results=results, scratch=scratch)

    def with_own_document(self, own_document: OwnDocument) -> Self:
        """Returns the task with this choice for documents with the id of a query."""
        return dataclasses.replace(self, own_document=own_document)

    @property
    def revision(self) -> str:
        """The data set's commit; a hash of local files; prompts and the choice of own documents, if not the default."""
        files = None if self._files is None or not self._files.is_dir() else revision_of_folder(self._files)
        prompts = None if self.prompts == NO_PROMPTS else self.prompts
        own = self.own_document and f"own_document {self.own_document}"
        return " ".join(str(part) for part in (self._commit, files, prompts, own) if part is not None)

    @property
    def _commit(self) -> str | None:
        return self.task.metadata.revision

    @property
    def _files(self) -> pathlib.Path | None:
        """The folder of the data set in `data`."""
        return None if self.data is None else self.data / self.task.metadata.dataset["path"].rpartition("/")[2]

    def evaluate(self, system: System) -> Sequence[Part]:
        """Returns a part for every split and subset. `metrics` are mteb's, before it rounds them to five digits.

        Raises:
            BadInput: the data is missing, or a text is over the model's limit; the message names it.
        """
        started = time.monotonic()
        search = self._search(system)
        with self._loaded():
            parts, scores = self._score(search)
        if self.results is not None:
            write_result(self.results, self._result(scores, time.monotonic() - started), search.mteb_model_meta)
        return parts

    def _search(self, system: System) -> Search:
        prompts = NO_PROMPTS if system.encoder is None else self.prompts
        meta = model_meta(system, prompts, self.model_name)
        return Search(system, prompts, meta, self.scratch, revision=self.revision, drops_own=self._drops_own)

    @property
    def _drops_own(self) -> bool:
        return self.task.ignore_identical_ids if self.own_document is None else self.own_document == "drop"

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[None]:
        """Loads the task's data from `data` or the hub for the duration of the block."""
        source = self.task.metadata.dataset
        page = f"https://huggingface.co/datasets/{source['path']} (revision {source.get('revision')})"
        name, folder = source["path"].rpartition("/")[2], self._files
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget)
            if folder is not None:
                if not folder.is_dir():
                    raise BadInput(f"{self.name}: no folder {folder}; download the files of {page} into it")
                # The cache of `datasets` knows a folder only by its name, so the name contains a hash of the files.
                link = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                link = link / f"{name}-{revision_of_folder(folder)}"
                link.symlink_to(folder.resolve())
                local = {"dataset": {**source, "path": str(link)}}
                self.task.metadata = self.task.metadata.model_copy(update=local)
            try:
                self.task.load_data()
                self.task.convert_v1_dataset_format_to_v2(num_proc=None)
            except Exception as error:  # three libraries raise many types of errors here
                raise BadInput(
                    f"{self.name}: its data cannot be loaded ({_cause(error)}); download the files of {page} into "
                    f"FOLDER/{name} and give --data FOLDER"
                ) from error
            yield

    def _forget(self) -> None:
        if self.task.data_loaded:
            self.task.unload_data()
        vars(self.task).pop("metadata", None)

    def _score(self, search: Search) -> tuple[list[Part], dict[str, dict[str, Mapping[str, Any]]]]:
        """Returns the parts, and mteb's own scores by split and subset."""
        parts: list[Part] = []
        pairs = [(split, subset) for split in self.task.eval_splits for subset in self.task.hf_subsets]
        scores: dict[str, dict[str, Mapping[str, Any]]] = {split: {} for split in self.task.eval_splits}
        specific = self.task.task_specific_scores

        def collect(
            per_query: Mapping[str, Mapping[str, float]],
            qrels: Mapping[str, Mapping[str, int]],
            *run: Any,
            **where: Any,
        ) -> dict[str, float]:
            parts.append(self._part(per_query, qrels, where["hf_split"], where["hf_subset"]))
            return specific(per_query, qrels, *run, **where)

        # mteb passes its metrics per query only to this hook, which is meant for task-specific metrics.
        self.task.task_specific_scores = collect
        before, self.task.ignore_identical_ids = self.task.ignore_identical_ids, self._drops_own
        try:
            with Progress(self.name, len(pairs), "subset") as progress:
                for done, (split, subset) in enumerate(pairs, start=1):
                    found = self.task.evaluate(search, split, [subset], encode_kwargs={"show_progress_bar": False})
                    scores[split] |= found
                    progress.update(done)
        finally:
            del self.task.task_specific_scores
            self.task.ignore_identical_ids = before
        return parts, scores

    def _part(
        self,
        per_query: Mapping[str, Measures],
        qrels: Mapping[str, Grades],
        split: str,
        subset: str,
    ) -> Part:
        corpus = self.task.dataset[subset][split]["corpus"]
        values = {
            metric: np.array([measures[_trec_name(metric)] for measures in per_query.values()])
            for metric in dict.fromkeys((self.main_metric, *REPORTED_METRICS))
        }
        return Part(
            split=split,
            subset=subset,
            metrics={metric: float(np.mean(each)) for metric, each in values.items()},
            queries=len(per_query),
            documents=len(corpus),
            query_ids=list(per_query),
            per_query=values,
            lengths=_longest_relevant(corpus, [qrels[query] for query in per_query]),
        )

    def _result(self, scores: Mapping[str, Mapping[str, Mapping[str, Any]]], seconds: float) -> Any:
        from mteb import TaskResult

        now = datetime.datetime.now(tz=datetime.UTC)
        return TaskResult.from_task_results(self.task, scores, evaluation_time=seconds, date=now)


def _longest_relevant(corpus: Any, grades: Sequence[Grades]) -> np.ndarray:
    """Returns int64 [queries], characters of the longest relevant document; 0 if there is none."""
    relevant = [{document for document, grade in of_query.items() if grade > 0} for of_query in grades]
    wanted = set().union(*relevant)
    columns = corpus.select([row for row, document in enumerate(corpus["id"]) if document in wanted])[:]
    lengths = dict(zip(columns["id"], map(len, document_texts(columns)), strict=True))
    return np.array([max((lengths.get(document, 0) for document in of_query), default=0) for of_query in relevant])


def _cause(error: BaseException) -> str:
    """Returns the first error of a chain, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _trec_name(metric: str) -> str:
    measure, cutoff = metric.split("@")
    return f"{_TREC_NAMES[measure]}_{cutoff}"
