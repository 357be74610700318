"""BERGEN (arXiv 2407.01102): retrieval judged by the answers that a reader finds in what was retrieved.

    DATA/index/         an index of the KILT passages, of either engine (`bergen_data.write_passages` has their texts)
    DATA/...            files of the question sets, see `bergen_data`; sets without files are no tasks
    DATA/options.json   what `BergenOptions` names: {"reader_url": "http://localhost:8000/v1", "reader_model": "name"}
    DATA/runs/          written: TREC runs that BERGEN's own runs folder takes, and the answers of the reader

Metrics: "match", the share of questions whose answer holds a reference answer (naver/bergen, modules/metrics.py); it
needs a reader. Without one there is "passages_match@5", the same of the passages that the reader would be given.
A match depends on the reader and its prompt: compare under equal ones, and for published figures give BERGEN the runs.
"""

import dataclasses
import hashlib
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import regex

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.evaluation.core.benchmark import Part, System
from pplx_jax.evaluation.core.data_options import read_options
from pplx_jax.evaluation.scoring.passage_index import open_passage_index
from pplx_jax.evaluation.scoring.reader import SYSTEM_PROMPT, USER_PROMPT, Reader
from pplx_jax.evaluation.suites.bergen_data import FILES, Question, read_questions

COLLECTION, SPLIT = "kilt-100w", "dev"  # BERGEN's names
_ARTICLES = regex.compile(r"\b(a|an|the)\b")  # not re: to it a combining mark ends a word
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class BergenOptions:
    """What a user may choose, in options.json beside the data.

    Attributes:
        k: passages of a run, BERGEN's retrieve_top_k.
        passages: read, BERGEN's generation_top_k.
        reader_url, reader_model: see `reader.Reader`; without both nothing is read.
        system_prompt, user_prompt: of the reader, the latter with {passages} and {question}.
    """

    k: int = 50
    passages: int = 5
    reader_url: str | None = None
    reader_model: str | None = None
    system_prompt: str = SYSTEM_PROMPT
    user_prompt: str = USER_PROMPT

    def __post_init__(self):
        if not 1 <= self.passages <= self.k:
            raise BadInput(
                f"passages={self.passages}, k={self.k}: read at least one passage and at most those of the run"
            )
        if (self.reader_url is None) != (self.reader_model is None):
            raise BadInput("a reader is reader_url and reader_model together; give both or neither")

    @property
    def reader(self) -> Reader | None:
        if self.reader_url is None or self.reader_model is None:
            return None
        return Reader(self.reader_url, self.reader_model, self.system_prompt, self.user_prompt)


def normalized(text: str) -> str:
    """Lower case without ASCII punctuation and English articles, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def match(text: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised text holds some normalised answer, else 0.0; as BERGEN's metric "M"."""
    held = normalized(text)
    return float(any(normalized(answer) in held for answer in answers))


def run_name(dataset: str, retriever: str, k: int) -> str:
    """The file that BERGEN looks for instead of retrieving (naver/bergen, utils.py).

    Args:
        dataset: one of its query sets.
        retriever: the `model_name` of its config/retriever/*.yaml; "/" becomes "_".
        k: its retrieve_top_k.
    """
    return f"run.retrieve.top_{k}.{dataset}.{COLLECTION}.{SPLIT}.{retriever.replace('/', '_')}.trec"


def write_bergen_run(
    path: pathlib.Path, questions: Sequence[Question], hits: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Writes a run as BERGEN reads it: six columns with tabs between, ranks from 1.

    Raises:
        BadInput: a question has no hit, which BERGEN cannot express, or an id holds a tab or a line end.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for question, found in zip(questions, hits, strict=True):
            if not found:
                raise BadInput(f"nothing was found for question {question.id!r}; is the index whole?")
            for rank, hit in enumerate(found, start=1):
                if any(mark in question.id + hit["id"] for mark in "\t\r\n"):
                    raise BadInput(f"{path}: an id of {question.id!r}, {hit['id']!r} holds a tab or a line end")
                file.write(f"{question.id}\tq0\t{hit['id']}\t{rank}\t{hit['score']:.9g}\trun\n")


@dataclasses.dataclass(frozen=True)
class BergenTask:
    """One question set (`benchmark.Task`).

    Attributes:
        name: BERGEN's, such as "kilt_nq".
        data: see the module.
        options: the user's.
    """

    name: str
    data: pathlib.Path
    options: BergenOptions

    @property
    def main_metric(self) -> str:
        return "match" if self.options.reader else self._passages_match

    @property
    def revision(self) -> str:
        """16 hex digits of the options, of the questions' files and of what describes the index."""
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
            asked = [reader.request(question.text, texts) for question, texts in zip(questions, read, strict=True)]
            answers = reader.answers(asked, runs / f"answers.{self.name}.{retriever}.jsonl")
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
    """The family (`benchmark.Benchmark`)."""

    name: str
    tasks: Sequence[BergenTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """The mean over the sets of each metric."""
        values: dict[str, list[float]] = {}
        for (part,) in parts.values():
            for name, value in part.metrics.items():
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(of_sets)) for name, of_sets in values.items()}


def open_benchmark(name: str, data: pathlib.Path | None, **options: Any) -> Bergen:
    """Opens the sets whose files are in a folder.

    Args:
        name: "bergen".
        data: see the module.
        **options: of `BergenOptions`.

    Raises:
        BadInput: there is no folder, it holds no set, or there is no such option.
    """
    wanted = "; ".join(f"{file_set}: {', '.join(files)}" for file_set, files in FILES.items())
    if data is None:
        raise BadInput(f"{name} needs --data, a folder with index/ and files of its sets ({wanted})")
    chosen = read_options(BergenOptions, data, options)
    there = [file_set for file_set, files in FILES.items() if all((data / file).is_file() for file in files)]
    if not there:
        raise BadInput(f"{data} holds no set of {name}; put there {wanted}")
    return Bergen(name, [BergenTask(file_set, data, chosen) for file_set in there])
