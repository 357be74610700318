"""Features common to all contrastive stages: microbatches, prefixes, temperature, weights by source."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from helpers import simulated, tiny

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.configuration import load
from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.kinds import KIND_OF_FOLDER
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.inference.embedder import Embedder
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.stages.base import Step
from pplx_jax.training.stages.contextual import ContextualStage
from pplx_jax.training.stages.diffusion import DiffusionStage
from pplx_jax.training.stages.pair import PairStage
from pplx_jax.training.stages.triplet import TripletStage
from pplx_jax.training.train_stage import train

STAGES = ("pair", "contextual", "triplet")
ROWS = 4
BATCH = {"pair": 10, "contextual": 8, "triplet": 6}
SOURCES = ["web", "code", "law"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory, vocabulary):
    """The tiny tables, their examples of three sources in turn."""
    folder = tmp_path_factory.mktemp("tables")
    for name, table in tiny.tiny_tables(folder / "plain", vocabulary).items():
        features = dict(table.features)
        if name in STAGES:
            features["source"] = (np.arange(table.count) % len(SOURCES)).astype(np.int32)
        write_table(folder / name, KIND_OF_FOLDER[name], vocabulary, features, notes={"sources": SOURCES})
    return {name: TokenTable.open(folder / name, kind=KIND_OF_FOLDER[name], vocabulary=vocabulary) for name in STAGES}


def stage_of(name, **fields):
    # Examples enough to fill ROWS rows, and a warm tau: a cold one has no gradient where the positive wins by far.
    return dataclasses.replace(tiny.STAGES[name], **{"batch_size": BATCH[name], "temperature": 0.3, **fields})


def batch_of(stage, table, indices=None, rows=ROWS):
    indices = np.arange(stage.batch_size) if indices is None else np.asarray(indices)
    return stage.batch.pack(table, indices, rows).arrays


@functools.cache
def compiled(vocabulary, stage):
    """(loss, metrics), gradients of the model and of what the loss learns; compiled once a stage."""
    config = tiny.tiny_config(vocabulary)

    def loss(params, learned, batch):
        step = Step(rng=jax.random.key(0), progress=0.25, mask_id=vocabulary.mask_id, learned=learned)
        return stage.loss(bind(config, params), batch, step)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)), initial_params(config, 0)


def graded(vocabulary, stage, batch, learned=None):
    """Loss, metrics, gradient of the model and of what the loss learns."""
    run, params = compiled(vocabulary, stage)
    (loss, metrics), (of_model, of_loss) = run(params, stage.learned() if learned is None else learned, batch)
    return float(loss), metrics, of_model, of_loss


def test_published_contextual_losses_mask_copies_of_documents_alone(vocabulary, tables):
    stages = {mask: stage_of("contextual", margin=2.0, mask_duplicates=mask) for mask in (False, True)}
    batch = batch_of(stages[True], tables["contextual"])
    count = len(batch["query"])
    apart = np.arange(count, dtype=np.int32)
    batch |= {"document_hash": apart, "also_positive": np.zeros((count, stages[True].chunks), bool)}

    model = bind(tiny.tiny_config(vocabulary), initial_params(tiny.tiny_config(vocabulary), 0))
    step = Step(rng=jax.random.key(0), progress=0.25, mask_id=vocabulary.mask_id, learned={})
    run = {
        mask: jax.jit(lambda batch, stage=stage: stage.loss(model, batch, step)[1]) for mask, stage in stages.items()
    }

    def metrics_of(mask, **arrays):
        return run[mask](batch | {"query_hash": apart} | arrays)

    same_query = np.where(apart == 1, 0, apart)
    same_answer = batch["chunks"][..., 0] >= 0
    same_answer[apart, batch["chunk"]] = False
    for mask in stages:
        plain, told = metrics_of(mask), metrics_of(mask, query_hash=same_query, also_positive=same_answer)
        for name in ("loss_global", "loss_batch", "loss_sequence"):
            assert (float(plain[name]) != float(told[name])) == mask, name
    copies = metrics_of(False, document_hash=same_query)
    assert float(copies["loss_global"]) != float(metrics_of(False)["loss_global"])


def distance(a, b):
    parts = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return np.sqrt(sum(float(np.sum((x - y) ** 2)) for x, y in parts))


@pytest.mark.parametrize("name", STAGES)
def test_microbatches_change_neither_loss_nor_metrics_nor_gradients(tables, vocabulary, name):
    batch = batch_of(stage_of(name), tables[name])
    assert batch["tokens"].shape[0] == ROWS and np.sum(batch["segment_ids"].max(axis=1) > 0) >= ROWS - 1
    loss, metrics, gradient, _ = graded(vocabulary, stage_of(name), batch)
    cached_loss, cached_metrics, cached, _ = graded(vocabulary, stage_of(name, microbatches=4), batch)
    np.testing.assert_allclose(cached_loss, loss, rtol=1e-6)
    assert cached_metrics.keys() == metrics.keys()
    for key in metrics:
        np.testing.assert_allclose(cached_metrics[key], metrics[key], rtol=1e-6, atol=1e-7, err_msg=key)
    flat, other = (jax.tree_util.tree_leaves_with_path(tree) for tree in (gradient, cached))
    for (path, expected), (_, found) in zip(flat, other, strict=True):
        assert np.any(expected), path
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max(), err_msg=str(path))


@pytest.mark.parametrize("name", STAGES)
def test_negatives_of_the_microbatch_alone_give_another_gradient(tables, vocabulary, name):
    stage = stage_of(name)
    _, _, exact, _ = graded(vocabulary, stage_of(name, microbatches=4), batch_of(stage, tables[name]))
    halves = np.split(np.arange(stage.batch_size), 2)
    parts = [graded(vocabulary, stage, batch_of(stage, tables[name], half))[2] for half in halves]
    accumulated = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    zero = jax.tree.map(np.zeros_like, exact)
    assert distance(accumulated, exact) > 0.05 * distance(exact, zero)


@pytest.mark.parametrize("name", STAGES)
def test_rows_are_shared_by_devices_and_microbatches(tables, name):
    stage = stage_of(name, microbatches=3)
    needed = stage.batch.sequences_needed(tables[name], multiple_of=2)
    assert needed % 6 == 0
    assert stage_of(name).batch.sequences_needed(tables[name], multiple_of=2) <= needed


@pytest.mark.parametrize("name", STAGES)
def test_prefixes_enter_every_stage_by_their_weights(tables, vocabulary, name):
    half = tiny.WIDTH // 2
    batch = batch_of(stage_of(name), tables[name])
    full = graded(vocabulary, stage_of(name), batch)[0]
    equal, metrics, _, _ = graded(vocabulary, stage_of(name, prefixes=(half, tiny.WIDTH)), batch)
    np.testing.assert_allclose(metrics[f"loss_{tiny.WIDTH}"], full, rtol=1e-5)
    prefix = float(metrics[f"loss_{half}"])
    assert abs(prefix - full) > 1e-3
    np.testing.assert_allclose(equal, (prefix + full) / 2, rtol=1e-5)
    weighed = stage_of(name, prefixes=(half, tiny.WIDTH), prefix_weights=(3.0, 1.0), microbatches=2)
    np.testing.assert_allclose(graded(vocabulary, weighed, batch)[0], (3 * prefix + full) / 4, rtol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_a_learned_temperature_starts_from_the_fixed_one_and_has_its_gradient(tables, vocabulary, name):
    batch = batch_of(stage_of(name), tables[name])
    stage = stage_of(name, learn_temperature=True, prefixes=(8, tiny.WIDTH))
    fixed = stage_of(name, prefixes=(8, tiny.WIDTH))
    loss, metrics, _, gradient = graded(vocabulary, stage, batch)
    np.testing.assert_allclose(metrics["temperature"], 0.3, rtol=1e-6)
    expected, fixed_metrics, _, _ = graded(vocabulary, fixed, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert fixed.learned() == {} and "temperature" not in fixed_metrics

    (key,) = stage.learned()
    (first,) = stage.learned().values()
    ahead, behind = (graded(vocabulary, stage, batch, {key: first + sign * 0.02})[0] for sign in (1, -1))
    assert abs(ahead - behind) > 1e-4
    np.testing.assert_allclose(gradient[key], (ahead - behind) / 0.04, rtol=5e-3)
    # However far it is pushed, it stays above the least temperature, with a gradient that can bring it back.
    _, metrics, _, gradient = graded(vocabulary, stage, batch, {key: -4.0})
    np.testing.assert_allclose(metrics["temperature"], 0.01 + np.exp(-4.0), rtol=1e-5)
    assert gradient[key] != 0


@pytest.mark.parametrize("name", STAGES)
def test_sources_weigh_queries_and_leave_negatives_alone(tables, vocabulary, name):
    plain = stage_of(name)

    def loss_of(*weights):
        # The weights are part of the batch, so one compiled loss serves all of them.
        return graded(vocabulary, plain, batch_of(stage_of(name, source_weights=weights), tables[name]))[0]

    alone = [loss_of(*((other, 0.0) for other in SOURCES if other != source)) for source in SOURCES]
    counts = np.bincount(np.arange(plain.batch_size) % len(SOURCES))
    np.testing.assert_allclose(loss_of(), np.average(alone, weights=counts), rtol=1e-5)
    assert max(alone) - min(alone) > 1e-3
    weighed = loss_of(("code", 3.0), ("law", 0.5))
    np.testing.assert_allclose(weighed, np.average(alone, weights=counts * [1, 3, 0.5]), rtol=1e-5)
    assert loss_of(*((source, 0.0) for source in SOURCES)) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "PairStage.batch_size=0; set it to 1 or more"),
        ({"row_length": -5}, "row_length=-5"),
        ({"slots": 0}, "slots=0"),
        ({"microbatches": 0}, "microbatches=0"),
        ({"rounding": "up"}, "rounding='up'; set it to half_even or floor"),
        ({"prefixes": (-4, 16)}, r"prefixes=\(-4, 16\)"),
        ({"prefixes": (8, 16), "prefix_weights": (-1.0, 2.0)}, r"prefix_weights=\(-1.0, 2.0\); set it to 0 or more"),
        ({"temperature": 0.0}, "temperature=0.0 is not above 0"),
        ({"learn_temperature": True, "temperature": 0.01}, "least_temperature=0.01 is not between 0 and"),
        ({"prefixes": (8, 16), "prefix_weights": (1.0,)}, "2 prefixes with 1 prefix_weights"),
        ({"source_weights": (("web", -1.0),)}, "'web' weighs -1.0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        PairStage(**{"batch_size": 8, **fields})


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (ContextualStage, {"sequence_weight": 3.0}),
        (ContextualStage, {"beta_end": -0.1}),
        (ContextualStage, {"chunks": 0}),
        (ContextualStage, {"slots": 0}),
        (TripletStage, {"negatives": 0}),
        (DiffusionStage, {"min_time": 0.0}),
        (DiffusionStage, {"random_length_share": 2.0}),
        (DiffusionStage, {"normalizer": "tokens"}),
        (DiffusionStage, {"row_length": 0}),
    ],
)
def test_fields_of_one_stage_alone_are_checked_too(stage, fields):
    ((name, value),) = fields.items()
    with pytest.raises(BadInput, match=f"{stage.__name__}.{name}={value!r}; set it to"):
        stage(batch_size=8, **fields)


def test_a_source_that_the_table_lacks_is_refused(tables):
    stage = stage_of("pair", source_weights=(("wiki", 2.0),))
    with pytest.raises(BadInput, match="no source 'wiki' in .*pair, which has web, code, law"):
        batch_of(stage, tables["pair"])


@pytest.mark.parametrize("name", STAGES)
def test_every_field_is_bound_by_gin(name):
    stage = type(tiny.STAGES[name]).__name__
    bindings = ("microbatches = 4", "learn_temperature = True", "prefixes = (128, 512)", "prefix_weights = (1.0, 2.0)")
    weights = "source_weights = (('a', 2.0), ('b', 0.5))"
    config = load(["gin/recipes/quickstart_scratch.gin"], [f"{stage}.{binding}" for binding in (*bindings, weights)])
    (bound,) = (t.stage for t in config.arguments["run"]["stages"] if t.stage.name == name)
    assert (bound.microbatches, bound.learn_temperature, bound.prefixes) == (4, True, (128, 512))
    assert (bound.prefix_weights, bound.source_weights) == ((1.0, 2.0), (("a", 2.0), ("b", 0.5)))


def test_training_with_all_of_it_resumes_and_leaves_a_plain_model(tables, vocabulary, tmp_path):
    stage = stage_of(
        "triplet", microbatches=2, learn_temperature=True, prefixes=(8, 16), source_weights=(("web", 2.0),)
    )

    def go(folder):
        training = tiny.training("triplet", stage=stage, steps=3)
        config = tiny.tiny_config(vocabulary)
        train(folder, training, config, tables["triplet"], vocabulary, mesh=Mesh(), seed=0)
        return read_metrics(folder / "metrics.jsonl")

    whole = go(tmp_path / "whole")
    temperatures = [row["temperature"] for row in whole]
    assert len(set(temperatures)) == 3  # it moves
    assert "loss" not in load_params(tmp_path / "whole")
    assert Embedder.load(tmp_path / "whole").encode(["read file"]).shape == (1, tiny.WIDTH)
    go(tmp_path / "cut")
    (tmp_path / "cut" / "finished.json").unlink()
    again = go(tmp_path / "cut")
    same = ("loss", "temperature", "gradient_norm")
    for row, expected in itertools.zip_longest(again, whole):
        assert [row[key] for key in same] == [expected[key] for key in same]


ON_EIGHT_DEVICES = """
import dataclasses, pathlib, re, sys
import jax, numpy as np
from helpers import tiny
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary
from pplx_jax.parallel.mesh import Mesh, batch_sharding, shardings
from pplx_jax.training.stages.base import Step
from pplx_jax.models.parameters import bind, initial_params

folder = pathlib.Path(sys.argv[1])
vocabulary = load_vocabulary(folder)
table = tiny.tiny_tables(folder / "tables", vocabulary)["triplet"]
config = tiny.tiny_config(vocabulary)

def graded(mesh, microbatches, examples):
    stage = dataclasses.replace(
        tiny.STAGES["triplet"], batch_size=len(examples), temperature=0.3, microbatches=microbatches
    )
    devices = mesh.build()
    batch = stage.batch.pack(table, examples, 32).arrays
    def loss(params, batch):
        step = Step(rng=jax.random.key(0), progress=0.25, mask_id=vocabulary.mask_id)
        return stage.loss(bind(config, params), batch, step)
    with jax.set_mesh(devices):
        params = initial_params(config, 0)
        params = jax.device_put(params, shardings(params, devices))
        batch = jax.device_put(batch, batch_sharding(devices))
        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, batch).compile()
        found = compiled(params, batch)
    # Rows of tokens stay where they are; what travels are vectors of ids, one a candidate.
    tokens = [line for line in compiled.as_text().splitlines() if re.search(r" = s32\\[[0-9,]+,32\\]", line)]
    assert tokens
    words = ("all-gather(", "all-to-all(", "collective-permute(")
    moved = [line for line in tokens if any(word in line for word in words)]
    assert not moved, moved[:3]
    return jax.tree.map(np.asarray, found)

def distance(one, other):
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)))

every = np.arange(16)
(loss, metrics), gradient = graded(Mesh(), 1, every)
eight = Mesh(data=4, fsdp=2)
for microbatches in (1, 4):
    (other_loss, other_metrics), other = graded(eight, microbatches, every)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for key, value in metrics.items():
        np.testing.assert_allclose(other_metrics[key], value, rtol=1e-5, atol=1e-7, err_msg=key)
    for (path, expected), found in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(other), strict=True
    ):
        assert np.any(expected), path
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max(), err_msg=str(path))
# Control: each half of the batch against its own negatives alone.
halves = [graded(eight, 1, half)[1] for half in (every[:8], every[8:])]
accumulated = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
assert distance(accumulated, gradient) > 0.05 * distance(gradient, jax.tree.map(np.zeros_like, gradient))
"""


def test_the_cached_gradient_over_eight_devices_is_that_of_one_in_every_parameter(tmp_path):
    tiny.tiny_vocabulary(tmp_path)
    simulated.run("-c", ON_EIGHT_DEVICES, str(tmp_path))
