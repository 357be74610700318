"""Scores one model under several settings on the tasks of one benchmark, and skips what an earlier run finished."""

import dataclasses
import fnmatch
import time
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.core.spelling import nearest
from pplx_jax.evaluation.core.benchmark import Benchmark, Task
from pplx_jax.evaluation.core.results import Outcome, Results
from pplx_jax.evaluation.scoring.caching_encoder import CachingEncoder
from pplx_jax.evaluation.scoring.system import System

SCORING = 2  # raised when the same data and model get other numbers; stored outcomes of another version are not reused


def chosen_tasks(benchmark: Benchmark, names: Sequence[str] | None) -> list[Task]:
    """Returns the tasks with these names, in the benchmark's order; all tasks if `names` is None.

    Args:
        benchmark: has the tasks.
        names: of tasks, or patterns of names with *, ? and [.

    Raises:
        BadInput: the benchmark has no task of that name.
    """
    known = [task.name for task in benchmark.tasks]
    if names is None:
        return list(benchmark.tasks)
    found = {name: [name] if name in known else fnmatch.filter(known, name) for name in names}
    if unknown := [name for name, matched in found.items() if not matched]:
        raise BadInput(
            f"{benchmark.name} has no task {', '.join(unknown)}; it has {', '.join(known)}{nearest(unknown[0], known)}"
        )
    wanted = {name for matched in found.values() for name in matched}
    return [task for task in benchmark.tasks if task.name in wanted]


def run_tasks(tasks: Sequence[Task], systems: Sequence[System], results: Results, *, again: bool = False) -> None:
    """Evaluates what `results` lacks, task after task. All settings of a task share one encoding of its texts.

    Args:
        tasks: of the benchmark.
        systems: one model under different settings.
        results: where outcomes are stored.
        again: whether to evaluate finished tasks again.

    Raises:
        BadInput: a task's data is missing, or a text is over the model's limit. Finished outcomes stay stored.
    """
    if not systems:
        return
    encoder = systems[0].encoder
    shared = CachingEncoder(encoder, progress=True) if encoder else None
    systems = [dataclasses.replace(system, encoder=shared) for system in systems]
    with Progress("eval", len(tasks), "task") as progress:
        for done, task in enumerate(tasks, 1):
            revision = f"{getattr(task, 'revision', '')} scoring {SCORING}".strip()
            for system in systems:
                if not again and results.finished(task.name, system.setting, system.settings, revision):
                    continue
                progress.note(f"{task.name}, {system.setting}")
                started = time.monotonic()
                parts = list(task.evaluate(system))
                seconds = round(time.monotonic() - started, 3)
                identity = (task.name, task.main_metric, revision, system.setting, system.settings)
                results.add(Outcome(*identity, parts, seconds))
            if shared:
                shared.drop_unused()
            progress.update(done)
