"""Scores the checkpoints of a stage as they appear, while another machine trains it.

OUTPUT/watch.json      the stage and the settings; others are refused
OUTPUT/metrics.jsonl   one line per scored checkpoint; also as TensorBoard events in OUTPUT/tensorboard
OUTPUT/STEP/           the results folder of a checkpoint
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
from absl import logging

from pplx_jax.checkpoints.orbax import CHECKPOINTS
from pplx_jax.checkpoints.saved_params import checkpoint_steps
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json
from pplx_jax.core.log_folder import LogFolder
from pplx_jax.core.paths import absolute
from pplx_jax.inference.encoder import Encoder
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.training.metrics import MetricsWriter, read_metrics
from pplx_jax.training.metrics_writers import LoggedStage, TensorBoard
from pplx_jax.training.train_stage import FINISHED

_MARKER = "watch.json"
_WAYS = {"int8": "", "int8-context": "with_context/"}  # settings that evaluation during training has, as it names them


def watch_stage(
    stage: pathlib.Path,
    output: pathlib.Path,
    score: Callable[[Encoder, pathlib.Path], Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    poll_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Scores each checkpoint once, in order of steps. Returns when the stage is finished and nothing is left to score.

    A second call with the same output skips the scored checkpoints. A checkpoint that training has deleted before it
    was read is skipped.

    Args:
        stage: the folder of a stage; it need not exist yet, but its workdir must.
        output: the folder to write.
        score: (model, results folder) -> what `evaluate_task` returns.
        settings: what `score` depends on, to recognise the output of another call.
        poll_seconds: time between two looks at the stage.
        sleep: waits.

    Returns:
        `metrics` of the last step by name, `steps` that were scored, `skipped` steps, and a `table` of all steps.

    Raises:
        BadInput: there is no workdir; the output belongs to another stage or other settings; or a checkpoint cannot be
            read, although nobody deletes it.
    """
    if not absolute(stage).parent.is_dir():
        raise BadInput(f"--watch {stage}: {stage.parent} does not exist; give the folder of a stage in its workdir")
    _claim(output, {"stage": str(absolute(stage)), **settings})
    logs = LogFolder(output, ("metrics.jsonl",))
    log = logs.local / "metrics.jsonl"
    done = {int(row["step"]) for row in read_metrics(log)}
    skipped: set[int] = set()
    events = TensorBoard().open(LoggedStage(logs.local, stage.name, 0, ""))
    writer = MetricsWriter(logs.local, resume_step=max(done, default=0), writers=[events])
    try:
        for step in _new_steps(stage, done, functools.partial(sleep, poll_seconds)):
            model = _load(stage / CHECKPOINTS / str(step), functools.partial(sleep, poll_seconds))
            if model is None:
                logging.warning("the checkpoint of step %d was deleted before it was read; skipped", step)
                skipped.add(step)
                continue
            writer.write(step, numbers_of(score(model, output / str(step))))
            logs.upload()
            logging.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in writer.last.items()))
    finally:
        writer.close()
        logs.upload()
    rows = sorted(read_metrics(log), key=lambda row: row["step"])
    last = {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}
    return {
        "metrics": last,
        "steps": [row["step"] for row in rows],
        "skipped": sorted(skipped),
        "table": _table(rows),
    }


def numbers_of(scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns what `evaluate_task` returned as metrics by name, as evaluation during training names them."""
    numbers: dict[str, float] = {}
    for one in scores["settings"]:
        way = _WAYS.get(one["setting"], f"{one['setting']}/")
        by_task = {task["task"]: task["metrics"] for task in one["tasks"]}
        for name, metrics in by_task.items():
            numbers |= {f"eval/{name}/{way}{metric}": float(value) for metric, value in metrics.items()}
        shared = [metric for metric in next(iter(by_task.values())) if all(metric in of for of in by_task.values())]
        means = {metric: float(np.mean([of[metric] for of in by_task.values()])) for metric in shared}
        numbers |= {f"eval/mean/{way}{metric}": value for metric, value in means.items()}
    return numbers


def _new_steps(stage: pathlib.Path, seen: set[int], wait: Callable[[], None]) -> Iterator[int]:
    """Yields the steps of new checkpoints until the stage is finished."""
    seen, waiting = set(seen), False
    while True:
        finished = (stage / FINISHED).exists()  # written after the last checkpoint, so looked for before them
        new = [step for step in checkpoint_steps(stage) if step not in seen]
        if new:
            seen.add(new[0])
            waiting = False
            yield new[0]
        elif finished:
            return
        else:
            if not waiting:
                logging.info("waiting for the next checkpoint in %s", stage)
            waiting = True
            wait()


def _load(checkpoint: pathlib.Path, wait: Callable[[], None]) -> Encoder | None:
    """Returns the model of a checkpoint; None if training deletes it meanwhile."""
    try:
        return load_encoder(checkpoint)
    except (BadInput, OSError):
        if checkpoint.exists():
            wait()  # it may be half deleted
        return load_encoder(checkpoint) if checkpoint.exists() else None


def _table(rows: Sequence[Mapping[str, float]]) -> str:
    """Returns the main numbers of all steps."""
    names = [name for name in (rows[-1] if rows else {}) if name.endswith(("/ndcg@10", "/recall@100"))]
    lines = [[int(row["step"]), *(row.get(name) for name in names)] for row in rows]
    return "\n" + tabulate.tabulate(lines, ["step", *names], floatfmt=".4f") + "\n"


def _claim(output: pathlib.Path, facts: Mapping[str, Any]) -> None:
    marker, facts = output / _MARKER, json.loads(json.dumps(facts))  # as they are read back
    if marker.exists():
        found = read_json(marker)
        differing = [name for name in facts if found.get(name) != facts[name]]
        if differing:
            told = "; ".join(f"{name} {found.get(name)!r}, not {facts[name]!r}" for name in differing)
            raise BadInput(f"{output} holds other scores: {told}; give another --output")
        return
    if output.exists() and any(output.iterdir()):
        raise BadInput(f"{output} holds something else; give --watch an --output of its own")
    output.mkdir(parents=True, exist_ok=True)
    write_json(marker, facts)
