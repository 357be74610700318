"""Builds the texts of mteb's rows (mteb/_create_dataloaders.py), and the prompts that some models need."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import document_text

Columns = Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Templates for queries and documents, for models that were trained with them. Ours were not.

    `{text}` is replaced by the text, `{instruction}` by mteb's instruction for the task, such as "Given a claim, find
    documents that refute the claim". E5: `Prompts("query: {text}", "passage: {text}")`. Qwen3-Embedding:
    `Prompts("Instruct: {instruction}\\nQuery:{text}")`.

    Raises:
        BadInput: a template has no {text}.
    """

    query: str = "{text}"
    document: str = "{text}"

    def __post_init__(self):
        for name, template in dataclasses.asdict(self).items():
            if "{text}" not in template:
                raise BadInput(f"the {name} prompt {template!r} has no {{text}}; add {{text}} where the text goes")

    def queries(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Applies the query template to every query."""
        return _fill(self.query, texts, instruction)

    def documents(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Applies the document template to every document."""
        return _fill(self.document, texts, instruction)


NO_PROMPTS = Prompts()


def _fill(template: str, texts: Sequence[str], instruction: str) -> list[str]:
    # Not str.format: templates and texts may contain other braces.
    before, _, after = template.partition("{text}")
    before, after = (part.replace("{instruction}", instruction) for part in (before, after))
    return [f"{before}{text}{after}" for text in texts]


def task_instruction(metadata: Any, kind: str) -> str:
    """Returns mteb's instruction for a task, or else for its task type.

    Args:
        metadata: mteb's `TaskMetadata`.
        kind: "query" or "document".
    """
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = metadata.prompt
    if isinstance(prompt, Mapping):
        return prompt.get(kind, "")
    return prompt or get_abstask_prompt(metadata.name)


def document_texts(columns: Columns) -> list[str]:
    """Returns "TITLE TEXT" of each document, as in BEIR, without surrounding white space.

    Raises:
        BadInput: there is no column "text", or a row has no text.
    """
    texts = _texts(columns)
    titles = columns.get("title") or itertools.repeat(None)
    return [document_text(title, text) for title, text in zip(titles, texts, strict=False)]


def query_texts(columns: Columns) -> list[str]:
    """Returns each query followed by its instruction, if any. A conversation becomes one line after its instruction.

    Raises:
        BadInput: there is no column "text", or a row has no text.
    """
    texts = _texts(columns)
    instructions = columns.get("instruction") or itertools.repeat(None)
    result = []
    for text, instruction in zip(texts, instructions, strict=False):
        parts = [instruction, _conversation(text)] if not isinstance(text, str) else [text, instruction]
        result.append(" ".join(part for part in parts if part is not None))
    return result


def _texts(columns: Columns) -> Sequence[Any]:
    if "text" not in columns:
        raise BadInput(f'no column "text", only {", ".join(columns)}: download the files of the data set again')
    for index, text in enumerate(columns["text"]):
        if text is None:
            raise BadInput(f"{columns['id'][index]!r} has no text; download the files of the data set again")
    return columns["text"]


def _conversation(turns: Sequence[str | Mapping[str, str]]) -> str:
    return "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in turns)
