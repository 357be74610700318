"""A run refuses in its first seconds what a later phase would need and does not have."""

import collections
import dataclasses
import importlib.util
import shutil

import pytest
from helpers import tiny

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.mesh import Mesh
from pplx_jax.recipes.preflight import check_disk, check_packages, check_stages
from pplx_jax.training import stage_check
from pplx_jax.training.settings import Checkpointing, Evaluation, Training

MODEL = Qwen3Config(
    vocab_size=64, width=32, mlp_width=32, layers=1, query_heads=2, kv_heads=1, head_dim=16, max_length=64
)
STAGES = [Training(tiny.STAGES[name], tiny.OPTIMIZER, steps=20) for name in ("diffusion", "pair")]
Usage = collections.namedtuple("Usage", "total used free")


def test_a_later_stage_that_the_mesh_cannot_divide_is_refused():
    one = Training(tiny.STAGES["pair"], tiny.OPTIMIZER, steps=20, packing_groups=3)
    check_stages(STAGES, MODEL, Mesh())
    with pytest.raises(BadInput, match=r"pair: a batch of \d+ cannot be packed in 3 equal groups"):
        check_stages([STAGES[0], one], MODEL, Mesh())


@pytest.mark.parametrize(
    "evaluation, best, said",
    [
        (Evaluation(1, sets=("nowhere",)), None, "pair: no evaluation sets in nowhere: the folder does not exist; set"),
        (Evaluation(1, held_out=3), None, "pair: Evaluation.held_out=3 makes no equal batches of 3 examples for 2 dev"),
        (Evaluation(1), "eval/loss/mean", "pair: Checkpointing.best_metric='eval/loss/mean' needs Evaluation.held_out"),
        (Evaluation(1, sets=()), "eval/mean/ndcg@10", "pair: .*best_metric='eval/mean/ndcg@10' needs Evaluation.sets"),
    ],
)
def test_an_evaluation_that_lacks_something_is_refused(monkeypatch, evaluation, best, said):
    monkeypatch.setattr(stage_check, "shards", lambda name, devices: 2)
    stage = dataclasses.replace(STAGES[1], evaluation=evaluation, checkpointing=Checkpointing(best_metric=best))
    with pytest.raises(BadInput, match=said):
        check_stages([STAGES[0], stage], MODEL, Mesh())
    check_stages([dataclasses.replace(stage, evaluation=Evaluation(1, held_out=8))], MODEL, Mesh())


def test_attention_that_the_devices_do_not_have_is_refused():
    stage = dataclasses.replace(STAGES[1], attention_implementation="splash")
    assert stage.model(MODEL).attention_implementation == "splash"
    assert STAGES[1].model(stage.model(MODEL)).attention_implementation == "splash"  # that of the model
    with pytest.raises(BadInput, match="pair: attention: implementation 'splash' needs a TPU, this is cpu"):
        check_stages([STAGES[0], stage], MODEL, Mesh())
    check_stages([dataclasses.replace(stage, attention_implementation="blockwise")], MODEL, Mesh())
    with pytest.raises(BadInput, match="Qwen3Config.attention_implementation='flash'; set it to one of auto, refer"):
        dataclasses.replace(stage, attention_implementation="flash").model(MODEL)


@pytest.mark.parametrize("module, phase", [("torch", "export"), ("bm25s", "evaluate_bm25")])
def test_a_missing_package_of_a_phase_that_remains(monkeypatch, module, phase):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(BadInput, match=rf"the phase {phase} needs the module {module}; pip install 'pplx-jax\["):
        check_packages(lambda name: True, whole=True)
    check_packages(lambda name: name != phase, whole=True)


def test_a_model_that_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, capsys):
    words = ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*words, "--gin_param=Qwen3Config.qkv_bias=True"]) == cli.BAD_INPUT
    assert "no family of Hugging Face models has qk_norm=True and qkv_bias=True" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_disk_too_small_for_the_checkpoints_of_all_stages(tmp_path, monkeypatch):
    parameters = 32 * (64 + 32 * 3 + 32 * 2 + 16 * 2) + 32 * 3 + 16 * 2  # weights, norms
    state = 3 * 4 * parameters  # and the two moments of Adam
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free[0]))
    two = [Training(one.stage, one.optimizer, one.steps, checkpointing=Checkpointing(keep=2)) for one in STAGES]
    free[0] = 5 * state - 1
    with pytest.raises(BadInput, match="the checkpoints of 2 stages need .* GiB are free; choose a --workdir"):
        check_disk(tmp_path / "run", two, MODEL, whole=False)
    free[0] = int(5.1 * state)
    check_disk(tmp_path / "run", two, MODEL, whole=False)
    best = Checkpointing(keep=2, best_metric="eval/mean/ndcg@10", keep_best=1)
    one = dataclasses.replace(two[0], checkpointing=best, evaluation=Evaluation(1))
    with pytest.raises(BadInput, match="the checkpoints of 2 stages need"):  # the best one too
        check_disk(tmp_path / "run", [one, two[1]], MODEL, whole=False)
    (tmp_path / "run" / "pair").mkdir(parents=True)
    (tmp_path / "run" / "pair" / "saved").write_bytes(bytes(2 * state))
    free[0] = int(3.1 * state)
    check_disk(tmp_path / "run", two, MODEL, whole=False)
