"""Trials ranked by a metric: finished and unfinished ones, whole runs and single stages, text, JSON and page."""

import json
import re

import pytest
from helpers.html_checker import Checker

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.core.resolved_recipe import read_resolved, with_macro_values
from pplx_jax.recipes.sweep_report import format_trials, rank, report_trials
from pplx_jax.recipes.sweep_trials import find_trials
from pplx_jax.reports.run import stages_of

KEY = "pair/Optimizer.peak_learning_rate"


def config(rate, temperature=0.02, stages="[@diffusion/Training(), @pair/Training()]") -> str:
    return (
        f"run.stages = {stages}  # recipe.gin:1\n{KEY} = {rate}  # --gin_param:1\npair/Training.steps = 40  # default\n"
        f"PairStage.temperature = {temperature}  # recipe.gin:2\nPairStage.rounding = 'even'  # default\n"
    )


def scores(value):
    return {name: {"ndcg@10": value, "recall@100": 0.9} for name in ("float", "int8", "binary")}


def stage(folder, name, losses, finished=True):
    (folder / name).mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": loss, "fill": 0.9}) for step, loss in enumerate(losses, 1)]
    (folder / name / "metrics.jsonl").write_text("\n".join(lines))
    if finished:
        (folder / name / "finished.json").write_text("{}")


@pytest.fixture
def sweep(tmp_path):
    """Three finished runs, one under way in its second stage, one not started, and a folder that is no trial."""
    folder = tmp_path / "sweep"
    for number, (rate, score) in enumerate(((1e-3, 0.31), (2e-3, 0.39), (0.1, 0.11))):
        trial = folder / f"{number:03d}"
        stage(trial, "diffusion", (9.0, 8.0))
        stage(trial, "pair", (3.0, 2.0 + number))
        (trial / "config.gin").write_text(config(rate))
        results = {"pair": scores(score), "diffusion": scores(0.05), "seconds": {"pair": 10.0 + number}}
        (trial / "results.json").write_text(json.dumps(results))
    under_way = folder / "003"
    stage(under_way, "diffusion", (9.0, 8.0))
    stage(under_way, "pair", (3.0, 2.5, 2.4), finished=False)
    (under_way / "config.gin").write_text(config(4e-3))
    (under_way / "phases").mkdir()
    (under_way / "phases" / "evaluate_diffusion.json").write_text(json.dumps({"seconds": 1, "result": scores(0.06)}))
    for trial in ("003", "004"):
        (folder / trial).mkdir(exist_ok=True)
        record = {"trial": int(trial), "parameters": {KEY: 8e-3}, "stage": None}
        (folder / trial / "trial.json").write_text(json.dumps(record))
    (folder / "packages").mkdir()
    return folder


def test_finished_trials_are_ranked_and_the_others_say_how_far_they_are(sweep):
    result = report_trials([sweep])
    assert (result["metric"], result["best"], result["parameters"]) == ("pair.int8.ndcg@10", "highest", [KEY])
    assert [(row["trial"], row["rank"], row["value"]) for row in result["trials"]] == [
        ("001", 1, 0.39),
        ("000", 2, 0.31),
        ("002", 3, 0.11),
        ("003", None, None),
        ("004", None, None),
    ]
    assert [row["status"] for row in result["trials"][2:]] == ["finished", "pair at step 3 of 40", "not started"]
    assert [row["parameters"][KEY] for row in result["trials"]] == ["0.002", "0.001", "0.1", "0.004", "0.008"]
    assert result["trials"][3]["metrics"]["diffusion.int8.ndcg@10"] == 0.06
    assert (result["finished"], result["unfinished"]) == (3, 2)


def test_losses_and_times_rank_from_below(sweep):
    trials = find_trials([sweep])
    assert [rank(trials, metric).ranked[0].name for metric in ("pair.loss", "seconds.pair", "pair.int8.ndcg@10")] == [
        "000",
        "000",
        "001",
    ]
    assert rank(trials, "pair.loss", best="highest").ranked[0].name == "002"
    assert rank(trials, "pair.loss").trials[3].metrics["pair.loss"] == 2.4  # shown, not ranked


def test_the_table(sweep):
    assert format_trials(rank(find_trials([sweep]))).splitlines() == [
        "    trial      pair.int8.ndcg@10    pair/Optimizer.peak_learning_rate",
        "--  -------  -------------------  -----------------------------------  --------------------",
        " 1  001                   0.3900                                0.002",
        " 2  000                   0.3100                                0.001",
        " 3  002                   0.1100                                0.1",
        "    003                                                         0.004  pair at step 3 of 40",
        "    004                                                         0.008  not started",
        "2 of 5 trials are not finished and have no rank",
    ]


def test_the_page_holds_the_ranking_and_the_plots(sweep):
    page = (sweep / "trials.html").read_text() if report_trials([sweep]) else ""
    checker = Checker()
    checker.feed(page)
    assert not checker.open and "http" not in page and ">nan<" not in page
    text = " ".join(checker.text)
    for part in ("3 of 5 trials finished", "0.39", "trial 001: " + KEY, "pair at step 3 of 40", "Training loss"):
        assert part in text, part
    assert page.count("<circle") >= 3 and "003" in text
    assert all(f"{name}, {KEY} = " in text for name in ("000", "001", "002"))  # a point for each


def test_a_choice_that_is_no_number_has_bars(sweep):
    for name, rounding in (("000", "'even'"), ("001", "'up'"), ("002", "'up'"), ("003", "'up'")):
        file = sweep / name / "config.gin"
        file.write_text(file.read_text().replace("'even'", rounding))
    result = report_trials([sweep])
    assert result["parameters"] == [KEY, "PairStage.rounding"]
    assert "&#x27;even&#x27;: 0.3100" in (sweep / "trials.html").read_text()


def test_macros_stand_for_their_values(sweep):
    file = sweep / "003" / "config.gin"
    content = re.sub(r"(pair/Training.steps = )(\S+)", r"\1%PAIR_STEPS", file.read_text())
    content = re.sub(r"run.stages = (.*)", r"run.stages = %STAGES", content)
    stages = "[@diffusion/Training(), @pair/Training()]"
    file.write_text(f"HALF = 5\nPAIR_STEPS = %HALF  # a file\nSTAGES = {stages}\nNote.text = '%HALF'\n{content}")
    assert find_trials([sweep / "003"])[0].status == "pair at step 3 of 5"
    assert stages_of(sweep / "003", {})[:2] == ["diffusion", "pair"]
    assert with_macro_values(read_resolved(file.read_text()))["Note.text"] == "'%HALF'"


def test_a_whole_recipe_has_ended_when_its_merge_is_scored(sweep):
    stages = "[@diffusion/Training(), @pair/Training(), @contextual/Training(), @triplet/Training()]"
    trial = sweep / "000"
    (trial / "config.gin").write_text(config(1e-3, stages=stages))
    assert find_trials([trial])[0].status == "contextual has not started"
    for name in ("contextual", "triplet"):
        stage(trial, name, (1.0,))
    results = {name: scores(0.4) for name in ("diffusion", "pair", "contextual", "triplet")}
    (trial / "results.json").write_text(json.dumps(results))
    assert find_trials([trial])[0].status == "merged has not been scored"
    (trial / "results.json").write_text(json.dumps({**results, "merged": scores(0.5)}))
    assert find_trials([trial])[0].finished
    (trial / "recipe.json").write_text("{}")
    (trial / "results.json").unlink()  # it comes last, after exports and index
    (trial / "phases").mkdir()
    for name in (*results, "merged"):
        (trial / "phases" / f"evaluate_{name}.json").write_text(json.dumps({"seconds": 1, "result": scores(0.5)}))
    assert find_trials([trial])[0].status == "all models are scored, other phases are in progress"


def test_a_trial_of_one_stage_has_ended_with_it(sweep):
    trial = sweep / "003"
    (trial / "trial.json").write_text(json.dumps({"stage": "diffusion", "parameters": {}}))
    assert find_trials([trial])[0].finished


def test_the_settings_of_a_stage_are_not_those_of_the_stages_it_is_linked_to(tmp_path):
    stage(tmp_path / "base", "diffusion", (9.0, 8.0))
    (tmp_path / "base" / "diffusion" / "config.gin").write_text(config(1e-3))
    for name, rate in (("000", 3e-3), ("001", 5e-3)):
        trial = tmp_path / "sweep" / name
        stage(trial, "pair", (3.0, 2.0))
        (trial / "diffusion").symlink_to(tmp_path / "base" / "diffusion")
        (trial / "pair" / "config.gin").write_text(config(rate))
        (trial / "trial.json").write_text(json.dumps({"stage": "pair", "parameters": {KEY: rate}}))
    result = report_trials([tmp_path / "sweep"])
    assert result["parameters"] == [KEY] and result["finished"] == 2
    assert [row["parameters"][KEY] for row in result["trials"]] == ["0.003", "0.005"]
    for name in ("000", "001"):  # and without the record, too
        (tmp_path / "sweep" / name / "trial.json").write_text("{}")
    assert report_trials([tmp_path / "sweep"])["parameters"] == [KEY]


def test_runs_of_several_folders_keep_their_paths(sweep):
    result = report_trials([sweep / "000", sweep / "001"], output=sweep / "two.html")
    assert [row["trial"] for row in result["trials"]] == [str(sweep / "001"), str(sweep / "000")]
    assert (sweep / "two.html").exists() and not (sweep / "000" / "trials.html").exists()


def test_nothing_has_finished_yet(sweep):
    result = report_trials([sweep / "003", sweep / "004"])
    assert result["finished"] == 0 and [row["rank"] for row in result["trials"]] == [None, None]
    report_trials([sweep / "004"])


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--metric=pair.int8.ndgc@10"], "did you mean pair.int8.ndcg@10?"),
        (["--metric=nothing"], "there are diffusion.binary.ndcg@10"),
    ],
)
def test_a_metric_that_no_trial_has(sweep, capsys, words, complaint):
    assert cli.main(["report", str(sweep), *words]) == cli.BAD_INPUT
    assert complaint in capsys.readouterr().err


def test_folders_that_hold_no_run(tmp_path, sweep):
    with pytest.raises(BadInput, match="no folder"):
        report_trials([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no run"):
        report_trials([tmp_path / "empty"])
    (sweep / "000" / "results.json").write_text("{")
    with pytest.raises(BadInput, match="results.json is damaged"):
        report_trials([sweep])


def test_the_terminal_shows_the_table_alone(sweep, capsys, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    assert cli.main(["report", "sweep", "--workdir=."]) == cli.DONE
    out = capsys.readouterr().out
    assert " 1  001                   0.3900" in out and "recall@100" not in out
    assert cli.main(["report", "sweep", "--dry_run"]) == cli.DONE
