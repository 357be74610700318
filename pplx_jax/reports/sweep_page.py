"""The page of a sweep: the best trial, all of them ranked, the metric over each parameter, and their losses."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from html import escape

from pplx_jax.reports import charts
from pplx_jax.reports.frame import document, section, tiles

_MOST_BARS, _MOST_CURVES, _LONGEST_LABEL = 24, 4, 22
_STAGE_COLORS = ("diffusion", "pair", "contextual", "triplet", "merged")


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One run.

    Attributes:
      name: its path, from the folder that was asked for.
      folder: its workdir.
      settings: binding -> value, as gin text; what it was launched with where it has not started.
      metrics: dotted name -> number: scores ("pair.int8.ndcg@10"), seconds of phases ("seconds.pair"), and each stage's
        last logged numbers ("pair.loss").
      losses: stage -> [(step, loss)].
      status: "finished", or how far it is.
    """

    name: str
    folder: pathlib.Path
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    losses: Mapping[str, list[tuple[float, float]]]
    status: str

    @property
    def finished(self) -> bool:
        """Whether all that was asked of it is done."""
        return self.status == "finished"


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Trials by a metric, the best first, those without a rank last.

    Attributes:
      metric: dotted name.
      lowest: whether the lowest is best.
      parameters: the settings that differ.
      trials: all.
      ranks: name of a trial -> its rank from 1; only finished trials that have the metric are ranked.
    """

    metric: str
    lowest: bool
    parameters: Sequence[str]
    trials: Sequence[TrialRun]
    ranks: dict[str, int]

    @property
    def ranked(self) -> list[TrialRun]:
        """Those that have a rank."""
        return [trial for trial in self.trials if trial.name in self.ranks]


def render_trials(ranking: Ranking, title: str) -> str:
    """Returns the whole HTML document; a section that has nothing to show is left out."""
    body = "".join((_head(ranking, title), _bars(ranking), _scatters(ranking), _losses(ranking), _table(ranking)))
    return document(title, body)


def _head(ranking: Ranking, title: str) -> str:
    finished = sum(trial.finished for trial in ranking.trials)
    facts = f"{finished} of {len(ranking.trials)} trials finished · by {ranking.metric}, " + (
        "lowest first" if ranking.lowest else "highest first"
    )
    headlines = []
    if ranking.ranked:
        best = ranking.ranked[0]
        note = ", ".join(f"{key} = {best.settings.get(key, '')}" for key in ranking.parameters)
        headlines.append(("Best", f"{best.metrics[ranking.metric]:.4g}", f"trial {best.name}: {note}"))
        spread = best.metrics[ranking.metric] - ranking.ranked[-1].metrics[ranking.metric]
        headlines.append(("Best against worst", f"{spread:+.4g}", f"trial {ranking.ranked[-1].name} is last"))
    return f"<header><h1>{escape(title)}</h1><p>{escape(facts)}</p></header>{tiles(headlines)}"


def _bars(ranking: Ranking) -> str:
    ranked = ranking.ranked[:_MOST_BARS]
    if not ranked or min(trial.metrics[ranking.metric] for trial in ranked) < 0:
        return ""
    rows = [
        charts.Bar(trial.name[-_LONGEST_LABEL:], trial.metrics[ranking.metric], _color(ranking)) for trial in ranked
    ]
    note = f"The first {len(ranked)}." if len(ranking.ranked) > len(ranked) else "Finished trials."
    return section("Ranking", note, f'<div class="card">{charts.bars(rows)}</div>')


def _scatters(ranking: Ranking) -> str:
    cards = []
    for key in ranking.parameters:
        values = [(trial, _number(trial.settings.get(key))) for trial in ranking.ranked]
        points = [(x, trial.metrics[ranking.metric], _title(trial, ranking)) for trial, x in values if x is not None]
        if len({x for x, _, _ in points}) > 1:
            chart = charts.scatter(points, _color(ranking))
        else:
            best: dict[str, float] = {}
            for trial in ranking.ranked:  # the best of each choice comes first
                best.setdefault(trial.settings.get(key, ""), trial.metrics[ranking.metric])
            if len(best) < 2 or min(best.values()) < 0:
                continue
            chart = charts.bars(
                [charts.Bar(name[:_LONGEST_LABEL], value, _color(ranking)) for name, value in best.items()]
            )
        cards.append(f'<div class="card"><h3>{escape(key)}</h3>{chart}</div>')
    note = "Each point a finished trial; of a choice that is no number, the best of each."
    return (
        section(f"{ranking.metric} over what differs", note, f'<div class="grid">{"".join(cards)}</div>')
        if cards
        else ""
    )


def _losses(ranking: Ranking) -> str:
    stage = ranking.metric.partition(".")[0]
    cards = []
    for trial in [*ranking.ranked, *(trial for trial in ranking.trials if not trial.finished)]:
        names = [stage] if stage in trial.losses else list(trial.losses)[-1:]
        for name in names:
            if len(trial.losses[name]) > 1 and len(cards) < _MOST_CURVES:
                state = "" if trial.finished else f", {trial.status}"
                head = f"<h3>{escape(trial.name)}<small>{escape(name + state)}</small></h3>"
                curve = charts.line(trial.losses[name], name if name in _STAGE_COLORS else "other")
                cards.append(f'<div class="card">{head}{curve}</div>')
    note = "Of the first trials. Bold: running mean."
    return section("Training loss", note, f'<div class="grid">{"".join(cards)}</div>') if cards else ""


def _table(ranking: Ranking) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ["Trial", "Rank", ranking.metric, *ranking.parameters, ""])
    lines = []
    for trial in ranking.trials:
        value = trial.metrics.get(ranking.metric)
        cells = [
            trial.name,
            str(ranking.ranks.get(trial.name, "")),
            "" if value is None else f"{value:.4f}",
            *(trial.settings.get(key, "") for key in ranking.parameters),
            "" if trial.finished else trial.status,
        ]
        kind = "" if trial.finished else ' class="baseline"'
        lines.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    unfinished = sum(not trial.finished for trial in ranking.trials)
    note = f"{unfinished} not finished and without a rank." if unfinished else "All finished."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return section("Trials", note, f'<div class="card scroll">{table}</div>')


def _color(ranking: Ranking) -> str:
    stage = ranking.metric.partition(".")[0]
    return stage if stage in _STAGE_COLORS else "other"


def _title(trial: TrialRun, ranking: Ranking) -> str:
    return ", ".join([trial.name, *(f"{key} = {trial.settings.get(key, '')}" for key in ranking.parameters)])


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"-?\d+\.?\d*(e[-+]?\d+)?", text) else None
