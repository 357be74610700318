"""`mine` through the command line."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from helpers import job, tiny

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.mining import mine as mining
from pplx_jax.models.parameters import initial_params

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "mine.md"
PAIRS = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: the model of its pair stage, and the vocabulary of its tokens."""
    folder = tmp_path_factory.mktemp("mine") / "run"
    vocabulary = tiny.tiny_vocabulary(folder.parent)
    config = tiny.tiny_config(vocabulary)
    save_model(folder / "pair", config, vocabulary, initial_params(config, 0), stage="pair")
    write_pairs(folder / "data" / "tokens" / "pair", vocabulary, range(PAIRS))
    return folder


def write_pairs(folder, vocabulary, rows):
    """Pairs whose query is their document, as no trained model is there."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(4, vocabulary.size, generator.integers(4, 10)) for _ in range(PAIRS)]
    rows = list(rows)
    features = {
        "query": Ragged.from_arrays([texts[row] for row in rows]),
        "document": Ragged.from_arrays([texts[row] for row in rows]),
        "document_hash": np.array(rows, np.int32),
        "source": np.zeros(len(rows), np.int32),
    }
    write_table(folder, "pair", vocabulary, features, notes={"sources": [folder.name]})


@pytest.fixture
def beside(run, monkeypatch):
    monkeypatch.chdir(run.parent)


def test_the_documented_command_mines(beside, capsys):
    command = re.search(r"^ {4}pplx-jax (mine .+?[^\\])$", DOCS.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert cli.main(shlex.split(command.replace("\\\n", " "))) == cli.DONE
    assert 0 < TokenTable.open("triplets", kind="triplet").count <= PAIRS
    settings = pathlib.Path("triplets/report.txt").read_text()
    assert "margin=0.05" in settings


@pytest.mark.parametrize("output", ["run/data/tokens/pair", "else"])
def test_what_is_no_mined_table_is_not_replaced(beside, capsys, output):
    folder = pathlib.Path(output)
    if not folder.exists():
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    before = sorted(path.name for path in folder.iterdir())
    command = ["mine", "--model=run/pair", "--pairs=run/data/tokens/pair", f"--output={output}"]
    assert cli.main(command) == cli.BAD_INPUT
    assert "is in the way and no token table of stage triplet" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not folder.with_name(folder.name + ".mining").exists()


class MeanOfTokens:
    """A model without weights: a text's vector is the mean of its tokens', which are random."""

    fingerprint = "ab" * 32

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self._vectors = np.random.default_rng(0).normal(size=(vocabulary.size, 16)).astype(np.float32)

    def encode_tokens(self, ids):
        return np.stack([self._vectors[text].mean(axis=0) for text in ids])


@pytest.fixture
def mine(beside, monkeypatch):
    """Runs the verb on a folder of pairs with `MeanOfTokens`; returns its exit code."""
    monkeypatch.setattr(mining.Embedder, "load", lambda folder: MeanOfTokens(load_vocabulary(folder)))
    bindings = ("negatives=3", "first_rank=2", "last_rank=40")

    def verb(pairs, output, *words):
        params = [f"--gin_param=Mining.{binding}" for binding in bindings]
        return cli.main(["mine", "--model=run/pair", f"--pairs={pairs}", f"--output={output}", *params, *words])

    return verb


@pytest.mark.parametrize("words", [(), ("--gin_param=Mining.examples=70",)], ids=["all", "sampled"])
def test_pairs_in_shards_of_several_sources_are_mined_together(run, mine, tmp_path, words):
    vocabulary = load_vocabulary(run / "pair")
    shards = {"a/shard-00000-of-00002": (0, 50), "a/shard-00001-of-00002": (50, 80), "b": (80, PAIRS)}
    for name, rows in shards.items():
        write_pairs(tmp_path / "pair" / name, vocabulary, range(*rows))
    assert mine(tmp_path / "pair", tmp_path / "shards", *words) == cli.DONE
    assert mine("run/data/tokens/pair", tmp_path / "whole", *words) == cli.DONE
    one, other = (TokenTable.open(tmp_path / name, kind="triplet") for name in ("shards", "whole"))
    if words:  # which of the window's documents are drawn is another matter
        assert 60 < one.count == other.count <= 70
        np.testing.assert_array_equal(one["document_hash"][: one.count], other["document_hash"][: other.count])
    else:
        for name in ("document_hash", "negatives"):
            np.testing.assert_array_equal(one[name], other[name])
    assert one.manifest["sources"] == ["shard-00000-of-00002", "shard-00001-of-00002", "b"]


def test_two_processes_write_the_bytes_of_one(run, tmp_path):
    bindings = ("negatives=3", "first_rank=2", "last_rank=40", "ceiling=2.0", "part_size=25")
    params = [f"--gin_param=Mining.{binding}" for binding in bindings]
    words = ["mine", f"--model={run / 'pair'}", f"--pairs={run / 'data' / 'tokens' / 'pair'}", "--json", *params]
    alone = job.start_python(["-m", "pplx_jax", *words, f"--output={tmp_path / 'one'}"])
    together = job.start_verb([*words, f"--output={tmp_path / 'two'}"], count=2, devices=2)
    one, first, second = (json.loads(output.splitlines()[-1]) for output in job.finish([alone, *together]))
    assert first == one and one["queries"] > 100 and second == {"parts": 2}
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1] and "report.txt" in contents[0]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_what_is_no_pair_table_is_refused_in_one_line(run, mine, tmp_path, capsys):
    vocabulary = load_vocabulary(run / "pair")
    write_table(tmp_path / "text", "text", vocabulary, {"tokens": Ragged.from_arrays([[5, 6]])})
    for folder, complaint in (
        ("text", "a table of kind text without query"),
        ("nothing", "manifest.json: no such file"),
    ):
        assert mine(tmp_path / folder, tmp_path / "out") == cli.BAD_INPUT
        assert complaint in capsys.readouterr().err
    assert mine("run/data/tokens/pair", tmp_path / "out", "--shard=0/0") == cli.BAD_INPUT
    assert {path.name for path in tmp_path.iterdir()} == {"text"}


def test_documents_of_further_tables_are_ranked(run, mine, tmp_path, capsys):
    vocabulary = load_vocabulary(run / "pair")
    passages = Ragged.from_arrays([[row, row + 1, row + 2] for row in range(5, 85)])
    for shard in range(2):
        write_table(tmp_path / "text" / "wiki" / f"shard-{shard}", "text", vocabulary, {"tokens": passages})
    write_pairs(tmp_path / "few", vocabulary, range(20))
    write_pairs(tmp_path / "more", vocabulary, range(15, 30))
    assert mine(tmp_path / "few", tmp_path / "out") == cli.BAD_INPUT
    assert "last_rank=40 exceeds the 20 documents" in capsys.readouterr().err
    words = ("--documents", str(tmp_path / "text"), str(tmp_path / "more"))
    assert mine(tmp_path / "few", tmp_path / "out", *words) == cli.DONE
    assert "documents: 110\n" in (tmp_path / "out" / "report.txt").read_text()
    assert mine(tmp_path / "few", tmp_path / "none", "--documents", str(tmp_path / "absent")) == cli.BAD_INPUT
    assert not list(tmp_path.glob("none*"))
