"""The triplet stage with a teacher: it learns the scores, and refuses triplets that have none."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.source_corpus import SourceCorpus
from pplx_jax.data.tokens.token_table import TokenTable
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.models.parameters import bind, initial_params
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.recipes.preflight import check_teachers
from pplx_jax.training.metrics import read_metrics
from pplx_jax.training.settings import Evaluation
from pplx_jax.training.stages.base import Step
from pplx_jax.training.stages.triplet import TripletStage
from pplx_jax.training.train_stage import train


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny.tiny_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory, vocabulary):
    """Triplets without scores, and the same ones with scores."""
    folder = tmp_path_factory.mktemp("tables")
    plain = tiny.tiny_tables(folder, vocabulary)["triplet"]
    scores = np.random.default_rng(3).normal(size=(plain.count, 1 + tiny.NEGATIVES)).astype(np.float32)
    write_table(folder / "taught", "triplet", vocabulary, {**plain.features, "scores": scores})
    return plain, TokenTable.open(folder / "taught", kind="triplet", vocabulary=vocabulary)


def trained(folder, vocabulary, table, steps=4, evaluation=None, **fields):
    stage = dataclasses.replace(tiny.STAGES["triplet"], **fields)
    training = dataclasses.replace(tiny.training("triplet", steps=steps), stage=stage, evaluation=evaluation)
    train(folder, training, tiny.tiny_config(vocabulary), table, vocabulary, mesh=Mesh(), seed=0)
    return read_metrics(folder / "metrics.jsonl")


def test_a_run_learns_the_scores(tables, vocabulary, tmp_path):
    _, taught = tables
    evaluation = Evaluation(40, sets=(), held_out=4)
    changes = {"temperature": 0.3, "microbatches": 2, "prefixes": (8, tiny.WIDTH)}
    logged = trained(tmp_path, vocabulary, taught, 40, evaluation, teacher="margin_mse", **changes)
    first, last = (np.mean([row["loss"] for row in rows]) for rows in (logged[:5], logged[-5:]))
    assert last < 0.5 * first
    assert np.isfinite(logged[-1]["eval/loss/mean"]) and 0 <= logged[-1]["teacher_agreement"] <= 1


def test_the_contrastive_loss_is_added_with_its_weight(tables, vocabulary):
    plain, kl = tiny.STAGES["triplet"], dataclasses.replace(tiny.STAGES["triplet"], teacher="kl")
    stages = [plain, kl, dataclasses.replace(kl, contrastive_weight=0.25)]
    config, rows = tiny.tiny_config(vocabulary), np.arange(plain.batch_size)
    batch = stages[-1].batch.pack(tables[1], rows, 3).arrays
    step = Step(rng=jax.random.key(0), progress=0.0, mask_id=vocabulary.mask_id)
    model = bind(config, initial_params(config, 0))
    losses = jax.jit(lambda batch: [stage.loss(model, batch, step) for stage in stages])(batch)
    (contrastive, more), (teacher, _), (both, metrics) = losses
    np.testing.assert_allclose(both, teacher + 0.25 * contrastive, rtol=1e-6)
    np.testing.assert_allclose(metrics["distillation"], teacher, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive"], contrastive, rtol=1e-6)
    assert metrics["duplicates"] == more["duplicates"] and teacher > 0 and contrastive > 0


def test_triplets_without_scores_are_refused_before_anything_is_written(tables, vocabulary, tmp_path):
    with pytest.raises(BadInput, match="triplets without teacher scores, which the stage reads; name their"):
        trained(tmp_path / "run", vocabulary, tables[0], teacher="kl")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"teacher": "mse"}, "TripletStage.teacher='mse'"),
        ({"teacher_temperature": 0.0}, "TripletStage.teacher_temperature=0.0"),
        ({"contrastive_weight": -1.0}, "TripletStage.contrastive_weight=-1.0"),
    ],
)
def test_settings_are_checked(fields, said):
    with pytest.raises(BadInput, match=said):
        TripletStage(batch_size=4, **fields)


def test_a_recipe_refuses_a_teacher_without_scores_at_its_start(tmp_path, capsys):
    words = ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*words, "--gin_param=TripletStage.teacher='kl'"]) == cli.BAD_INPUT
    error = capsys.readouterr().err.splitlines()[-1]
    assert "triplet: the stage reads teacher scores, and mined triplets have none; declare triplets" in error
    assert not (tmp_path / "run").exists()


def test_only_the_sources_that_a_stage_reads_must_have_scores():
    bare = Source("bare", "triplet", "{language}.jsonl", languages={"en": 1.0})
    corpus = SourceCorpus([bare, Source("taught", "triplet", "b.jsonl", columns={"scores": "scores"})], "evaluation")
    stage = dataclasses.replace(tiny.STAGES["triplet"], teacher="kl")
    training = dataclasses.replace(tiny.training("triplet"), stage=stage)
    check_teachers([dataclasses.replace(training, data=Mixture({"taught": 1.0}))], corpus)
    check_teachers([tiny.training("triplet")], corpus)
    for data in (None, Mixture({"bare": 1.0, "taught": 1.0}), Mixture({"bare.en": 1.0})):
        with pytest.raises(BadInput, match="triplet: .*the source bare has none; name their column in its Source.colu"):
            check_teachers([dataclasses.replace(training, data=data)], corpus)
