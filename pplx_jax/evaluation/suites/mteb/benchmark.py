"""MTEB(Multilingual, v2), MTEB(Code) and MIRACL as the paper averages them (arXiv 2602.11151, section 4.1).

The package mteb defines the tasks, their data, splits, subsets and main metrics. Of the multilingual benchmark only the
retrieval tasks are used. Not every main metric is nDCG@10: LEMBPasskey has nDCG@1, Statcan recall@10.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.core.benchmark import Part, main_value
from pplx_jax.evaluation.suites.mteb.task import MtebTask
from pplx_jax.evaluation.suites.mteb.texts import NO_PROMPTS, Prompts

_MTEB_NAMES = {"mteb-multilingual": "MTEB(Multilingual, v2)", "mteb-code": "MTEB(Code, v1)"}
_MIRACL_TASKS = {"miracl": "MIRACLRetrievalHardNegatives", "miracl-full": "MIRACLRetrieval"}
NAMES = (*_MTEB_NAMES, *_MIRACL_TASKS)


@dataclasses.dataclass(frozen=True)
class MtebBenchmark:
    """A `benchmark.Benchmark` of mteb tasks."""

    name: str
    tasks: Sequence[MtebTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Returns means over tasks of each task's mean over its splits and subsets, in [0, 1].

        Returns:
            "mean" uses all splits, like the paper and the leaderboard. "mean_test_splits" uses only the test split of
            tasks that have a test split; it is left out if it would be the same.
        """
        if not parts:
            return {}
        metrics = {task.name: task.main_metric for task in self.tasks}
        tests = {task: _test_parts(each) for task, each in parts.items()}
        averages = {"mean": parts}
        if any(len(tests[task]) < len(each) for task, each in parts.items()):
            averages["mean_test_splits"] = tests
        return {
            name: statistics.fmean(main_value(of_task, metrics[task]) for task, of_task in each.items())
            for name, each in averages.items()
        }


def _test_parts(parts: Sequence[Part]) -> Sequence[Part]:
    return [part for part in parts if part.split.startswith("test")] or parts


def open_benchmark(
    name: str,
    data: pathlib.Path | None = None,
    *,
    prompts: Prompts = NO_PROMPTS,
    results: pathlib.Path | None = None,
    model_name: str | None = None,
    scratch: pathlib.Path | None = None,
) -> MtebBenchmark:
    """Opens a benchmark. Data is loaded when a task is evaluated.

    Args:
        name: "mteb-multilingual" (18 tasks), "mteb-code" (12), "miracl" (hard negatives, the published average) or
            "miracl-full" (all passages of Wikipedia). The last two have one task per language.
        data: folder with the files of each data set OWNER/NAME of the hub as DATA/NAME; None for the hub.
        prompts: templates around the texts, for models that were trained with them.
        results: folder for mteb's own result files, which its leaderboard accepts; None for none.
        model_name: "organization/model" in those files.
        scratch: folder for the vectors of a corpus until it is ranked, so that an interrupted run resumes. The largest
            language of "miracl-full" needs 33 GB for INT8 vectors of 1024 dimensions.

    Raises:
        BadInput: the name is unknown.
    """
    import mteb

    if name in _MTEB_NAMES:
        found = mteb.get_benchmark(_MTEB_NAMES[name]).tasks
        tasks = {task.metadata.name: task for task in found if task.metadata.type == "Retrieval"}
    elif name in _MIRACL_TASKS:
        languages = mteb.get_task(_MIRACL_TASKS[name]).hf_subsets
        tasks = {each: mteb.get_task(_MIRACL_TASKS[name], hf_subsets=[each]) for each in languages}
    else:
        raise BadInput(f"no benchmark {name!r}; give one of {', '.join(NAMES)}")
    options = {"data": data, "prompts": prompts, "results": results, "model_name": model_name, "scratch": scratch}
    return MtebBenchmark(name, [MtebTask(each, task, **options) for each, task in tasks.items()])
