"""MTEB(Multilingual, v2), MTEB(Code) and MIRACL as the paper averages them (arXiv 2602.11151, section 4.1).

The tasks, their data, splits, subsets and main metrics are those of the library mteb; of the multilingual benchmark the
retrieval tasks alone. Main metrics are not all nDCG@10: LEMBPasskey has nDCG@1, Statcan recall@10.
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


@dataclasses.dataclass(frozen=True)
class MtebBenchmark:
    """A `benchmark.Benchmark` of tasks of mteb."""

    name: str
    tasks: Sequence[MtebTask]

    def averages(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, float]:
        """Means over tasks of a task's mean over its splits and subsets, in [0, 1].

        Returns:
            "mean" over all splits, which is what the paper and the leaderboard print; "mean_test_splits", in which a
            task that has a test split and others counts by the test split alone, where there is such a task.
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
    """Opens a benchmark; nothing is loaded before a task is evaluated.

    Args:
        name: "mteb-multilingual" (18 tasks), "mteb-code" (12), "miracl" (hard negatives, the published average) or
            "miracl-full" (all passages of Wikipedia), the last two with a task a language.
        data: holds the files of each data set OWNER/NAME of the hub as DATA/NAME; None loads them from there.
        prompts: around the texts, for models that want them.
        results: where to write mteb's own result files, which its leaderboard takes.
        model_name: "organization/model" in those.
        scratch: keeps the vectors of a corpus until it is ranked, so that an interrupted run goes on with them; the
            largest language of "miracl-full" takes 33 GB as INT8 of 1024 dimensions.

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
        raise BadInput(f"no benchmark {name!r}; there are {', '.join([*_MTEB_NAMES, *_MIRACL_TASKS])}")
    about = {"data": data, "prompts": prompts, "results": results, "model_name": model_name, "scratch": scratch}
    return MtebBenchmark(name, [MtebTask(each, task, **about) for each, task in tasks.items()])
