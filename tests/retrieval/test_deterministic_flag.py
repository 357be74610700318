"""The flag --deterministic of the verbs that encode: a text has the same bits whatever is encoded beside it."""

import json
import types

import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.model_folder import save_model
from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import initial_params
from pplx_jax.retrieval.embed_file import embed_file
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder

TEXTS = ["read " * n + "the file" for n in (1, 30, 3, 18, 7, 25)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    vocabulary = tiny.tiny_vocabulary(folder)
    config = tiny.tiny_config(vocabulary, max_length=256)
    save_model(folder / "model", config, vocabulary, initial_params(config, 0), stage="pair")
    return folder / "model"


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def vectors(folder):
    return np.concatenate(list(EmbeddingFolder.read(folder).vectors()))


def test_embed_gives_the_same_bytes_in_any_file_and_shard(model, tmp_path, capsys):
    form = ["--quantization=none", "--deterministic"]
    inputs = {"whole": TEXTS, "mixed": [TEXTS[3], "close it", *TEXTS, "open"]}
    for name, texts in inputs.items():
        source = write(tmp_path / f"{name}.jsonl", texts)
        words = ["embed", f"--model={model}", f"--input={source}", f"--output={tmp_path / name}", *form]
        assert cli.main([*words, f"--shard_size={len(texts) // 2 if name == 'mixed' else 100}"]) == cli.DONE
    capsys.readouterr()
    whole, mixed = (vectors(tmp_path / name) for name in inputs)
    assert whole.tobytes() == mixed[2:-1].tobytes() and whole[3].tobytes() == mixed[0].tobytes()
    with pytest.raises(BadInput, match="deterministic"):  # the finished folder keeps its settings
        embed_file(model, tmp_path / "whole.jsonl", tmp_path / "whole", quantization="none", shard_size=100)


def test_search_eval_and_serve_load_the_model_with_it(tmp_path, monkeypatch, capsys):
    loaded = []

    def load(*_, **options):
        loaded.append(options.get("deterministic", False))
        raise BadInput("seen")

    beir = tmp_path / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").write_text('{"_id": "d", "text": "read the file"}\n')
    (beir / "queries.jsonl").write_text('{"_id": "q", "text": "read"}\n')
    (beir / "qrels.tsv").write_text("q\td\t1\n")
    index = types.SimpleNamespace(prompts={}, model="model")
    monkeypatch.setattr("pplx_jax.retrieval.search_index.open_index", lambda *_: index)
    for module in ("pplx_jax.retrieval.search_index", "pplx_jax.evaluation.evaluate"):
        monkeypatch.setattr(f"{module}.load_encoder", load)
    monkeypatch.setattr(Embedder, "load", load)
    search = ["search", "--index=index", "read the file"]
    evaluate = ["eval", "--model=model", f"--task={beir}"]
    for words in (search, evaluate, ["serve", "--model=model", "--port=0"]):
        assert cli.main(words) == cli.main([*words, "--deterministic"]) == cli.BAD_INPUT
    assert loaded == [False, True] * 3
    capsys.readouterr()
    assert cli.main(["eval", "--model=bm25", f"--task={beir}", "--deterministic"]) == cli.BAD_INPUT
    assert "--deterministic is for the folder of a model; leave it out" in capsys.readouterr().err
