"""BERGEN (arXiv 2407.01102): judges retrieval by the answers that a reader model gives from the retrieved passages.

    DATA/index/         an index of the KILT passages, of any engine (`data.write_passages` writes their texts)
    DATA/...            files of the question sets, see `data`; a set without files is not a task
    DATA/options.json   fields of `BergenOptions`, such as
                        {"reader_url": "http://localhost:8000/v1", "reader_model": "name"}
    DATA/runs/          written: TREC runs for BERGEN's own runs folder, and the reader's answers

Metrics: "match" is the share of questions whose answer contains a reference answer (naver/bergen, modules/metrics.py).
It needs a reader. "passages_match@5" is the same for the retrieved passages that the reader would get. "match" depends
on the reader and its prompt: compare scores only with equal ones. For published numbers, give the runs to BERGEN.
"""

import dataclasses
import hashlib
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.evaluation.core.benchmark import Part, mean_of_each
from pplx_jax.evaluation.core.data_options import read_options
from pplx_jax.evaluation.scoring.system import System
from pplx_jax.evaluation.suites.bergen.data import FILES, Question, read_questions
from pplx_jax.evaluation.suites.bergen.passage_index import open_passage_index
from pplx_jax.evaluation.suites.bergen.reader import SYSTEM_PROMPT, USER_PROMPT, Reader

NAMES = ("bergen",)
COLLECTION, SPLIT = "kilt-100w", "dev"  # BERGEN's names
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class BergenOptions:
    """Options, read from options.json in the data folder.

    Attributes:
        k: number of passages in a run, BERGEN's retrieve_top_k.
        passages: number of passages that the reader gets, BERGEN's generation_top_k.
        reader_url, reader_model: see `reader.Reader`; both None for no reader.
        system_prompt, user_prompt: of the reader; the latter contains {passages} and {question}.
    """

    k: int = 50
    passages: int = 5
    reader_url: str | None = None
    reader_model: str | None = None
    system_prompt: str = SYSTEM_PROMPT
    user_prompt: str = USER_PROMPT

    def __post_init__(self):
        if not 1 <= self.passages <= self.k:
            raise BadInput(f"passages={self.passages}, k={self.k}: set passages to at least 1 and at most k")
        if (self.reader_url is None) != (self.reader_model is None):
            raise BadInput("a reader needs both reader_url and reader_model; give both or neither")

    @property
    def reader(self) -> Reader | None:
        if self.reader_url is None or self.reader_model is None:
            return None
        return Reader(self.reader_url, self.reader_model, self.system_prompt, self.user_prompt)


def normalized(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation and English articles, words separated by one space."""
    import regex  # unlike re, it treats a combining mark as part of its word

    return " ".join(regex.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def match(text: str, answers: Sequence[str]) -> float:
    """Returns 1.0 if the normalized text contains a normalized answer, else 0.0: BERGEN's metric "M"."""
    normal = normalized(text)
    return float(any(normalized(answer) in normal for answer in answers))


def run_name(dataset: str, retriever: str, k: int) -> str:
    """Returns the name of the run file that BERGEN reads instead of retrieving (naver/bergen, utils.py).

    Args:
        dataset: one of its query sets.
        retriever: the `model_name` in its config/retriever/*.yaml; "/" becomes "_".
        k: its retrieve_top_k.
    """
    return f"run.retrieve.top_{k}.{dataset}.{COLLECTION}.{SPLIT}.{retriever.replace('/', '_')}.trec"


def write_bergen_run(
    path: pathlib.Path, questions: Sequence[Question], hits: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Writes a run in BERGEN's format: six columns separated by tabs, ranks from 1.

    Raises:
        BadInput: a question has no hit, which the format cannot express, or an id contains a tab or a line end.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for question, found in zip(questions, hits, strict=True):
            if not found:
                raise BadInput(f"nothing was found for question {question.id!r}; check that the index is complete")
            for rank, hit in enumerate(found, start=1):
                if any(mark in question.id + hit["id"] for mark in "\t\r\n"):
                    raise BadInput(f"{path}: an id of {question.id!r}, {hit['id']!r} contains a tab or a line end")
                file.write(f"{question.id}\tq0\t{hit['id']}\t{rank}\t{hit['score']:.9g}\trun\n")


@dataclasses.dataclass(frozen=True)
class BergenTask:
    """One question set (`benchmark.Task`).

    Attributes:
        name: BERGEN's, such as "kilt_nq".
        data: the data folder, see the module.
        options: see `BergenOptions`.
    """

    name: str
    data: pathlib.Path
    options: BergenOptions

    @property
    def main_metric(self) -> str:
        return "match" if self.options.reader else self._passages_match

    @property
    def revision(self) -> str:
        """16 hex digits of the options, the question files and the index description."""
        digest = hashlib.sha256(repr(self.options).encode())
        for file in (*FILES[self.name], "index/index.json", "index/vespa.json"):
            if (self.data / file).is_file():
                digest.update((self.data / file).read_bytes())
        return digest.hexdigest()[:16]

    @property
    def _passages_match(self) -> str:
        return f"passages_match@{self.options.passages}"

    def evaluate(self, system: System) -> Sequence[Part]:
        questions = read_questions(self.name, self.data)
        index = open_passage_index(self.data / "index", system)
        ids, texts = zip(*((question.id, question.text) for question in questions), strict=True)
        hits = index.search(ids, texts, self.options.k, f"retrieve {self.name}")
        retriever = f"{pathlib.Path(system.name).name}-{system.settings.quantization}"
        runs = self.data / "runs"
        runs.mkdir(exist_ok=True)
        write_bergen_run(runs / run_name(self.name, retriever, self.options.k), questions, hits)
        read = [[hit["text"] for hit in found[: self.options.passages]] for found in hits]
        values = {
            self._passages_match: [
                max(match(text, question.answers) for text in texts)
                for question, texts in zip(questions, read, strict=True)
            ]
        }
        reader = self.options.reader
        if reader:
            requests = [reader.request(question.text, texts) for question, texts in zip(questions, read, strict=True)]
            answers = reader.answers(requests, runs / f"answers.{self.name}.{retriever}.jsonl")
            values["match"] = [
                match(answer, question.answers) for answer, question in zip(answers, questions, strict=True)
            ]
        return [
            Part(
                split=SPLIT,
                subset="default",
                metrics={name: float(np.mean(of_questions)) for name, of_questions in values.items()},
                queries=len(questions),
                documents=index.count,
                query_ids=[question.id for question in questions],
                per_query={name: np.array(of_questions) for name, of_questions in values.items()},
            )
        ]


@dataclasses.dataclass(frozen=True)
class Bergen:
    """A `benchmark.Benchmark` of question sets."""

    name: str
    tasks: Sequence[BergenTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Returns the mean of each metric over the question sets."""
        return mean_of_each(metric for (part,) in parts.values() for metric in part.metrics.items())


def open_benchmark(name: str, data: pathlib.Path | None, **options: Any) -> Bergen:
    """Opens the question sets whose files are in a folder.

    Args:
        name: "bergen".
        data: the data folder, see the module.
        **options: fields of `BergenOptions`.

    Raises:
        BadInput: `data` is None or has no question set, or an option is unknown.
    """
    wanted = "; ".join(f"{file_set}: {', '.join(files)}" for file_set, files in FILES.items())
    if data is None:
        raise BadInput(f"{name} needs --data, a folder with index/ and the files of its question sets ({wanted})")
    chosen = read_options(BergenOptions, data, options)
    found = [file_set for file_set, files in FILES.items() if all((data / file).is_file() for file in files)]
    if not found:
        raise BadInput(f"{data} has no question set of {name}; put these files there: {wanted}")
    return Bergen(name, [BergenTask(file_set, data, chosen) for file_set in found])
