"""Prompts: texts that a model was trained to see before its queries and its documents.

A model has prompts by name, as in sentence-transformers: "query", "document", and any others, such as "clustering".
Without prompts every text is encoded as it is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput

QUERY, DOCUMENT = "query", "document"


def checked_prompts(prompts: Any, where: str) -> dict[str, str]:
    """Returns prompts by name, without those that are empty.

    Args:
        prompts: name -> text; None for none.
        where: what has the prompts, for messages.

    Raises:
        BadInput: a name or a text is not a str, or a name is empty.
    """
    if prompts is None:
        return {}
    fix = "give names and texts, such as {'query': 'query: ', 'document': 'passage: '}"
    if not isinstance(prompts, Mapping):
        raise BadInput(f"{where}: prompts {prompts!r} are no mapping; {fix}")
    for name, text in prompts.items():
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise BadInput(f"{where}: prompt {name!r}: {text!r} is not a name and a text; {fix}")
    return {name: text for name, text in prompts.items() if text}


def with_prompt(texts: Sequence[str], prompt: str) -> list[str]:
    """Returns each text with the prompt before it. Empty texts and texts of white space stay as they are."""
    return [prompt + text if text.strip() else text for text in texts] if prompt else list(texts)


def with_document_prompt(documents: Sequence[Sequence[str]], prompt: str) -> list[list[str]]:
    """Returns each document with the prompt before its first chunk, as before a document of one chunk."""
    return [[*with_prompt(document[:1], prompt), *document[1:]] for document in documents]


def merged_prompts(own: Mapping[str, str], given: Mapping[str, str | None], where: str) -> dict[str, str]:
    """Returns the prompts of a model with those that a caller gives. None keeps the model's, and "" removes it.

    Raises:
        BadInput: as `checked_prompts`.
    """
    return checked_prompts({**own, **{name: text for name, text in given.items() if text is not None}}, where)


def prompted_fingerprint(fingerprint: str, prompts: Mapping[str, str]) -> str:
    """Returns the fingerprint of a model with prompts: that of the model itself if there are none."""
    if not prompts:
        return fingerprint
    facts = [fingerprint, dict(prompts)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
