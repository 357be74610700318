"""The model card: its code runs, and it claims what the run recorded and no more."""

import json
import re

import numpy as np
import pytest

from pplx_jax.checkpoints.saved_params import select_checkpoint
from pplx_jax.core.errors import BadInput
from pplx_jax.export.model_card import model_card
from pplx_jax.export.run_record import RunRecord, read_run
from pplx_jax.inference.embedder import Embedder

SETTINGS = """PairStage.prefixes = ()  # default
ContextualStage.prefixes = ()  # default
"""


PAIR = {"stage": "pair", "starts_from": None, "summary": "pairs, in-batch negatives", "reads": "pair"}
TRIPLET = {"stage": "triplet", "starts_from": "pair", "summary": "mined negatives", "reads": "triplet"}


def blocks(folder):
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def executed(code, folder):
    names = {"FOLDER": str(folder)}
    exec(code, names)
    return names


def test_prompts_are_shown_as_they_are(config):
    prompts = {"query": 'Code {dims} "a|b": ', "document": "{} "}
    card = model_card(config, "context_v1", "pair", RunRecord(), prompts=prompts)
    assert r'| query | `"Code {dims} \"a\|b\": "` |' in card and '| document | `"{} "` |' in card


def test_code_runs(exports, onnx_export, model):
    sentence, plain, onnx = blocks(onnx_export[0])
    embedder = Embedder(model)
    found = executed(sentence, onnx_export[0])["embeddings"]
    np.testing.assert_array_equal(found, embedder.encode(["read a file line by line", "for line in open(path):"]))
    found = executed(plain, onnx_export[0])["embeddings"].numpy()
    np.testing.assert_array_equal(found, embedder.encode(["read a file line by line", "a query"]))
    found = executed(onnx, onnx_export[0])
    np.testing.assert_array_equal(found["int8"], embedder.encode(["read a file", "a query"]))
    np.testing.assert_array_equal(found["binary"], embedder.encode(["read a file", "a query"], quantization="binary"))
    contextual = [code for code in blocks(exports["context_v1"][0]) if "AutoModel" in code]
    assert len(contextual) == 1
    executed(contextual[0], exports["context_v1"][0])
    assert not any("onnx" in code for code in blocks(exports["v1"][0]))


@pytest.fixture
def workdir(tmp_path):
    def write(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content if isinstance(content, str) else json.dumps(content))

    write("config.gin", SETTINGS)
    write("data/corpus/counts.json", {"files": 12, "held_out": ["jax"], "fingerprint": "abc"})
    write("pair/finished.json", {**PAIR, "steps": 25, "metrics": {"loss": 3.5}})
    manifest = {
        "count": 90,
        "features": {
            "query": {"kind": "ragged", "shape": [400], "rows": 90},
            "document": {"kind": "ragged", "shape": [600], "rows": 90},
            "source": {"kind": "array", "shape": [90]},
        },
        "lengths": {"query": 32, "document": 96},
    }
    write("data/tokens/pair/manifest.json", manifest)
    write("triplet/finished.json", {**TRIPLET, "steps": 7, "metrics": {"loss": 0.5}})
    write("contextual/finished.json", {"stage": "contextual", "steps": 3, "metrics": {"loss": 1.5}})
    write("merged/model.json", {"merged_from": ["pair", "triplet"]})
    scores = {"int8": {"ndcg@10": 0.25}}
    inside = {"int8": {"ndcg@10": 0.75}}
    results = {"pair": scores, "contextual": {**scores, "with_context": inside, "without_context": scores}}
    write("results.json", results)
    return tmp_path


def test_a_card_of_a_recorded_run(workdir, config):
    card = model_card(config, "v1", "pair", read_run(workdir / "pair", "pair", "v1"))
    assert "| pair | pairs, in-batch negatives | 25 | 3.5000 | 90 | 1000 |" in card
    assert "triplet" not in card and "interpolation" not in card  # the run went on, this model did not
    assert "| files | 12 |" in card and '| held out | ["jax"] |' in card and "abc" not in card
    assert "| int8 ndcg@10 | 0.2500 |" in card
    assert "pair (query 32, document 96)" in card
    assert "no MRL" in card
    assert "PairStage.prefixes = ()" in card


def test_a_card_of_a_model_of_the_best_checkpoint_has_its_step(workdir, config):
    select_checkpoint(workdir / "pair", 20)
    card = model_card(config, "v1", "pair", read_run(workdir / "pair", "pair", "v1"))
    assert "| pair | pairs, in-batch negatives | 20 | 3.5000 | 90 | 1000 |" in card


def test_lineage_of_the_merged_model(workdir, config):
    record = read_run(workdir / "merged", "merged", "v1")
    assert [(stage.name, stage.steps) for stage in record.stages] == [("pair", 25), ("triplet", 7)]
    assert "spherical interpolation" in model_card(config, "v1", "merged", record)


def test_scores_of_the_context_model_are_those_in_context(workdir):
    assert read_run(workdir / "contextual", "contextual", "context_v1").scores == {"int8": {"ndcg@10": 0.75}}


def test_trained_prefixes_are_no_limit(workdir):
    (workdir / "config.gin").write_text("NONE = ()\n" + SETTINGS + "TripletStage.prefixes = %NONE  # default\n")
    assert read_run(workdir / "pair", "pair", "v1").untrained_prefixes
    (workdir / "config.gin").write_text(SETTINGS + "TripletStage.prefixes = (128, 256)\n")
    assert not read_run(workdir / "pair", "pair", "v1").untrained_prefixes
    assert not RunRecord().untrained_prefixes


def test_what_is_not_recorded_is_not_claimed(workdir, config):
    # A model under another name than its stage's was put there from elsewhere.
    for record in (read_run(workdir / "mine", "merged", "v1"), read_run(workdir / "x" / "imported", "imported", "v1")):
        assert record == RunRecord()
    card = model_card(config, "v1", "imported", RunRecord())
    assert "The training of these parameters is not recorded" in card and "Not measured." in card
    assert "diffusion" not in card.split("## Use")[1].lower()


def test_a_damaged_record_is_named(workdir):
    (workdir / "results.json").write_text("{")
    with pytest.raises(BadInput, match="results.json"):
        read_run(workdir / "pair", "pair", "v1")
