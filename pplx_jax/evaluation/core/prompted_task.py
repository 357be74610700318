"""A task whose texts have prompts of their own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.prompts import DOCUMENT, QUERY, checked_prompts
from pplx_jax.evaluation.core.benchmark import Part, Task
from pplx_jax.evaluation.scoring.system import System
from pplx_jax.inference.prompted_encoder import PromptedEncoder

TaskPrompts = Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class PromptedTask:
    """A `benchmark.Task` that gives its prompts to the model, in place of the model's own.

    Attributes:
        task: the task.
        prompts: "query" and "document" -> text.
    """

    task: Task
    prompts: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def main_metric(self) -> str:
        return self.task.main_metric

    @property
    def revision(self) -> str:
        return f"{getattr(self.task, 'revision', '')} prompts {dict(self.prompts)}".strip()

    def evaluate(self, system: System) -> Sequence[Part]:
        if system.encoder is not None:
            system = dataclasses.replace(system, encoder=PromptedEncoder(system.encoder, self.prompts))
        return self.task.evaluate(system)


def with_prompts(tasks: Sequence[Task], prompts: TaskPrompts) -> list[Task]:
    """Returns the tasks, each with the prompts that it has under its name."""
    return [PromptedTask(task, prompts[task.name]) if prompts.get(task.name) else task for task in tasks]


def checked_task_prompts(prompts: Any, tasks: Sequence[Task], where: str) -> TaskPrompts:
    """Returns prompts by task.

    Args:
        prompts: task -> "query" or "document" -> text, "" for none.
        tasks: of the benchmark.
        where: what has the prompts, for messages.

    Raises:
        BadInput: they have another form, or name an unknown task.
    """
    fix = "give TASK -> {'query': TEXT, 'document': TEXT}"
    if not isinstance(prompts, Mapping):
        raise BadInput(f"{where} is no mapping; {fix}")
    known = [task.name for task in tasks]
    for task, of_task in prompts.items():
        if task not in known:
            raise BadInput(f"{where}: no task {task!r}; the tasks are {', '.join(known)}")
        checked_prompts(of_task, f"{where}, {task}")
        if unknown := [name for name in of_task or () if name not in (QUERY, DOCUMENT)]:
            raise BadInput(f"{where}, {task}: no prompt {unknown[0]!r} of a task; {fix}")
    return prompts
