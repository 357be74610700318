"""The texts of mteb's rows, and prompts around them."""

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts, document_texts, query_texts


def test_a_title_stands_before_its_text():
    columns = {"id": ["1", "2", "3"], "title": ["Ants", "", None], "text": [" live here ", "bees ", " cats"]}
    assert document_texts(columns) == ["Ants  live here", "bees", "cats"]
    assert document_texts({"id": ["1"], "text": [" ants "]}) == ["ants"]


def test_queries_with_instructions_and_conversations():
    assert query_texts({"id": ["1"], "text": [" ants "]}) == [" ants "]
    columns = {"id": ["1", "2"], "text": ["ants", "bees"], "instruction": ["be brief", None]}
    assert query_texts(columns) == ["ants be brief", "bees"]
    turns = [{"role": "user", "content": "ants?"}, {"role": "assistant", "content": "yes"}]
    assert query_texts({"id": ["1", "2"], "text": [["ants?", "yes"], turns]}) == [
        "ants?; yes",
        "user: ants?; assistant: yes",
    ]
    assert query_texts({"id": ["1"], "text": [turns], "instruction": ["find"]}) == ["find user: ants?; assistant: yes"]


@pytest.mark.parametrize("texts", [document_texts, query_texts])
def test_rows_without_text_are_named(texts):
    with pytest.raises(BadInput, match="'b' has no text"):
        texts({"id": ["a", "b"], "text": ["ants", None]})
    with pytest.raises(BadInput, match='no column "text", only id, body'):
        texts({"id": ["a"], "body": ["ants"]})


def test_templates_surround_the_text_and_may_hold_braces():
    prompts = Prompts("Instruct: {instruction}\nQuery:{text}", "passage {}: {text}")
    assert prompts.queries(["{x}"], "find {y}") == ["Instruct: find {y}\nQuery:{x}"]
    assert prompts.documents(["ants"], "find") == ["passage {}: ants"]
    assert NO_PROMPTS.queries(["{instruction}"], "find") == ["{instruction}"]
    with pytest.raises(BadInput, match="document prompt 'passage' has no {text}"):
        Prompts(document="passage")
