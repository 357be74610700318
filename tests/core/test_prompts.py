"""Prompts by name: what is refused, and which texts take one."""

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import (
    checked_prompts,
    merged_prompts,
    prompted_fingerprint,
    with_document_prompt,
    with_prompt,
)


def test_names_and_texts_are_checked_and_empty_prompts_are_none():
    assert checked_prompts({"query": "q: ", "document": ""}, "here") == {"query": "q: "}
    assert checked_prompts(None, "here") == {}
    for wrong in (["query"], {"query": 3}, {"": "text"}, {4: "text"}):
        with pytest.raises(BadInput, match="run.prompts"):
            checked_prompts(wrong, "run.prompts")
    own = {"query": "q: ", "document": "d: "}
    assert merged_prompts(own, {"query": None, "document": "", "sts": "s: "}, "here") == {"query": "q: ", "sts": "s: "}


def test_texts_without_content_take_no_prompt():
    assert with_prompt(["a", "", " \n"], "q: ") == ["q: a", "", " \n"]
    assert with_document_prompt([["a", "b"], ["", "b"], []], "d: ") == [["d: a", "b"], ["", "b"], []]


def test_a_model_without_prompts_keeps_its_fingerprint():
    assert prompted_fingerprint("abc", {}) == "abc"
    assert len({prompted_fingerprint("abc", {"query": text}) for text in ("q: ", "s: ")} | {"abc"}) == 3
