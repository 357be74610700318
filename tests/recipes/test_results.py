"""The table, results.json and the page of complete and partial runs."""

import json
import re

import pytest
from helpers.html_checker import Checker

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json
from pplx_jax.recipes import results as report
from pplx_jax.reports import charts
from pplx_jax.reports.run import collect, result_rows

SCORES = {"ndcg@10": 0.4, "recall@100": 0.8}
STAGE = {"float": SCORES, "int8": SCORES, "binary": {"ndcg@10": 0.3, "recall@100": 0.7}}
RESULTS = {
    "bm25": {"ndcg@10": 0.25, "recall@100": 0.75},
    "random": STAGE,
    "diffusion": STAGE,
    "contextual": {**STAGE, "with_context": {**SCORES, "ndcg@10": 0.46}, "without_context": SCORES},
    "merged": STAGE,
    "seconds": {"data": 12.0, "diffusion": 100.0, "evaluate": 8.0},
    "environment": {"device": "1 x <test> device", "jax": "0.0"},
}


@pytest.fixture
def workdir(tmp_path):
    stage = tmp_path / "diffusion"
    stage.mkdir()
    lines = [json.dumps({"step": n, "loss": 9.0 - n / 100}) for n in range(1, 300)]
    lines += ['{"step": 300, "loss": NaN}', '{"step": 301, "lo']
    (stage / "metrics.jsonl").write_text("\n".join(lines))
    (stage / "config.gin").write_text("# resolved\nTraining.steps = 300 # a < b\n")
    (stage / "finished.json").write_text('{"compile_seconds": 30.0}')
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "counts.json").write_text('{"pairs": 12345, "held_out": ["jax"]}')
    report.write_results(tmp_path, RESULTS)
    return tmp_path


def page_text(workdir):
    page = report.write_report(workdir).read_text()
    assert "http" not in page and "url(#compile)" in page or "url(" not in page
    assert "NaN" not in page and "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.S)
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return " ".join(checker.text)


def test_results_are_read_back(workdir):
    assert json.loads((workdir / "results.json").read_text()) == RESULTS


def test_the_page_holds_every_part(workdir):
    text = page_text(workdir)
    for part in (
        "1 x <test> device",
        "+0.150",  # merged against BM25
        "+0.060",  # gain from context
        "75.0%",  # binary over float
        "Retrieval by stage",
        "Quantization",
        "Training loss",
        "299 logged steps",
        "diffusion, compiling: 30.0 s",
        "12,345",
        "Training.steps = 300 # a < b",
    ):
        assert part in text, part


def test_the_page_says_what_each_stage_adds_and_shows_probes(workdir):
    probe = {**STAGE, "with_context": {**SCORES, "ndcg@10": 0.75}, "without_context": SCORES}
    row = {"of": "contextual", "over": "diffusion", "set": "evaluation", "ndcg@10": -0.02, "low": -0.03, "high": -0.01}
    contextual = {**RESULTS["contextual"], "probes": {"context": probe}}
    report.write_results(workdir, {**RESULTS, "contextual": contextual, "gains": [row]})
    text = page_text(workdir)
    assert "contextual over diffusion" in text and "costs 0.020 [0.010, 0.030]" in text
    assert "+0.350" in text and "on the probe context" in text
    assert "context (probe)" in text


def test_the_page_shows_what_a_stage_learned_of_masked_tokens(workdir):
    change = {"before": 3.0, "after": 2.5, "change": -0.5, "low": -0.75, "high": -0.25}
    hits = {"before": 0.25, "after": 0.375, "change": 0.125, "low": 0.0, "high": 0.25}
    diffusion = {**STAGE, "masked_tokens": {"texts": 128, "0.15": {"loss": change, "accuracy": hits}}}
    report.write_results(workdir, {**RESULTS, "diffusion": diffusion})
    text = page_text(workdir)
    assert "15%" in text and "3 -> 2.5 (-0.50 [-0.75, -0.25])" in text
    lines = report.format_masked_tokens({"diffusion": diffusion}).splitlines()
    assert "25% -> 37.5% (+12.50 [+0.00, +25.00])" in lines[2]
    assert report.format_masked_tokens(RESULTS) == ""


def test_a_run_that_has_only_begun(tmp_path):
    report.write_results(tmp_path, {"environment": {"device": "cpu"}})
    text = page_text(tmp_path)
    assert "no stage has been evaluated yet" in text
    assert "Training loss" not in text and "Retrieval by stage" not in text


def test_a_stage_of_any_name_is_shown_in_the_order_of_the_recipe(workdir):
    for name in ("first_of_all", "distill"):
        (workdir / name).mkdir()
        (workdir / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    (workdir / "config.gin").write_text(
        "run.stages = [@first_of_all/Training(), @diffusion/Training(),\n  @distill/Training()]\nrun.mesh = @Mesh()\n"
    )
    report.write_results(workdir, {"distill": STAGE, "merged": STAGE, "random": STAGE, "diffusion": STAGE})
    run = collect(workdir)
    assert run.stages == ["first_of_all", "diffusion", "distill", "merged"]
    assert list(run.losses) == ["first_of_all", "diffusion", "distill"]
    text = page_text(workdir)
    assert "2 logged steps" in text and "nDCG@10, merged, int8" in text
    rows = result_rows(run.results, run.stages)
    assert [row.name for row in rows] == ["random", "diffusion", "distill", "merged"]
    recorded = ["distill", "diffusion"]
    report.write_results(workdir, {"diffusion": STAGE, "distill": STAGE, "stages": recorded})
    lines = report.format_table(read_json(workdir / "results.json")).splitlines()
    assert [line.split()[0] for line in lines[3:]] == recorded
    assert collect(workdir).stages[:2] == recorded


def test_every_metric_of_the_evaluations_has_a_curve_with_its_best_value(workdir):
    values = {10: (0.25, 3.0), 20: (0.5, 2.0), 30: (0.375, 2.5)}
    rows = [
        {"step": step, "loss": 1.0, "eval/python/ndcg@10": score, "eval/loss/code": loss}
        for step, (score, loss) in values.items()
    ]
    text = "".join(json.dumps(row) + "\n" for row in [{"step": 1, "loss": 2.0}, *rows])
    (workdir / "diffusion" / "metrics.jsonl").write_text(text)
    assert collect(workdir).evaluations == {
        "diffusion": {
            "eval/python/ndcg@10": [(10, 0.25), (20, 0.5), (30, 0.375)],
            "eval/loss/code": [(10, 3.0), (20, 2.0), (30, 2.5)],
        }
    }
    text = page_text(workdir)
    assert "Evaluation during training" in text and "step 30: 0.375" in text
    assert "python/ndcg@10 best 0.5 at step 20" in re.sub(r"\s+", " ", text)
    assert "loss/code best 2 at step 20" in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("missing", sorted(RESULTS))
def test_any_part_may_be_missing(workdir, missing):
    report.write_results(workdir, {name: part for name, part in RESULTS.items() if name != missing})
    page_text(workdir)


def test_unmeasured_numbers(workdir):
    partial = {"float": {"ndcg@10": None}, "int8": {"ndcg@10": float("nan")}}
    report.write_results(workdir, {**RESULTS, "merged": partial, "seconds": {"data": "soon"}})
    page_text(workdir)


def test_what_cannot_be_reported(tmp_path):
    with pytest.raises(BadInput, match="no folder"):
        report.write_report(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(BadInput, match="results.json is damaged"):
        report.write_report(tmp_path)


def test_the_table_is_aligned():
    assert report.format_table(RESULTS).splitlines() == [
        "                          nDCG@10                      Recall@100",
        "                            float    int8    binary         float    int8    binary",
        "----------------------  ---------  ------  --------  ------------  ------  --------",
        "BM25                       0.2500                          0.7500",
        "random                     0.4000  0.4000    0.3000        0.8000  0.8000    0.7000",
        "diffusion                  0.4000  0.4000    0.3000        0.8000  0.8000    0.7000",
        "contextual                 0.4000  0.4000    0.3000        0.8000  0.8000    0.7000",
        "contextual, in context             0.4600                          0.8000",
        "merged                     0.4000  0.4000    0.3000        0.8000  0.8000    0.7000",
    ]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 0.37, [0, 0.1]), (2.1, 9.7, [2, 4]), (5, 5, [4, 6]), (0, 0, [0, 0.25])],
)
def test_ticks_are_round_and_cover(low, high, expected):
    ticks = charts.nice_ticks(low, high, 4)
    assert ticks[:2] == pytest.approx(expected) and ticks[0] <= low and ticks[-1] >= high


def test_the_running_mean():
    assert charts.smooth([1.0, 3.0]) == [1.0, 3.0]
    values = [float(n % 2) for n in range(400)]
    assert charts.smooth(values)[-1] == pytest.approx(0.5)
