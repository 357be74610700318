"""What trials take from a run: never a stage that depends on something they change."""

import pytest

from launch.jobs import jobs_of
from launch.shared_phases import SharedPhases
from launch.sweep import Trial
from pplx_jax.configuration import load
from pplx_jax.core.errors import BadInput

RECIPE = "gin/recipes/quickstart_scratch.gin"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.gin").write_text(load([RECIPE]).resolved())
    return str(folder)


def shared(base, *params, stage=None):
    return SharedPhases.of(base, load([RECIPE], params), stage)


@pytest.mark.parametrize(
    "param, stages, mined",
    [
        ("Merge.weight=0.3", ("diffusion", "pair", "contextual", "triplet"), True),
        ("Mesh.data=2", ("diffusion", "pair", "contextual", "triplet"), True),
        ("triplet/Training.steps=1", ("diffusion", "pair", "contextual"), True),
        ("ContextualStage.beta_end=0.9", ("diffusion", "pair", "triplet"), True),
        ("Mining.first_rank=5", ("diffusion", "pair", "contextual"), False),
        ("PairStage.temperature=0.1", ("diffusion",), False),
        ("diffusion/Optimizer.b2=0.9", (), False),
        ("Optimizer.b1=0.8", (), False),  # of every stage
        ("run.stages=[@pair/Training()]", (), False),
    ],
)
def test_a_change_reaches_what_comes_after_it(base, param, stages, mined):
    found = shared(base, param)
    assert found.stages == stages
    assert ("data/tokens/triplet" in found.links) == ("phases/mine.json" in found.links) == mined
    assert {"data/corpus", "data/tokens/pair", "phases/evaluate_bm25.json"} <= {*found.links}
    for stage in ("diffusion", "pair", "contextual", "triplet"):
        linked = {stage, f"phases/{stage}.json", f"phases/evaluate_{stage}.json"} & {*found.links}
        assert len(linked) == (3 if stage in stages else 0)
    assert not any("merge" in link for link in found.links)


def test_declared_triplets_depend_on_no_stage(tmp_path):
    files = ["gin/recipes/pplx_embed_0p6b.gin", "gin/data/pplx_embed.gin"]
    params = ["INITIAL='a_model'", "DATA_ROOT='data'", "EVALUATION='sets'"]
    (tmp_path / "config.gin").write_text(load(files, params).resolved())
    trial = load(files, [*params, "PairStage.temperature=0.1"])
    found = SharedPhases.of(str(tmp_path), trial)
    assert "pair" not in found.stages and "data/tokens/triplet" in found.links


def test_a_stage_that_is_asked_for_is_trained(base):
    assert shared(base, stage="pair").stages == ("diffusion",)
    assert shared(base, stage="triplet").stages == ("diffusion", "pair", "contextual")


@pytest.mark.parametrize("param", ["SEED=1", "Lengths.query=16", "Qwen3Config.width=64", "PythonCorpus.min_chunks=3"])
def test_what_every_stage_depends_on_is_refused(base, param):
    with pytest.raises(BadInput, match="which every stage depends on"):
        shared(base, param)


def test_a_base_that_is_no_run(tmp_path):
    with pytest.raises(BadInput, match="it has no config.gin"):
        shared(str(tmp_path))


def test_one_job_a_stage_that_is_not_done():
    trial = Trial({}, (RECIPE,), ("SEED=1",), load([RECIPE], ["SEED=1"]))
    jobs = jobs_of(trial, "/run", None)
    assert [job.name for job in jobs] == ["diffusion", "pair", "contextual", "triplet", "finish"]
    shared_words = ("run", f"--gin_file={RECIPE}", "--gin_param=SEED=1", "--workdir=/run")
    assert jobs[1].args == (*shared_words, "--until=pair") and jobs[-1].args == shared_words
    assert [job.name for job in jobs_of(trial, "/run", None, ("diffusion", "pair"))] == [
        "contextual",
        "triplet",
        "finish",
    ]
    assert jobs_of(trial, "/run", "pair")[0].args == ("train", *shared_words[1:], "--stage=pair")
    with pytest.raises(BadInput, match="--stage=merge: the recipe has diffusion, pair"):
        jobs_of(trial, "/run", "merge")
