"""A multilingual corpus from a folder of retrieval sets and parallel text, and the Python code of this machine.

    FOLDER/retrieval/NAME/   BEIR folders (data/io/beir.py), gzipped or not
    FOLDER/text/ntrex.jsonl.gz          {lang, doc, line, text}, aligned by line
    FOLDER/text/fastapi-docs.jsonl.gz   {lang, path, text}, aligned by path

A retrieval set is used for training or for evaluation, never for both. The output has the files that `python_corpus`
describes; evaluation/ has one BEIR folder per set. Training rows that overlap with these sets are left out and counted,
and every written row is checked again.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any, Literal

from absl import logging

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import RetrievalSet, read_beir
from pplx_jax.data.io.set_samples import draw, restricted, sampled
from pplx_jax.data.sources.corpus import WrittenCorpus
from pplx_jax.data.sources.overlap import words_of
from pplx_jax.recipes.corpora.aligned_text import Pages, Sentences
from pplx_jax.recipes.corpora.checked_corpus import PairSamples, write_corpus
from pplx_jax.recipes.corpora.docs_corpus import DocsCorpus
from pplx_jax.recipes.corpora.docstrings import described
from pplx_jax.recipes.corpora.python_corpus import PythonCorpus
from pplx_jax.recipes.corpora.training_rows import TrainingRows, cropped_pairs, question_rows, read_rows

Split = Literal["test", "development"]

# The same task exists in several programming languages; these words differ between them.
_VARYING = frozenset("python java javascript typescript php cpp c function".split())
_TASKS = "mbxp-"
_PAGES = "fastapi-docs"


@dataclasses.dataclass(frozen=True)
class MultilingualCorpus(WrittenCorpus):
    """Which data is trained on, and which is evaluated on.

    Attributes:
        path: the folder.
        python: the Python code. Its held-out packages are the evaluation set `python`.
        docs: documentation in many languages to train on besides; it adds its own evaluation sets in both splits.
        split: "test" evaluates on the sets in `evaluated`. "development" is for choosing settings and never reads
            them: it evaluates on a held-out share of the training data and on the whole of some sources.
        trained: names of retrieval sets to train on.
        evaluated: names of retrieval sets to evaluate on.
        unseen: sources that "development" only evaluates on, to measure domains that training never saw: names in
            `trained`, and `fastapi-docs`. Programming tasks are held out in the other languages too.
        unseen_packages: Python packages of the set `python` in "development". The packages that `python` holds out
            are then never read.
        languages: languages of the parallel sentences to evaluate on, as sets `ntrex-LANGUAGE` (translation to
            English).
        trained_languages: languages of the parallel sentences to train on, besides English; all if empty.
        partners: number of translations that each sentence is paired with.
        held_out_share: share of the documents of parallel sentences to evaluate on.
        development_share: share of the training data to hold out in "development".
        task_share: share of the programming tasks to train on, in the languages of `trained`. The other tasks are
            evaluated on in the languages of `evaluated`, so no description is on both sides.
        most_queries, most_documents: size of a seeded sample of each evaluation set; 0 for all.
        most_pairs: size of a seeded sample of each training source; 0 for all.
        most_pairs_of: source -> another value of `most_pairs` for it.
        seed: seed of all draws.
    """

    path: str
    python: PythonCorpus
    docs: DocsCorpus | None = None
    split: Split = "test"
    trained: tuple[str, ...] = ()
    evaluated: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    unseen_packages: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    trained_languages: tuple[str, ...] = ()
    partners: int = 1
    held_out_share: float = 0.25
    development_share: float = 0.15
    task_share: float = 0.35
    most_queries: int = 0
    most_documents: int = 0
    most_pairs: int = 0
    most_pairs_of: dict[str, int] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        if both := sorted(set(self.trained) & set(self.evaluated)):
            raise BadInput(f"MultilingualCorpus: {', '.join(both)} both trained and evaluated; choose one")
        if self.split not in ("test", "development"):
            raise BadInput(f"MultilingualCorpus.split={self.split!r}; choose 'test' or 'development'")
        if unknown := sorted(set(self.unseen) - {*self.trained, _PAGES}):
            raise BadInput(
                f"MultilingualCorpus.unseen: {unknown[0]} is not trained on; name one of trained or {_PAGES}"
            )
        if self.split == "development" and not self.unseen_packages:
            raise BadInput("MultilingualCorpus.unseen_packages: name the packages that development evaluates on")

    def build(self, output: pathlib.Path) -> dict[str, Any]:
        """Writes the corpus folder, completely or not at all, and returns its counts.

        Raises:
            BadInput: a file is missing or damaged, or a training row overlaps with the evaluation.
        """
        folder, output = pathlib.Path(self.path), pathlib.Path(output)
        if not folder.is_dir():
            raise BadInput(f"MultilingualCorpus.path: no folder {folder}")
        sentences = Sentences.read(_one_of(folder / "text", "ntrex.jsonl"))
        pages = Pages.read(_one_of(folder / "text", "fastapi-docs.jsonl"))
        with tempfile.TemporaryDirectory(dir=_made(output.parent)) as temporary:
            code = pathlib.Path(temporary) / "python"
            self._packages.build(code, logging.info)
            evaluation = {"python": read_beir(code / "evaluation")}
            rows = self._python_rows(code)
            searched = read_rows(code / "search.jsonl")
        for name in self.trained:
            kept, held = self._parted(name, read_beir(folder / "retrieval" / name))
            if self.split == "development":
                evaluation[name] = held
                if name in self.unseen:
                    continue
            rows.extend(question_rows(name, kept))
            if not name.startswith(_TASKS):
                rows.pairs += cropped_pairs(f"{name}-crop", kept.documents, self.seed)
        if self.split == "test":
            for name in self.evaluated:
                evaluation[name] = self._tested(name, read_beir(folder / "retrieval" / name))

        held, kept = self._documents_parted(sentences)
        rows.extend(sentences.within(kept).in_languages(self.trained_languages).rows(self.seed, partners=self.partners))
        evaluation |= {f"{sentences.source}-{of}": sentences.within(held).retrieval_set(of) for of in self.languages}
        unseen = _PAGES in self.unseen
        developed = {path for path in pages.sections if self._developed("page", path, unseen=unseen)}
        rows.extend(pages.within(pages.sections.keys() - developed).rows(self.seed))
        if self.split == "development":
            evaluation[pages.source] = pages.within(developed).retrieval_set()

        if self.docs is not None:
            of_docs, sets = self.docs.parts()
            rows.extend(of_docs)
            evaluation |= sets

        evaluation = {
            name: sampled(data, self.most_documents, self.most_queries, self.seed) for name, data in evaluation.items()
        }
        if empty := [name for name, data in evaluation.items() if not data.query_ids]:
            raise BadInput(
                f"MultilingualCorpus: nothing is left to evaluate on in {', '.join(empty)}; raise most_documents"
            )
        samples = PairSamples(self.most_pairs, self.most_pairs_of, self.seed)
        return write_corpus(output, rows, evaluation, searched, samples)

    def _python_rows(self, code: pathlib.Path) -> TrainingRows:
        pairs = [(row["query"], row["document"], "python") for row in read_rows(code / "pairs.jsonl")]
        documents = [{**row, "source": "python"} for row in read_rows(code / "documents.jsonl")]
        texts = [{"text": row["text"], "source": "python"} for row in read_rows(code / "text.jsonl")]
        pairs += [(*pair, "python-docstring") for row in texts for pair in described(row["text"])]
        names = ("query", "document", "source")
        return TrainingRows(texts, [dict(zip(names, pair, strict=True)) for pair in dict.fromkeys(pairs)], documents)

    @property
    def _packages(self) -> PythonCorpus:
        if self.split == "test":
            return self.python
        never_read = (*self.python.excluded_packages, *self.python.held_out)
        return dataclasses.replace(self.python, held_out=self.unseen_packages, excluded_packages=never_read)

    def _developed(self, *names: str, unseen: bool = False) -> bool:
        """Returns whether development evaluates on it: a drawn share, or everything that is unseen."""
        share = 1.0 if unseen else self.development_share
        return self.split == "development" and draw(self.seed, "development", *names) < share

    def _parted(self, name: str, data: RetrievalSet) -> tuple[RetrievalSet, RetrievalSet]:
        """Splits a training set into (trained on, held out for development), by whole parents or whole tasks."""
        if name.startswith(_TASKS):
            of = {
                row: task
                for row, task in self._task_of(data).items()
                if draw(self.seed, "task", task) < self.task_share
            }
            held = [row for row, task in of.items() if self._developed(_TASKS, task)]
        else:
            of = dict(enumerate(data.parents))
            held = [row for row, parent in of.items() if self._developed(name, parent, unseen=name in self.unseen)]
        kept = sorted(of.keys() - set(held))
        return restricted(data, kept, lambda _: True), restricted(data, held, lambda _: True)

    def _tested(self, name: str, data: RetrievalSet) -> RetrievalSet:
        if not name.startswith(_TASKS):
            return data
        rows = [row for row, key in self._task_of(data).items() if draw(self.seed, "task", key) >= self.task_share]
        return restricted(data, rows, lambda _: True)

    def _task_of(self, data: RetrievalSet) -> dict[int, str]:
        """Returns passage -> the description that it solves, equal in all programming languages."""
        place = {name: row for row, name in enumerate(data.document_ids)}
        described = zip(data.query_ids, data.queries, strict=True)
        return {
            place[document]: " ".join(word for word in words_of(text) if word not in _VARYING)
            for name, text in described
            for document in data.qrels[name]
        }

    def _documents_parted(self, sentences: Sentences) -> tuple[set[str], set[str]]:
        """Returns the documents of parallel sentences to evaluate on, and those to train on."""
        tested = {name for name in sentences.documents if draw(self.seed, "document", name) < self.held_out_share}
        others = sentences.documents.keys() - tested
        developed = {name for name in others if self._developed("document", name)}
        return (tested if self.split == "test" else developed), set(others - developed)


def _one_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _made(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
