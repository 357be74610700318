"""`data report` of a file without a recipe: kind by columns, words instead of tokens without a vocabulary."""

import json

import pytest
from helpers import tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.recipes.data_verbs import report_corpus

WORDS = "open the first file of the index and read each vector of the table before you close it again"
ROWS = {
    "text": {"text": WORDS, "language": "en"},
    "pair": {"query": "read a file", "document": WORDS},
    "triplet": {"query": "read a file", "positive": WORDS, "negatives": ["close it", "write a table"]},
    "contextual": {"id": "d", "chunks": [WORDS, "close"], "queries": [{"text": "read a file", "chunk": 0}]},
}
WORD_COUNTS = {"text": 19, "pair": 3 + 19, "triplet": 3 + 19 + 2 + 3, "contextual": 3 + 19 + 1}


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ROWS)
def test_each_kind_is_known_by_its_columns(kind, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = report_corpus(input=write(tmp_path / f"my {kind}s.{ending}", [ROWS[kind]] * 3))
    assert (result["examples"], result["unit"], result["tokens"]) == (3, "words", 3 * WORD_COUNTS[kind])
    assert result["duplicates"] == {"exact": 2, "near": 0} and result["bad_rows"] == 0
    assert 0 < result["fill"] <= 1 and list(result["fill_by_stage"]) == [kind]
    assert result["languages"] == {"en" if kind == "text" else "(none named)": 3}
    assert result["overlap"] is None and "Overlap with evaluation" not in result["text"]
    assert "words are counted instead of tokens" in result["text"] and f"Words: {result['tokens']}" in result["text"]
    assert sorted(path.name for path in (tmp_path / f"my_{kind}s-report").iterdir()) == [
        "report.html",
        "report.json",
        "report.txt",
    ]


def test_a_vocabulary_gives_tokens(tmp_path):
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    file = write(tmp_path / "t.jsonl", [{"body": WORDS}, {"body": 3}])
    result = report_corpus(input=file, text_field="body", vocabulary=tmp_path, output=tmp_path / "out")
    assert (result["unit"], result["tokens"]) == ("tokens", len(vocabulary.encode(WORDS)))
    assert result["bad_rows"] == 1 and "words" not in result["text"].splitlines()[1]
    assert result["report"] == str(tmp_path / "out" / "report.html")


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"a": 1, "b": 2}\n', "columns a, b; give text, query and positive, or chunks and queries"),
        ("[]\n" * 3, "none of the first 100 rows can be read; give JSON lines or Parquet"),
        ('{"text": 1}\n' * 2000, "no text of type str"),
    ],
)
def test_files_that_are_no_data(content, message, tmp_path):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(BadInput, match=message):
        report_corpus(input=str(tmp_path / "t.jsonl"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_neither_a_file_nor_a_recipe(tmp_path):
    with pytest.raises(BadInput, match="needs --input FILE, or a recipe and its workdir"):
        report_corpus(tmp_path)
