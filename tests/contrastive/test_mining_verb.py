"""`mine` through the command line."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import tiny

from pplx_jax import cli
from pplx_jax.data.token_files import Ragged, TokenTable, write_table
from pplx_jax.model_folder import save_model
from pplx_jax.train_state import initial_params

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "contrastive.md"
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
    assert 0 < TokenTable.open("triplets", stage="triplet").count <= PAIRS
    settings = pathlib.Path("triplets/report.txt").read_text()
    assert "margin=0.05" in settings and "lexical_ceiling=0.9" in settings
