"""The Python corpus: counts, origins of pairs, and no text on both sides of the split."""

import dataclasses
import json
import pathlib

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.recipes.corpora import python_corpus
from pplx_jax.recipes.corpora.python_corpus import PythonCorpus


def function(name: str, words: str, body: str = "return argument") -> str:
    return f'def {name}(argument):\n    """{words}"""\n    value = "{name}"\n    {body}\n\n\n'


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    """Packages alpha and beta to train on, gamma held out."""
    root = tmp_path / "root"
    copied = function("copied", "Copies from the held out package.")
    files = {
        "alpha/__init__.py": "# Copyright of somebody.\n# Licence.\n\n" + function("first", "Gives the first thing."),
        "alpha/many.py": "".join(function(f"f{i}", f"Does thing number {i} well.") for i in range(5)),
        "alpha/same.py": function("first", "Gives the first thing again."),  # a document of alpha/__init__.py
        "alpha/broken.py": "def broken(:\n",
        "alpha/tests/test_x.py": function("tested", "Should not be read."),
        "alpha/things_test.py": function("tested2", "Should not be read either."),
        "alpha/__pycache__/junk.py": function("junk", "Should never be read."),
        "beta/code.py": copied + function("second", "Gives  the SECOND thing."),
        "beta/query.py": function("third", "Gives the held out thing."),  # a query of gamma
        "single.py": function("alone", "Stands alone in its file."),
        "gamma/__init__.py": "",
        "gamma/core.py": copied
        + function("fourth", "Gives the held out thing.")
        + function("fifth", "Gives the fifth thing.")
        + function("fifth", "Gives the fifth thing otherwise.", "return None")
        + function("sixth", "Gives the sixth thing.")
        + function("seventh", "Gives the sixth thing."),  # a query twice
        "pplx_jax/own.py": function("own", "Should not be read as ours."),
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def config(tree) -> PythonCorpus:
    return PythonCorpus(roots=(str(tree),), held_out=("gamma",), max_chunks=3)


def rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_counts(config, tmp_path):
    counts = config.build(tmp_path / "corpus")
    assert counts == json.loads((tmp_path / "corpus" / "counts.json").read_text(encoding="utf-8"))
    expected = {
        "packages": 4,
        "files": 9,
        "unparsable_files": 1,
        "definitions": 17,
        "pairs_training": 8,  # first, f0..f4, second, alone
        "pairs_evaluation": 5,
        "documents_training": 2,
        "documents_evaluation": 2,
        "duplicates_within_training": 1,
        "duplicates_within_evaluation": 1,
        "duplicates_across": 2,
    }
    assert {name: counts[name] for name in expected} == expected
    assert counts["texts"] == len(rows(tmp_path / "corpus" / "text.jsonl"))


def test_pairs_say_where_they_are_from(config, tree, tmp_path):
    config.build(tmp_path / "corpus")
    pairs = rows(tmp_path / "corpus" / "pairs.jsonl")
    assert [pair["source"] for pair in pairs] == ["single"] + ["alpha"] * 6 + ["beta"]
    for pair in pairs:
        line = (tree / pair["path"]).read_text(encoding="utf-8").split("\n")[pair["line"] - 1]
        assert pair["document"].split("\n")[0] == line
        assert '"""' not in pair["document"]
    assert pairs[1] == {
        "query": "Gives the first thing.",
        "document": 'def first(argument):\n    value = "first"\n    return argument',
        "source": "alpha",
        "path": "alpha/__init__.py",
        "line": 4,
    }


def test_modules_are_split_evenly_into_documents(config, tmp_path):
    config.build(tmp_path / "corpus")
    documents = rows(tmp_path / "corpus" / "documents.jsonl")
    assert [(row["id"], len(row["chunks"])) for row in documents] == [
        ("alpha.many#1", 2),
        ("alpha.many#2", 3),
    ]
    for row in documents:
        assert [query["chunk"] for query in row["queries"]] == list(range(len(row["chunks"])))
    pairs = {(pair["query"], pair["document"]) for pair in rows(tmp_path / "corpus" / "pairs.jsonl")}
    for row in documents:
        assert {(query["text"], row["chunks"][query["chunk"]]) for query in row["queries"]} <= pairs


def test_nothing_of_the_evaluation_is_trained_on(config, tmp_path):
    config.build(tmp_path / "corpus")
    pairs = rows(tmp_path / "corpus" / "pairs.jsonl")
    evaluation = read_beir(tmp_path / "corpus" / "evaluation")
    assert not {pair["query"] for pair in pairs} & set(evaluation.queries)
    assert not {pair["document"] for pair in pairs} & set(evaluation.documents)
    texts = "".join(row["text"] for row in rows(tmp_path / "corpus" / "text.jsonl"))
    assert "def copied" not in texts and "gamma" not in texts  # beta/code.py copies a document of gamma
    assert "Does thing number 3 well." in texts  # raw text has docstrings
    assert "Copyright" not in texts and "Should" not in texts


def test_evaluation_is_a_retrieval_set_with_context(config, tree, tmp_path):
    config.build(tmp_path / "corpus")
    evaluation = read_beir(tmp_path / "corpus" / "evaluation")
    names = ["copied", "fourth", "fifth", "fifth:19", "sixth"]
    assert evaluation.document_ids == [f"gamma.core.{name}" for name in names]
    assert evaluation.parents == ["gamma.core#1"] * 2 + ["gamma.core#2"] * 3
    assert evaluation.chunks == [0, 1, 0, 1, 2]
    assert evaluation.has_context
    assert evaluation.qrels == {f"query:{name}": {name: 1} for name in evaluation.document_ids}
    for row in rows(tmp_path / "corpus" / "evaluation" / "corpus.jsonl"):
        line = (tree / row["path"]).read_text(encoding="utf-8").split("\n")[row["line"] - 1]
        assert row["text"].startswith(line)


def test_a_search_looks_through_what_is_held_out_and_what_is_named(config, tmp_path):
    dataclasses.replace(config, searched=("beta",)).build(tmp_path / "corpus")
    evaluation = rows(tmp_path / "corpus" / "evaluation" / "corpus.jsonl")
    searched = rows(tmp_path / "corpus" / "search.jsonl")
    assert searched[: len(evaluation)] == evaluation
    assert {row["path"].split("/")[0] for row in searched[len(evaluation) :]} == {"beta"}
    assert len({row["_id"] for row in searched}) == len(searched)


def test_two_builds_are_equal_whatever_the_workers(config, tmp_path, monkeypatch):
    config.build(tmp_path / "one", workers=1)
    monkeypatch.setattr(python_corpus, "_PARALLEL_FROM", 0)
    config.build(tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 8


def test_kept_while_up_to_date_and_replaced_when_not(config, tree, tmp_path):
    output = tmp_path / "corpus"
    counts = config.build(output)
    (output / "mark").touch()
    assert config.build(output) == counts
    assert (output / "mark").exists()
    (tree / "alpha" / "new.py").write_text(function("new", "Adds a thing anew."), encoding="utf-8")
    assert config.build(output)["pairs_training"] == counts["pairs_training"] + 1
    assert not (output / "mark").exists()


def test_a_failure_leaves_what_was_there(config, tmp_path, monkeypatch):
    output = tmp_path / "out" / "corpus"
    config.build(output)
    before = contents(output)

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(python_corpus, "write_retrieval_set", fail)
    with pytest.raises(OSError, match="disk full"):
        PythonCorpus(roots=config.roots, held_out=("beta",)).build(output)
    assert contents(output) == before
    assert list(output.parent.iterdir()) == [output]


def test_large_packages_are_sampled_but_held_out_ones_are_whole(config, tree, tmp_path):
    for index in range(40):
        for package in ("alpha", "gamma"):
            source = function(f"{package}{index}", f"Does {package} thing {index} also.")
            (tree / package / f"more{index}.py").write_text(source, encoding="utf-8")
    few = PythonCorpus(roots=config.roots, held_out=("gamma",), max_files=10, max_text_bytes=500)
    counts = few.build(tmp_path / "few")
    pairs = rows(tmp_path / "few" / "pairs.jsonl")
    assert len({pair["path"] for pair in pairs if pair["source"] == "alpha"}) <= 10
    assert counts["pairs_evaluation"] == 45
    assert 0 < sum(len(row["text"]) for row in rows(tmp_path / "few" / "text.jsonl") if row["source"] == "alpha") < 900
    other = PythonCorpus(roots=config.roots, held_out=("gamma",), max_files=10, seed=1)
    other.build(tmp_path / "other")
    assert rows(tmp_path / "other" / "pairs.jsonl") != pairs


def test_limits_of_length(tree, tmp_path):
    long = "    value = [\n" + "        'something',\n" * 200 + "    ]\n"
    source = f'def long(argument):\n    """Holds a long list."""\n{long}\n'
    (tree / "alpha" / "long.py").write_text(source + function("f", "Has a short body."), encoding="utf-8")
    config = PythonCorpus(
        roots=(str(tree),), held_out=("gamma",), min_characters=60, max_characters=500, window_characters=300
    )
    config.build(tmp_path / "corpus")
    pairs = rows(tmp_path / "corpus" / "pairs.jsonl")
    lengths = [len(pair["document"]) for pair in pairs]
    assert min(lengths) >= 60
    (document,) = [pair["document"] for pair in pairs if pair["query"] == "Holds a long list."]
    assert 450 < len(document) <= 500 and document.endswith("'something',")
    windows = [row["text"] for row in rows(tmp_path / "corpus" / "text.jsonl")]
    assert all(60 <= len(window) <= 300 for window in windows)


def test_progress_is_told(config, tmp_path):
    lines = []
    config.build(tmp_path / "corpus", lines.append)
    config.build(tmp_path / "corpus", lines.append)
    assert lines == ["read 9 of 9 Python files", f"{tmp_path / 'corpus'} is up to date"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roots": ("nowhere",)}, "no folder nowhere"),
        ({"packages": ("delta",)}, "no Python packages named delta"),
        ({"held_out": ("delta",)}, "no package to evaluate on"),
        ({"packages": ("gamma",)}, "no package to train on"),
    ],
)
def test_bad_input(config, tmp_path, changes, message):
    fields = {"roots": config.roots, "held_out": config.held_out} | changes
    with pytest.raises(BadInput, match=message) as error:
        PythonCorpus(**fields).build(tmp_path / "corpus")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "corpus").exists()


def test_empty_root(tmp_path):
    (tmp_path / "root").mkdir()
    with pytest.raises(BadInput, match="no Python packages under"):
        PythonCorpus(roots=(str(tmp_path / "root"),)).build(tmp_path / "corpus")
