"""Prompts of a source: which texts of its tables have them, and what stays the same without them."""

import json

import pytest
from helpers import tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources import seqio_tasks as tasks
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.token_table import TokenTable

LENGTHS = Lengths(text=16, query=40, document=40, chunk=40, chunks=2)
PROMPTS = {"query": "ask: ", "document": "tell: "}
PAIR = {"query": "open the file", "positive": "read the table"}
ROWS = {
    "pair": PAIR,
    "triplet": {**PAIR, "negatives": ["write the index", "close the file"]},
    "contextual": {"chunks": ["one", "two", "three"], "queries": [{"text": "first", "chunk": 0}]},
}


def source_of(folder, kind, **fields):
    path = folder / f"{kind}.jsonl"
    path.write_text(json.dumps(ROWS[kind]) + "\n")
    return Source(kind, kind, str(path), **{"negatives": 2, **fields})


def examples(source):
    read = source.examples(source.shards()[0], BadRows(source.name), max_chunks=2)
    return list(source.prompted(read))


def test_a_source_has_the_prompts_of_the_recipe_unless_it_has_its_own(tmp_path):
    source = source_of(tmp_path, "pair")
    assert source.prompts == {} and source.with_prompts({}) is source
    assert source.with_prompts(PROMPTS).prompts == PROMPTS
    own = source_of(tmp_path, "pair", query_prompt="", document_prompt="say: ")
    assert own.with_prompts(PROMPTS).prompts == {"document": "say: "}
    with pytest.raises(BadInput, match="kind text has a prompt"):
        Source("notes", "text", "notes.jsonl", query_prompt="ask: ")
    text = Source("notes", "text", "notes.jsonl")
    assert text.with_prompts(PROMPTS) is text


def test_every_text_of_an_example_has_its_prompt(tmp_path):
    pair, triplet, contextual = (examples(source_of(tmp_path, kind).with_prompts(PROMPTS)) for kind in ROWS)
    assert [pair[0][name] for name in ("query", "positive")] == ["ask: open the file", "tell: read the table"]
    assert triplet[0]["negatives"] == ["tell: write the index", "tell: close the file"]
    # The document was split before, so that each part begins with the prompt.
    assert contextual[0]["chunks"] == ["tell: one"] and contextual[0]["queries"] == [("ask: first", 0)]
    without = examples(source_of(tmp_path, "triplet"))
    assert without[0]["negatives"] == ROWS["triplet"]["negatives"]


def test_the_text_of_a_source_in_finished_phases_is_that_of_earlier_versions():
    source = Source("medical", "pair", "a.jsonl")
    assert "prompt" not in repr(source) and repr(source).startswith(
        "Source(name='medical', kind='pair', path='a.jsonl'"
    )
    assert repr(source).endswith("max_bad_share=0.0)")
    assert "query_prompt='ask: '" in repr(Source("medical", "pair", "a.jsonl", query_prompt="ask: "))


@pytest.mark.slow
def test_tables_hold_the_prompts_and_without_them_are_equal_to_the_last_bit(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    digests = {}
    for name, prompts in {"plain": {}, "prompted": PROMPTS}.items():
        source = source_of(tmp_path, "pair").with_prompts(prompts)
        tasks.tokenize_source(source, vocabulary, tmp_path / name, LENGTHS)
        table = TokenTable.open(tmp_path / name)
        query, document = (prompts.get(field, "") for field in ("query", "document"))
        assert table["query"][0].tolist() == vocabulary.encode(query + PAIR["query"])
        assert table["document"][0].tolist() == vocabulary.encode(document + PAIR["positive"])
        assert table.manifest.get("prompts", {}) == prompts
        digests[name] = table.digest
    tasks.tokenize_source(source_of(tmp_path, "pair", query_prompt=""), vocabulary, tmp_path / "none", LENGTHS)
    assert TokenTable.open(tmp_path / "none").digest == digests["plain"] != digests["prompted"]


@pytest.mark.slow
def test_cached_tables_with_other_prompts_are_refused(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    source = source_of(tmp_path, "pair")
    (tmp_path / "sets").mkdir()
    SourceCorpus([source], "sets").tokenize(tmp_path, vocabulary, tmp_path / "tokens", LENGTHS, PROMPTS)
    cached = SourceCorpus([source], "sets", tokens=str(tmp_path / "tokens"))
    cached.tokenize(tmp_path, vocabulary, tmp_path / "same", LENGTHS, PROMPTS)
    with pytest.raises(BadInput, match=r"made with the prompts .*ask: .*, this recipe has \{\}"):
        cached.tokenize(tmp_path, vocabulary, tmp_path / "other", LENGTHS)
