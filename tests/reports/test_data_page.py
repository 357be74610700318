"""The page of a data report."""

from helpers.html_checker import Checker

from pplx_jax.reports.data_page import render_data_page

REPORT = {
    "examples": 100,
    "tokens": 2000,
    "fill": 0.9,
    "duplicates": {"exact": 1, "near": 2},
    "overlap": 0,
    "bad_rows": 0,
    "languages": {},
    "fill_by_stage": {},
    "sources": {},
}


def text_of(**changes):
    checker = Checker()
    checker.feed(render_data_page({**REPORT, **changes}, name="my <corpus>"))
    assert not checker.open
    return " ".join(" ".join(checker.text).split())


def test_no_language_is_left_out_without_a_word():
    text = text_of(languages={f"l{number:02d}": 10 for number in range(40)})
    assert "l39 10" in text and "more" not in text
    text = text_of(languages={f"l{number:02d}": 1000 - number for number in range(45)})
    assert "l39 961" in text and "l40" not in text
    assert f"5 more {960 + 959 + 958 + 957 + 956:,}" in text


def test_names_are_escaped():
    assert "my <corpus>: data" in text_of()
