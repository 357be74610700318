"""`pplx-jax plan`: real compilations of a small model for a small topology, and the reports on them."""

import json
import math

import numpy as np
import pytest
from helpers import tpu_compile

from pplx_jax.cli import main as cli
from pplx_jax.configuration import load
from pplx_jax.plan.advice import advice
from pplx_jax.plan.kernels import VOCABULARY_SLOTS
from pplx_jax.plan.longest_texts import LongestTexts, text_lengths

pytestmark = pytest.mark.slow

PROMISED = {
    "fits",
    "hbm_bytes_per_chip",
    "hbm_limit_bytes",
    "flops_per_step",
    "collective_bytes",
    "step_seconds_estimate",
    "mfu_estimate",
}
SMALL = [
    "plan",
    "--gin_file=gin/recipes/quickstart_scratch.gin",
    "--topology=v5e:2x2",
    "--mesh=fsdp",
    "--json",
    "--gin_param=Qwen3Config.dtype='bfloat16'",
]


@pytest.mark.parametrize("stage, rows", [("diffusion", 1024), ("pair", 18432), ("contextual", 4096), ("triplet", 8320)])
def test_the_longest_texts_need_so_many_rows(stage, rows):
    run = load(["gin/recipes/pplx_embed_4b.gin"], unset="unset").arguments["run"]
    training = next(each for each in run["stages"] if each.stage.name == stage)
    spec = training.stage.batch
    table = LongestTexts(spec.kind, run["lengths"], spec.batch_size, getattr(spec, "negatives", 0))
    assert spec.sequences_needed(table) == rows


def test_lengths_of_packed_texts():
    assert text_lengths(np.array([[1, 1, 2, 0], [0, 0, 0, 0], [1, 3, 3, 3]])) == [2, 1, 1, 3]


@tpu_compile.needs_libtpu
def test_a_stage_that_fits(tmp_path, capsys):
    picture = tmp_path / "plan.html"
    command = [*SMALL, "--stage=diffusion", f"--picture={picture}", "--gin_param=DiffusionStage.batch_size=256"]
    assert cli.main(command) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() >= PROMISED and plan["fits"] is True and plan["chips"] == 4
    at_peak = plan["mfu_estimate"] * plan["step_seconds_estimate"] * 4 * 197e12
    assert plan["flops_per_step"] == pytest.approx(at_peak, rel=1e-12)
    assert 0 < plan["mfu_estimate"] < 1 and plan["collective_bytes"] > 0
    assert sum(plan["hbm"].values()) == plan["hbm_bytes_per_chip"] < plan["hbm_limit_bytes"]
    # The width lies on four chips, with its moments; norms are everywhere.
    parameters = 16384 * 512 + 512 * (2 * 2 * 64 + 2 * 64) + 3 * 512 * 128
    assert plan["hbm"]["parameters"] == pytest.approx(parameters, rel=0.01)
    assert plan["hbm"]["optimizer"] == pytest.approx(2 * parameters, rel=0.01)
    assert {"attention_forward", "attention_backward"} <= plan["seconds"].keys()
    # Blocks of 2,048 positions that have a loss, half of the tokens and a little more, on each of four chips.
    product = 2 * 16384 * 512 * 2048 / 197e12
    blocks = plan["seconds"]["vocab_scores"] / (product / VOCABULARY_SLOTS["vocab_scores"]["v5e"])
    assert blocks == pytest.approx(math.ceil(0.5005 * plan["tokens_per_step"] / 4 / 2048))
    page = picture.read_text()
    assert "Memory per chip" in page and "<svg" in page and "MFU" in page


@pytest.mark.long
@tpu_compile.needs_libtpu
def test_a_stage_on_ironwood(capsys):
    command = [*SMALL, "--topology=tpu7x:2x2x1", "--stage=diffusion", "--gin_param=DiffusionStage.batch_size=256"]
    assert cli.main(command) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["chips"] == 8 and plan["hbm_limit_bytes"] == int(94.75 * 2**30)
    assert 0 < sum(plan["hbm"].values()) == plan["hbm_bytes_per_chip"] < plan["hbm_limit_bytes"]
    # libtpu 0.0.52 prints no program for it. With the text, our kernels would have no schedule.
    reasons = ("libtpu gives no text of it", "kernel attention_forward, taken at the peak")
    assert any(reason in plan["table"] for reason in reasons)
    assert (plan["step_seconds_estimate"] is None) == (reasons[0] in plan["table"])


@pytest.mark.long
@tpu_compile.needs_libtpu
def test_attention_by_the_kernel_that_was_asked_for(capsys):
    command = [*SMALL, "--stage=triplet", "--gin_param=Training.attention_implementation='splash'"]
    assert cli.main([*command, "--gin_param=TripletStage.batch_size=16"]) == cli.DONE
    plan = json.loads(capsys.readouterr().out)
    assert "attention_forward" not in plan["seconds"]  # nor a schedule of it: its kernels are named
    assert any(name.startswith("kernel splash_mha_fwd") for name in plan["without_estimate"])


@tpu_compile.needs_libtpu
def test_a_stage_that_does_not_fit_says_what_to_change(capsys):
    command = [*SMALL, "--stage=diffusion", "--gin_param=DiffusionStage.batch_size=131072"]
    assert cli.main([*command, "--gin_param=Lengths.text=256"]) == cli.FAILED
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() >= PROMISED and plan["fits"] is False
    assert plan["hbm_bytes_per_chip"] > plan["hbm_limit_bytes"] == int(15.75 * 2**30)
    assert plan["advice"] and "GiB a chip too much" in plan["advice"][0] and "DOES NOT FIT" in plan["table"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--stage=mlm"], "--stage mlm: the recipe has no such stage; it has diffusion, pair"),
        (["--stage=pair", "--topology=v9:2x2"], "topology 'v9:2x2'"),
    ],
)
def test_bad_input(flags, message, capsys):
    assert cli.main([*SMALL, *flags]) == cli.BAD_INPUT
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_advice_names_the_fields_to_change():
    run = load(["gin/recipes/pplx_embed_4b.gin"], unset="unset").arguments["run"]
    sizes = dict.fromkeys(("slice", "tensor", "sequence"), 1) | {"data": 8, "fsdp": 2}
    report = {
        "fits": False,
        "hbm_bytes_per_chip": 40 * 2**30,
        "hbm_limit_bytes": 16 * 2**30,
        "hbm": {"parameters": 8 * 2**30, "optimizer": 16 * 2**30},
        "mesh_sizes": sizes,
        "rows": 16,
    }
    said = "\n".join(advice(report, run["stages"][1]))
    for part in ("24.00 GiB", "Mesh.data to Mesh.fsdp", "PairStage.microbatches=2", "Mesh.sequence", "Mesh.tensor"):
        assert part in said
    assert "diffusion/Training.remat_policy=()" in "\n".join(advice(report, run["stages"][0]))
    assert advice(report | {"fits": True}, run["stages"][0]) == []
