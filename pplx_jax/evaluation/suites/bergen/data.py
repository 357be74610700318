"""BERGEN's five question sets and its passages, read from the files that their authors publish.

Splits, ids, answers and the cutting of Wikipedia into numbered passages of 100 words follow naver/bergen,
modules/dataset_processor.py and modules/processors/.

    kilt_nq        nq-dev-kilt.jsonl                                    (facebookresearch/KILT)
    kilt_hotpotqa  hotpotqa-dev-kilt.jsonl
    kilt_triviaqa  triviaqa-dev_id-kilt.jsonl, questions from unfiltered-web-dev.json (TriviaQA)
    asqa           ASQA.json                                            (google-research/language, asqa)
    popqa          popQA.tsv                                            (AlexTMallen/adaptive-retrieval)
    passages       kilt_knowledgesource.json                            (facebookresearch/KILT)
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import atomic_path
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.json_lines import numbered_lines, parse_object

WORDS_PER_PASSAGE = 100
_LIST_ITEM, _SECTION = "BULLET::::", "Section::::"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question. A correct answer contains one of `answers`."""

    id: str
    text: str
    answers: tuple[str, ...]


def read_questions(name: str, folder: pathlib.Path) -> list[Question]:
    """Reads one of the five sets, in file order, without the questions that have no answer.

    Args:
        name: a key of `FILES`.
        folder: contains its files.

    Raises:
        BadInput: a file is missing or has another format.
    """
    paths = [folder / file for file in FILES[name]]
    for path in paths:
        if not path.is_file():
            raise BadInput(f"{name} needs {path}; download the published file (docs/benchmarks.md)")
    try:
        questions = [question for question in _READERS[name](*paths) if question.answers]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{', '.join(map(str, paths))}: not the published file of {name} ({error})") from None
    if not questions:
        raise BadInput(f"{paths[0]} has no question with an answer; check that it is the published file of {name}")
    return questions


def _kilt(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    for _, line in numbered_lines(path):
        row = parse_object(line)
        yield row, tuple(found["answer"] for found in row["output"] if found.get("answer"))


def _read_kilt(path: pathlib.Path) -> Iterator[Question]:
    for row, answers in _kilt(path):
        yield Question(str(row["id"]), row["input"], answers)


def _read_triviaqa(path: pathlib.Path, original: pathlib.Path) -> Iterator[Question]:
    data = json.loads(original.read_text(encoding="utf-8"))["Data"]
    text_of = {row["QuestionId"]: row["Question"] for row in data}
    for row, answers in _kilt(path):
        if row["id"] in text_of:
            yield Question(row["id"], text_of[row["id"]], answers)


def _read_asqa(path: pathlib.Path) -> Iterator[Question]:
    for number, row in enumerate(json.loads(path.read_text(encoding="utf-8"))["dev"].values()):
        answers = dict.fromkeys(answer for pair in row["qa_pairs"] for answer in pair["short_answers"])
        yield Question(str(number), row["ambiguous_question"], tuple(answers))


def _read_popqa(path: pathlib.Path) -> Iterator[Question]:
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t")):
            yield Question(f"test{number}", row["question"], tuple(json.loads(row["possible_answers"])))


FILES = {
    "kilt_nq": ("nq-dev-kilt.jsonl",),
    "kilt_hotpotqa": ("hotpotqa-dev-kilt.jsonl",),
    "kilt_triviaqa": ("triviaqa-dev_id-kilt.jsonl", "unfiltered-web-dev.json"),
    "asqa": ("ASQA.json",),
    "popqa": ("popQA.tsv",),
}
_READERS: dict[str, Callable[..., Iterator[Question]]] = {
    "kilt_nq": _read_kilt,
    "kilt_hotpotqa": _read_kilt,
    "kilt_triviaqa": _read_triviaqa,
    "asqa": _read_asqa,
    "popqa": _read_popqa,
}


def passages_of(page: dict[str, Any]) -> list[str]:
    """Splits a page of KILT's Wikipedia into passages of 100 words, each after the page's title, without list items."""
    paragraphs = (text.strip() for text in page["text"] if _LIST_ITEM not in text)
    words = " ".join(paragraphs).replace(_SECTION, "Section:").split()
    starts = range(0, len(words), WORDS_PER_PASSAGE)
    return [f"{page['wikipedia_title']}. {' '.join(words[start : start + WORDS_PER_PASSAGE])}" for start in starts]


def write_passages(knowledge_source: pathlib.Path, output: pathlib.Path) -> int:
    """Writes all passages as JSON lines for `pplx-jax embed`: {"id", "text", "source": the page's id}.

    Ids count from 0, as in BERGEN's kilt-100w. The file is renamed to `output` when it is complete.

    Returns:
        The number of passages.

    Raises:
        BadInput: the source cannot be read or is not KILT's knowledge source.
    """
    count = 0
    with (
        atomic_path(output) as temporary,
        open(temporary, "w", encoding="utf-8") as file,
        Progress("passages", unit="page") as progress,
    ):
        for number, line in numbered_lines(knowledge_source):
            try:
                page = parse_object(line)
                source, passages = page["wikipedia_id"], passages_of(page)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(
                    f"{knowledge_source}, line {number}: not a KILT page ({error}); download it again"
                ) from None
            for text in passages:
                file.write(json.dumps({"id": str(count), "text": text, "source": source}, ensure_ascii=False) + "\n")
                count += 1
            progress.update(number)
    return count
