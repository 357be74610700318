"""A model folder: round trip, messages that name missing parts, and a fingerprint that distinguishes models."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.checkpoints.model_folder import describe_model, load_model, save_model
from pplx_jax.checkpoints.saved_params import save_params
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.data.tokens.train_vocabulary import train_vocabulary
from pplx_jax.models.parameters import initial_params


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def params(vocabulary):
    return jax.tree.map(np.asarray, initial_params(tiny.tiny_config(vocabulary), 0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, vocabulary, params):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, tiny.tiny_config(vocabulary), vocabulary, params, stage="pair", step=5)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(folder, change) -> None:
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def complaint(folder) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_all_of_it_comes_back(saved, vocabulary, params):
    config = tiny.tiny_config(vocabulary)
    assert config.dtype == "float32"  # not the default, which would come back whatever was written
    model = load_model(str(saved))  # a path as text too
    assert model.config == config
    assert (model.kind, model.stage) == ("v1", "pair")
    assert model.vocabulary.fingerprint == vocabulary.fingerprint
    assert model.vocabulary.encode("read file") == vocabulary.encode("read file")
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    assert {path.name for path in saved.iterdir()} == {"model.json", "vocabulary.model", "checkpoints"}


def test_older_names_in_the_description_are_read(copy, vocabulary):
    def older(description):
        del description["model"]["remat_policy"], description["model"]["attention_implementation"]
        description["model"] |= {"kept": ["attention", "mlp"], "unroll": 1}

    rewrite(copy, older)
    assert load_model(copy).config == tiny.tiny_config(vocabulary, remat_policy=("attention", "mlp"))


def test_a_checkpoint_is_a_model_of_its_step(copy, params, monkeypatch):
    save_params(copy, 9, jax.tree.map(np.zeros_like, params))
    for path, first in (
        ("", 0),
        ("checkpoints", 0),
        ("checkpoints/9", 0),
        ("checkpoints/5", params["embed"]["embedding"]),
    ):
        np.testing.assert_array_equal(load_model(copy / path).params["embed"]["embedding"], first)
    monkeypatch.chdir(copy / "checkpoints")
    assert load_model("5").stage == "pair"
    assert "does not exist" in complaint(copy / "checkpoints" / "6")


@pytest.mark.parametrize(
    "stage, kind, expected",
    [
        ("contextual", "context_v1", "context_v1"),
        ("diffusion", None, "v1"),
        ("merged", None, "v1"),
        ("imported", "context_v1", "context_v1"),
    ],
)
def test_the_kind_is_v1_unless_it_is_given(copy, vocabulary, stage, kind, expected):
    describe_model(copy, tiny.tiny_config(vocabulary), vocabulary, stage=stage, kind=kind)
    model = load_model(copy)
    assert (model.kind, model.stage) == (expected, stage)


@pytest.mark.parametrize(
    "field, value",
    [("layers", 2), ("width", 24), ("mlp_width", 8), ("head_dim", 8), ("vocab_size", 400), ("tied", False)]
    + [("query_heads", 3), ("kv_heads", 2)],
)
def test_weights_that_the_description_does_not_describe_are_bad_input(copy, field, value):
    rewrite(copy, lambda description: description["model"].update({field: value}))
    assert "is of another model" in complaint(copy)


def test_a_vocabulary_larger_than_the_table_is_bad_input(copy, tmp_path):
    words = itertools.product(("alpha", "beta", "gamma", "delta"), ("lambda", "omega", "sigma", "theta", "upsilon"))
    vocabulary = train_vocabulary((" ".join(pair) for pair in words), tmp_path / "larger.model", 336)
    vocabulary.save(copy)
    assert "the vocabulary has 336 pieces, the embedding table only 332 rows" in complaint(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path, vocabulary, params, value):
    broken = jax.tree.map(np.copy, params)
    broken["layers"]["mlp"]["up"]["kernel"][0, 3, 2] = value
    save_model(tmp_path / "model", tiny.tiny_config(vocabulary), vocabulary, broken, stage="pair")
    assert "layers.mlp.up.kernel holds NaN or infinity" in complaint(tmp_path / "model")


@pytest.mark.parametrize("missing", ["model.json", "vocabulary.model", "checkpoints"])
def test_what_is_missing_is_bad_input(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {"checkpoints": "no checkpoint"}.get(missing, missing) in complaint(copy)


def test_no_folder_is_bad_input(tmp_path):
    assert "does not exist" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_bad_input(copy, version):
    rewrite(copy, lambda description: description.update(format=version))
    assert f"format {version!r}" in complaint(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda description: description.pop("format"),
        lambda description: description.pop("model"),
        lambda description: description.pop("kind"),
        lambda description: description.pop("stage"),
        lambda description: description["model"].pop("width"),
        lambda description: description["model"].update(experts=8),
        lambda description: description.update(model=[1]),
        lambda description: description.update(kind="v9"),
    ],
)
def test_a_description_that_is_not_ours_is_bad_input(copy, change):
    rewrite(copy, change)
    assert "model.json" in complaint(copy)


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", ""])
def test_a_description_that_is_no_object_is_bad_input(copy, text):
    (copy / "model.json").write_text(text)
    assert "model.json" in complaint(copy)


def test_the_fingerprint_is_of_weights_vocabulary_and_configuration(saved, copy, tmp_path):
    model = load_model(saved)
    assert len(model.fingerprint) == 16 and int(model.fingerprint, 16) >= 0
    assert load_model(copy).fingerprint == model.fingerprint  # wherever it lies
    assert dataclasses.replace(model, stage="merged").fingerprint == model.fingerprint

    def with_one(value: float):
        changed = jax.tree.map(np.copy, model.params)
        changed["layers"]["mlp"]["up"]["kernel"][0, 3, 2] = value
        return dataclasses.replace(model, params=changed).fingerprint

    old = model.params["layers"]["mlp"]["up"]["kernel"][0, 3, 2]
    assert with_one(old) == model.fingerprint
    assert with_one(np.nextafter(old, np.float32(np.inf))) != model.fingerprint  # the last bit of one weight
    # The same numbers under other names are another model.
    swapped = dict(model.params["layers"]["mlp"])
    swapped["up"], swapped["gate"] = swapped["gate"], swapped["up"]
    layers = {**model.params["layers"], "mlp": swapped}
    assert dataclasses.replace(model, params={**model.params, "layers": layers}).fingerprint != model.fingerprint
    # The order of a dictionary is not.
    backwards = dict(reversed(model.params.items()))
    assert dataclasses.replace(model, params=backwards).fingerprint == model.fingerprint
    same = load_vocabulary(copy)
    assert dataclasses.replace(model, vocabulary=same).fingerprint == model.fingerprint
    other = train_vocabulary(["another corpus of other words"] * 9, tmp_path / "other.model", 330)
    assert dataclasses.replace(model, vocabulary=other).fingerprint != model.fingerprint


def test_the_fingerprint_changes_with_all_that_embeddings_depend_on(saved):
    model = load_model(saved)

    def with_field(**field):
        return dataclasses.replace(model, config=dataclasses.replace(model.config, **field)).fingerprint

    changes: list[dict] = [{"causal": True}, {"rope_theta": 10.0}, {"rms_norm_eps": 0.1}, {"dtype": "bfloat16"}]
    changes += [{"query_heads": 4, "head_dim": 8}, {"max_length": 64}]
    assert len({model.fingerprint, *(with_field(**change) for change in changes)}) == 1 + len(changes)
    same: list[dict] = [{"remat": False}, {"remat_policy": ("mlp",)}, {"unroll": 2}, {"embedding_init_std": 1.0}]
    same += [{"attention_implementation": "splash"}]
    for change in same:
        assert with_field(**change) == model.fingerprint
    assert with_field(rope_theta=1_000_000) == model.fingerprint  # as some configurations write 1e6


def test_half_precision_has_the_fingerprint_of_its_values(saved):
    model = load_model(saved)
    half = jax.tree.map(lambda array: array.astype(jax.numpy.bfloat16), model.params)
    values = jax.tree.map(lambda array: array.astype(np.float32), half)
    assert dataclasses.replace(model, params=half).fingerprint == dataclasses.replace(model, params=values).fingerprint
