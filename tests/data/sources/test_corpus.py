"""A corpus of somebody else's package: one file and a gin block, no table of ours knows its name."""

import json
import sys

import pytest
from helpers import tiny

from pplx_jax.data.sources.corpus import vocabulary_texts
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables

LENGTHS = Lengths(text=24, query=6, document=12, chunk=6, chunks=3)
CODE = '''
import dataclasses, json
from pplx_jax.data.sources.corpus import Corpus, WrittenCorpus
from pplx_jax.data.sources.source import Source

def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\\n" for row in rows))

@dataclasses.dataclass(frozen=True)
class Numbers(Corpus):
    """Its own sources, two of one kind."""

    count: int = 40

    def build(self, output):
        output.mkdir(parents=True)
        for name in ("read", "write"):
            rows = [{"query": f"{name} {n}", "positive": f"{name} file {n}"} for n in range(self.count)]
            write(output / f"{name}.jsonl", rows)
        return {"pairs": 2 * self.count}

    def training_sources(self, folder):
        return [Source(name, "pair", str(folder / f"{name}.jsonl")) for name in ("read", "write")]

@dataclasses.dataclass(frozen=True)
class Written(WrittenCorpus):
    """Files of every kind."""

    def build(self, output):
        output.mkdir(parents=True)
        words = " ".join(f"read file {n}" for n in range(20))
        write(output / "text.jsonl", [{"text": words}] * 3)
        write(output / "pairs.jsonl", [{"query": "read", "document": "read file"}])
        document = {"id": "d", "chunks": ["read", "file"], "queries": [{"text": "open", "chunk": 1}]}
        write(output / "documents.jsonl", [document])
        return {}
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "packages" / "my_lab_corpora"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield __import__("my_lab_corpora")
    sys.modules.pop("my_lab_corpora")


def test_declared_sources_have_a_table_each(package, tmp_path):
    corpus, folder = package.Numbers(), tmp_path / "corpus"
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    assert corpus.build(folder) == {"pairs": 80}
    assert corpus.tokenize(folder, vocabulary, tmp_path / "tokens", LENGTHS) == {"pair": {"read": 40, "write": 40}}
    tables = open_tables(tmp_path / "tokens" / "pair", kind="pair", vocabulary=vocabulary)
    assert list(tables) == ["read", "write"]
    assert list(vocabulary_texts(corpus, folder))[:2] == ["read 0", "read 1"]
    assert corpus.evaluation_folder(folder) == folder / "evaluation"
    assert corpus.excluded_texts() is None and not corpus.declares_triplets()


def test_written_files_give_one_table_of_each_kind(package, tmp_path):
    corpus, folder = package.Written(), tmp_path / "corpus"
    corpus.build(folder)
    counts = corpus.tokenize(folder, tiny.tiny_vocabulary(tmp_path), tmp_path / "tokens", LENGTHS)
    assert counts["pair"] == counts["contextual"] == 1 and counts["diffusion"] > 1
    for folder in (tmp_path / "tokens").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["stage"] == folder.name
