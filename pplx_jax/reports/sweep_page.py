"""The page of a sweep: the best trial, the ranking, the metric by parameter, and the losses."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from pplx_jax.reports import charts
from pplx_jax.reports.html import Row, Tile, render, score

_MOST_BARS, _MOST_CURVES = 24, 4


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One run.

    Attributes:
      name: its path relative to the requested folder.
      folder: its workdir.
      settings: binding -> value, as gin text; the launch parameters if the run has not started.
      metrics: dotted name -> number: scores ("pair.int8.ndcg@10"), seconds of phases ("seconds.pair"), and the last
        logged numbers of each stage ("pair.loss").
      losses: stage -> [(step, loss)].
      status: "finished", or how much is done.
      stages: names of stages and merges, in order.
    """

    name: str
    folder: pathlib.Path
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    losses: Mapping[str, list[tuple[float, float]]]
    status: str
    stages: Sequence[str] = ()

    @property
    def finished(self) -> bool:
        """Whether everything that was requested is done."""
        return self.status == "finished"


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Trials by a metric: the best first, trials without a rank last.

    Attributes:
      metric: dotted name.
      lowest: whether the lowest value is best.
      parameters: the settings that differ.
      trials: all trials.
      ranks: name of a trial -> its rank from 1; only finished trials with the metric are ranked.
    """

    metric: str
    lowest: bool
    parameters: Sequence[str]
    trials: Sequence[TrialRun]
    ranks: dict[str, int]

    @property
    def ranked(self) -> list[TrialRun]:
        """The trials that have a rank."""
        return [trial for trial in self.trials if trial.name in self.ranks]


def render_trials(ranking: Ranking, title: str) -> str:
    """Returns the HTML document; a section without data is left out."""
    finished = sum(trial.finished for trial in ranking.trials)
    order = "lowest first" if ranking.lowest else "highest first"
    unfinished = len(ranking.trials) - finished
    shown = min(len(ranking.ranked), _MOST_BARS)
    colors = charts.colors_of(list(dict.fromkeys(stage for trial in ranking.trials for stage in trial.stages)))
    color = colors.get(ranking.metric.partition(".")[0], "other")
    values = {
        "subtitle": f"{finished} of {len(ranking.trials)} trials finished · by {ranking.metric}, {order}",
        "tiles": list(_tiles(ranking)),
        "metric": ranking.metric,
        "ranking_chart": _ranking_chart(ranking, color),
        "ranking_note": f"The first {shown}." if shown < len(ranking.ranked) else "Finished trials.",
        "parameter_charts": list(_parameter_charts(ranking, color)),
        "losses": list(_losses(ranking, colors))[:_MOST_CURVES],
        "table_note": f"{unfinished} not finished and without a rank." if unfinished else "All finished.",
        "head": ["Trial", "Rank", ranking.metric, *ranking.parameters, ""],
        "rows": [_row(trial, ranking) for trial in ranking.trials],
    }
    return render("sweep.html", title, values)


def _tiles(ranking: Ranking) -> Iterator[Tile]:
    if not ranking.ranked:
        return
    best, last = ranking.ranked[0], ranking.ranked[-1]
    note = ", ".join(f"{key} = {best.settings.get(key, '')}" for key in ranking.parameters)
    yield Tile("Best", f"{best.metrics[ranking.metric]:.4g}", f"trial {best.name}: {note}")
    spread = best.metrics[ranking.metric] - last.metrics[ranking.metric]
    yield Tile("Best against worst", f"{spread:+.4g}", f"trial {last.name} is last")


def _ranking_chart(ranking: Ranking, color: str) -> Markup | None:
    ranked = ranking.ranked[:_MOST_BARS]
    if not ranked or min(trial.metrics[ranking.metric] for trial in ranked) < 0:
        return None
    return charts.bars(
        [charts.Bar(trial.name[-charts.LONGEST_LABEL :], trial.metrics[ranking.metric], color) for trial in ranked]
    )


def _parameter_charts(ranking: Ranking, color: str) -> Iterator[tuple[str, Markup]]:
    for key in ranking.parameters:
        values = [(trial, _number(trial.settings.get(key))) for trial in ranking.ranked]
        points = [(x, trial.metrics[ranking.metric], _title(trial, ranking)) for trial, x in values if x is not None]
        if len({x for x, _, _ in points}) > 1:
            yield key, charts.scatter(points, color)
            continue
        best: dict[str, float] = {}
        for trial in ranking.ranked:  # the best of each value comes first
            best.setdefault(trial.settings.get(key, ""), trial.metrics[ranking.metric])
        if len(best) > 1 and min(best.values()) >= 0:
            yield (
                key,
                charts.bars([charts.Bar(name[: charts.LONGEST_LABEL], value, color) for name, value in best.items()]),
            )


def _losses(ranking: Ranking, colors: Mapping[str, str]) -> Iterator[tuple[str, str, Markup]]:
    """Yields trial, stage and curve: of the metric's stage, else of the last stage that has one."""
    stage = ranking.metric.partition(".")[0]
    for trial in [*ranking.ranked, *(trial for trial in ranking.trials if not trial.finished)]:
        for name in [stage] if stage in trial.losses else list(trial.losses)[-1:]:
            if len(trial.losses[name]) > 1:
                state = name if trial.finished else f"{name}, {trial.status}"
                yield trial.name, state, charts.line(trial.losses[name], colors.get(name, "other"))


def _row(trial: TrialRun, ranking: Ranking) -> Row:
    cells = [
        trial.name,
        str(ranking.ranks.get(trial.name, "")),
        score(trial.metrics.get(ranking.metric)),
        *(trial.settings.get(key, "") for key in ranking.parameters),
        "" if trial.finished else trial.status,
    ]
    return Row(cells, baseline=not trial.finished)


def _title(trial: TrialRun, ranking: Ranking) -> str:
    return ", ".join([trial.name, *(f"{key} = {trial.settings.get(key, '')}" for key in ranking.parameters)])


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"-?\d+\.?\d*(e[-+]?\d+)?", text) else None
