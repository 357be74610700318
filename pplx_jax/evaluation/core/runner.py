"""Scoring one model under several settings on the tasks of one benchmark, from where an earlier run stopped."""

import dataclasses
import time
from collections.abc import Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.core.progress import Progress
from pplx_jax.evaluation.core.benchmark import Benchmark, System, Task
from pplx_jax.evaluation.core.results import Outcome, Results
from pplx_jax.evaluation.scoring.caching_encoder import Remembering


def chosen_tasks(benchmark: Benchmark, names: Sequence[str] | None) -> list[Task]:
    """The tasks of these names, in the benchmark's order; all where no names are given.

    Raises:
        BadInput: a name that the benchmark does not have.
    """
    known = [task.name for task in benchmark.tasks]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise BadInput(f"{benchmark.name} has no task {', '.join(unknown)}; it has {', '.join(known)}")
    return [task for task in benchmark.tasks if names is None or task.name in names]


def run_tasks(tasks: Sequence[Task], systems: Sequence[System], results: Results, *, again: bool = False) -> None:
    """Evaluates what `results` does not have yet, one task after another, its settings from the same vectors.

    Args:
        tasks: of the benchmark.
        systems: one model under different settings.
        results: where outcomes go.
        again: evaluate also what is finished.

    Raises:
        BadInput: a task's data is not there, or a text is past the model's limit; what was finished is kept.
    """
    if not systems:
        return
    encoder = systems[0].encoder
    shared = Remembering(encoder, progress=True) if encoder else None
    systems = [dataclasses.replace(system, encoder=shared) for system in systems]
    with Progress("eval", len(tasks), "task") as progress:
        for done, task in enumerate(tasks, 1):
            revision = getattr(task, "revision", "")
            for system in systems:
                if not again and results.finished(task.name, system.setting, system.settings, revision):
                    continue
                progress.note(f"{task.name}, {system.setting}")
                begun = time.monotonic()
                parts = list(task.evaluate(system))
                seconds = round(time.monotonic() - begun, 3)
                about = (task.name, task.main_metric, revision, system.setting, system.settings)
                results.add(Outcome(*about, parts, seconds))
            if shared:
                shared.forget()
            progress.update(done)
