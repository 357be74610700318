"""A recipe with prompts, through the command line: they are in the tables and in the model."""

import pytest
from helpers.python_code import write_packages
from helpers.small_recipe import command

from pplx_jax.checkpoints.model_folder import load_model
from pplx_jax.cli import main as cli
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.token_table import TokenTable

pytestmark = pytest.mark.slow

PROMPTS = {"query": "ask: ", "document": "tell: "}


def test_prompts_go_from_the_recipe_into_tables_and_model(tmp_path, capsys):
    packages = write_packages(tmp_path / "code", ("alpha", "beta", "gamma"))
    run = command(packages, tmp_path / "run", f"run.prompts={PROMPTS}")
    assert cli.main([*run, "--until=data"]) == cli.DONE
    assert cli.main(["train", *run[1:], "--stage=diffusion"]) == cli.DONE
    vocabulary = load_vocabulary(tmp_path / "run" / "data")
    tokens = tmp_path / "run" / "data" / "tokens"
    pair, contextual = (TokenTable.open(tokens / kind) for kind in ("pair", "contextual"))
    starts = {name: vocabulary.encode(text + "x")[:-1] for name, text in PROMPTS.items()}
    for table, names in ((pair, PROMPTS), (contextual, ("query",))):
        assert table.manifest["prompts"] == PROMPTS
        for name in names:
            assert all(table[name][row][:3].tolist() == starts[name][:3] for row in range(table.count))
    first = contextual["chunks_of_document"][:-1]
    assert all(contextual["chunks"][row][:3].tolist() == starts["document"][:3] for row in first)
    assert "prompts" not in TokenTable.open(tokens / "diffusion").manifest
    model = load_model(tmp_path / "run" / "diffusion")
    assert model.prompts == PROMPTS and model.fingerprint != model.unprompted_fingerprint
    capsys.readouterr()
    other = [*command(packages, tmp_path / "run", "run.prompts={'query': 'find: '}"), "--until=data"]
    assert cli.main(other) == cli.BAD_INPUT
    assert "the finished phase tokenize has other settings: run.prompts" in capsys.readouterr().err
    wrong = command(packages, tmp_path / "wrong", "run.prompts={'query': 3}")
    assert cli.main(wrong) == cli.BAD_INPUT and not (tmp_path / "wrong").exists()
    assert "run.prompts: prompt 'query': 3 is not a name and a text" in capsys.readouterr().err
