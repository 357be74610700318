"""Documents of classes and the set of queries in which context matters; everything else as without them."""

import dataclasses
import hashlib
import json
import pathlib

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.beir import read_beir
from pplx_jax.evaluation.scoring.retrieval_sets import evaluate_bm25
from pplx_jax.recipes.corpora.python_corpus import PythonCorpus
from pplx_jax.recipes.corpora.python_definitions import name_words, parse_module

# SHA-256 of the files that a corpus of `tree` had before there were documents of classes.
BEFORE = {
    "documents.jsonl": "ed671ad958543b43c24475a94364de91246b6ece9e4a0dc54c160ca2a2e92fe3",
    "evaluation/corpus.jsonl": "cd7c6a9d38d1c6088de3d7e35dc7c9a6d799588d282aa6a7a71d44b9cf813374",
    "evaluation/qrels.tsv": "a27ac9f6faa73da8c938ad109b5b2298787c076700183d0b8fdaba978a715a5c",
    "evaluation/queries.jsonl": "555b2e036c0f14787bb65e70995d2a8168cd00a925805e0897bba08db609359f",
    "pairs.jsonl": "1217b63109d1212ff8f8a7272b8eff4f27c48f3ac9139c125193d8dd147291a9",
    "search.jsonl": "e01190ae50966dccc1562929e88b15e0c2a07452d32dc64741ebf2e51de66fcc",
    "text.jsonl": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}


def method(name: str, body: str, docstring: str = "") -> str:
    lines = [f"    def {name}(self, value):", *([f'        """{docstring}"""'] if docstring else [])]
    return "\n".join([*lines, f"        self.count = {len(body)}  # {body}", f"        return self.{body}(value)", ""])


def a_class(name: str, *methods: str) -> str:
    return f'class {name}(Base):\n    """Holds what {name.lower()} needs."""\n\n    size: int = 3\n\n' + "\n".join(
        methods
    )


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
    """Package `alpha` to train on; `gamma`, held out, whose classes have methods of the same names."""
    close, read = "Closes the connection for good.", "Reads the next value from it."
    files = {
        "alpha/net.py": "\n\n".join(
            [
                a_class("FirstConnection", method("close", "end", close), method("read", "take", read)),
                a_class("Wide", *(method(f"m{i}", f"step{i}", f"Makes the step {i} of many.") for i in range(9))),
                'def helper(a):\n    """Helps with the first thing."""\n    return [a, a, a, a, a, a]\n',
                'def other(a):\n    """Helps with another thing."""\n    return [a, a, a, a, a, a, a]\n',
            ]
        ),
        "gamma/one.py": "\n\n".join(
            [
                a_class("HTTPConnection", method("close", "finish", "Ends the session."), method("read", "pull")),
                a_class("HTTPServer", method("close", "stop"), method("read", "http_server"), method("only", "once")),
                'def helper(a):\n    """Helps with the held out thing."""\n    return [a, a, a, a, a]\n',
            ]
        ),
        "gamma/two.py": "\n\n".join(
            [
                a_class("DiskFile", method("close", "release"), method("read", "load"), method("read", "again")),
                a_class("TapeFile", method("close", "end", close), method("read", "wind"), method("m1", "step1")),
                a_class("Long", method("close", "x" * 400), method("read", "y")),
            ]
        ),
    }
    for name, content in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path / "root"


@pytest.fixture
def config(tree) -> PythonCorpus:
    return PythonCorpus(roots=(str(tree),), held_out=("gamma",), class_characters=400, searched=("alpha",))


def rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(folder: pathlib.Path) -> dict[str, str]:
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_everything_else_is_as_it_was_before(config, tmp_path):
    plain = dataclasses.replace(config, class_characters=1800)
    counts = plain.build(tmp_path / "plain")
    found = digests(tmp_path / "plain")
    context = {f"probes/context/{name}" for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")}
    assert found.keys() == {*BEFORE, "counts.json", *context}
    assert {name: found[name] for name in BEFORE} == BEFORE
    assert (counts["context_queries"], counts["context_passages"]) == (8, 13)

    dataclasses.replace(plain, named_share=0.5).build(tmp_path / "named")
    named = digests(tmp_path / "named")
    changed = {name for name, digest in found.items() if named[name] != digest}
    assert changed == {"documents.jsonl", "counts.json"}


def test_the_set_has_methods_that_only_their_class_tells_apart(config, tmp_path):
    config.build(tmp_path / "corpus")
    data = read_beir(tmp_path / "corpus" / "probes" / "context")
    assert dict(zip(data.query_ids, data.queries, strict=True)) == {
        "query:gamma.one.HTTPConnection.close": "HTTPConnection: Ends the session.",
        "query:gamma.one.HTTPConnection.read": "HTTPConnection: read",  # without a docstring, its name in words
        "query:gamma.one.HTTPServer.close": "HTTPServer: close",  # not `read`, whose text says http_server
        "query:gamma.two.DiskFile.close": "DiskFile: close",  # not `read`, of which it has two
        "query:gamma.two.TapeFile.close": "TapeFile: Closes the connection for good.",
        "query:gamma.two.TapeFile.read": "TapeFile: read",
        "query:gamma.two.Long.read": "Long: read",  # not `close`, which is too long
    }
    for query, (document,) in data.qrels.items():
        assert query == f"query:{document}"
        place = data.document_ids.index(document)
        class_name = data.parents[place].rpartition(".")[2]
        assert "".join(name_words(class_name)).lower() not in data.documents[place].replace("_", "").lower()
        first = data.document_ids.index(data.parents[place])
        assert data.chunks[first] == 0 and data.documents[first].startswith(f"class {class_name}(Base):")
    told = [f"{parent} {text}" for parent, text in zip(data.parents, data.documents, strict=True)]
    with_class = evaluate_bm25(dataclasses.replace(data, documents=told))["ndcg@10"]
    assert with_class > evaluate_bm25(data)["ndcg@10"] + 0.2


def test_a_method_that_few_classes_have_is_not_in_the_set(config, tmp_path):
    assert dataclasses.replace(config, other_classes=4).build(tmp_path / "all")["context_queries"] == 7
    counts = dataclasses.replace(config, other_classes=5).build(tmp_path / "none")
    assert counts["context_queries"] == counts["context_passages"] == 0
    assert not (tmp_path / "none" / "probes").exists()


def test_training_documents_begin_with_the_head_of_their_class(config, tmp_path):
    dataclasses.replace(config, named_share=1.0, class_chunks=6).build(tmp_path / "corpus")
    documents = {row["id"]: row for row in rows(tmp_path / "corpus" / "documents.jsonl")}
    assert {name: len(row["chunks"]) for name, row in documents.items()} == {
        "alpha.net": 4,  # two classes as outlines, two functions
        "alpha.net.FirstConnection": 2,  # `close` has the summary of a held-out method
        "alpha.net.Wide#1": 6,
        "alpha.net.Wide#2": 5,
    }
    pairs = {row["document"]: row["query"] for row in rows(tmp_path / "corpus" / "pairs.jsonl")}
    queries = []
    for name, row in documents.items():
        for query in row["queries"]:
            text = row["chunks"][query["chunk"]]
            says, in_words = pairs[text], " ".join(name_words(text.partition("(")[0].removeprefix("def ")))
            if name == "alpha.net":
                assert query["text"] == says
            else:
                class_name = name.rpartition(".")[2].partition("#")[0]
                assert row["chunks"][0] == f"class {class_name}(Base):\n    size: int = 3"
                prefix, _, rest = query["text"].partition(": ")
                assert prefix == class_name and rest in (says, in_words)
                queries.append(rest == says)
    assert set(queries) == {True, False}  # by summary and by name


def test_no_query_of_the_set_is_trained_on(config, tree, tmp_path):
    copied = a_class(
        "TapeFile", method("read", "other", "Reads from the tape."), method("wind", "x", "Winds the tape.")
    )
    (tree / "alpha" / "copy.py").write_text(copied, encoding="utf-8")
    dataclasses.replace(config, named_share=1.0).build(tmp_path / "corpus")
    asked = set(read_beir(tmp_path / "corpus" / "probes" / "context").queries)
    documents = rows(tmp_path / "corpus" / "documents.jsonl")
    trained = [query["text"] for row in documents for query in row["queries"]]
    trained += [row["query"] for row in rows(tmp_path / "corpus" / "pairs.jsonl")]
    assert "TapeFile: read" in asked and not asked & set(trained)
    assert any(text.startswith("TapeFile: ") for text in trained)


@pytest.mark.parametrize(
    ("source", "head"),
    [
        ('class A(B):\n    """Words."""\n\n    def f(self):\n        pass\n', "class A(B):"),
        ("@d\nclass A:\n    x = 1\n\n    @e\n    def f(self): pass\n", "@d\nclass A:\n    x = 1"),
        ("class A:\n    x = 1\n    class B:\n        y = 2\n        def f(self): pass\n", "class A:\n    x = 1"),
        ('class A: "Words."\n', "class A:"),
    ],
)
def test_head(source, head):
    assert parse_module(source).heads["A"] == head


def test_words_of_a_name():
    assert name_words("HTTPServer2_close") == ["HTTP", "Server", "2", "close"]
    assert name_words("__getitem__") == ["getitem"]


@pytest.mark.parametrize(("field", "value"), [("named_share", 1.5), ("class_chunks", 1)])
def test_settings_out_of_range(field, value):
    with pytest.raises(BadInput, match=field):
        PythonCorpus(**{field: value})
