"""The texts of mteb's rows as a model reads them (mteb/_create_dataloaders.py), and the prompts some models want."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput

Columns = Mapping[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Templates around every query and document, for models that were trained with them; ours were not.

    `{text}` stands for the text, `{instruction}` for what mteb says of the task, such as "Given a claim, find
    documents that refute the claim". E5: `Prompts("query: {text}", "passage: {text}")`; Qwen3-Embedding:
    `Prompts("Instruct: {instruction}\\nQuery:{text}")`.

    Raises:
        BadInput: a template has no {text}.
    """

    query: str = "{text}"
    document: str = "{text}"

    def __post_init__(self):
        for name, template in dataclasses.asdict(self).items():
            if "{text}" not in template:
                raise BadInput(f"the {name} prompt {template!r} has no {{text}}: say where the text goes")

    def queries(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Every query in its template."""
        return _fill(self.query, texts, instruction)

    def documents(self, texts: Sequence[str], instruction: str) -> list[str]:
        """Every document in its template."""
        return _fill(self.document, texts, instruction)


NO_PROMPTS = Prompts()


def _fill(template: str, texts: Sequence[str], instruction: str) -> list[str]:
    # Not str.format: templates and texts hold braces of their own.
    before, _, after = template.partition("{text}")
    before, after = (part.replace("{instruction}", instruction) for part in (before, after))
    return [f"{before}{text}{after}" for text in texts]


def task_instruction(metadata: Any, kind: str) -> str:
    """What mteb says of a task in its metadata, else what it says of all tasks of the type.

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
    """Title and text with a blank between, as BEIR joins them; white space around them goes.

    Raises:
        BadInput: there is no column of texts, or a row has none.
    """
    texts = _texts(columns)
    titles = columns.get("title") or itertools.repeat(None)
    return [f"{title} {text}".strip() if title else text.strip() for title, text in zip(titles, texts, strict=False)]


def query_texts(columns: Columns) -> list[str]:
    """The query, its instruction after it where it has one; a conversation becomes one line, its instruction first.

    Raises:
        BadInput: there is no column of texts, or a row has none.
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
        raise BadInput(f'no column "text", only {", ".join(columns)}: check the files of the data set')
    for place, text in enumerate(columns["text"]):
        if text is None:
            raise BadInput(f"{columns['id'][place]!r} has no text: check the files of the data set")
    return columns["text"]


def _conversation(turns: Sequence[str | Mapping[str, str]]) -> str:
    return "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in turns)
