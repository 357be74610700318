"""The verb `eval`: scores a model, or BM25, on a benchmark or a BEIR folder."""

import functools
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from pplx_jax.core.buckets import local_copy
from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import read_json, write_json, write_text
from pplx_jax.core.log_folder import LogFolder
from pplx_jax.core.paths import as_path, is_bucket
from pplx_jax.evaluation.core.benchmark import Benchmark, Task
from pplx_jax.evaluation.core.comparison import compare as compare_outcomes
from pplx_jax.evaluation.core.prompted_task import TaskPrompts, checked_task_prompts, with_prompts
from pplx_jax.evaluation.core.results import Results, Subject
from pplx_jax.evaluation.core.runner import chosen_tasks, run_tasks
from pplx_jax.evaluation.core.summary import format_table, summarize
from pplx_jax.evaluation.registry import open_benchmark
from pplx_jax.evaluation.scoring.scorers import OwnDocument
from pplx_jax.evaluation.scoring.system import Settings, System
from pplx_jax.evaluation.watch import watch_stage
from pplx_jax.inference.encoder import Encoder, check_quantization, quantizations
from pplx_jax.inference.lead import lead, leads
from pplx_jax.inference.load_encoder import load_encoder
from pplx_jax.inference.overflow import Overflow
from pplx_jax.kernels.quantization import check_form
from pplx_jax.parallel.processes import joins_processes

Context = Literal["without", "with", "both"]
BM25 = "bm25"
_CONTEXTS: dict[str, tuple[bool, ...]] = {"without": (False,), "with": (True,), "both": (False, True)}


@joins_processes
def evaluate_task(
    model: str | pathlib.Path | Encoder | None = None,
    task: str | pathlib.Path | None = None,
    *,
    benchmark: Benchmark | None = None,
    tasks: Sequence[str] | None = None,
    quantization: Sequence[str] | str | None = None,
    dims: Sequence[int] | int | None = None,
    context: Context = "without",
    truncate: bool = False,
    overflow: Overflow | None = None,
    max_length: int | None = None,
    deterministic: bool = False,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    prompts: TaskPrompts | str | pathlib.Path | None = None,
    data: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    compare: str | pathlib.Path | None = None,
    run_file: str | pathlib.Path | None = None,
    own_document: OwnDocument | None = None,
    split: str | None = None,
    watch: str | pathlib.Path | None = None,
    poll_seconds: float = 30.0,
) -> dict[str, Any] | None:
    """Scores a model. A second call with the same `output` skips the finished tasks.

    Several processes encode the texts of a model folder together, and rank the documents of nested pools together.
    Process 0 alone reads the benchmark, ranks in other tasks, and writes the results.

    Args:
        model: "bm25", a model folder, a sentence-transformers folder, or a loaded encoder (with several processes an
            `Embedder` of `shared=True`).
        task: the name of a benchmark, a BEIR folder, a folder or a pattern of BEIR folders, or MODULE:NAME of a
            benchmark in your own package; see `evaluation.registry`.
        benchmark: the benchmark itself, in place of `task`: `evaluate_task.benchmark = @MyBenchmark()` in a gin file.
        tasks: names of the tasks to run, or patterns of names; None for all.
        quantization: of the vectors, one or several. None for the model's own: "int8", or "none" for a
            sentence-transformers model.
        dims: number of leading dimensions, one or several; None for all.
        context: whether passages are encoded together with their neighbours in the same document, or both ways.
        truncate: whether texts over the model's limit are cut, as with overflow="truncate".
        overflow: what happens to texts over the model's limit: "error" (the default) names one before any text is
            encoded, "split" encodes overlapping windows, "truncate" cuts it.
        max_length: tokens of a text that are read, fewer than the model can; longer texts are cut. None for the
            model's limit. A query is cut too, and with `context` the document of a passage.
        deterministic: whether the bits of a vector depend on its own text or document alone, see `Embedder`. Scores
            then do not change with the other texts of a task.
        query_prompt, document_prompt: texts before every query and document, in place of the prompts of the model; ""
            for none.
        prompts: task -> {"query": text, "document": text} for tasks with prompts of their own, or a JSON file of that.
        data: a folder with the benchmark's files; None for the Hugging Face hub.
        output: the results folder to write.
        compare: another results folder; the first setting is compared with it.
        run_file: the file to write the best 1000 documents of each query to. Needs one task and one setting.
        own_document: "drop" removes the document with the id of a query from the ranking of this query, "keep" ranks
            it. None drops it if it contains the query, in a set where no query has its own as a relevant document
            (ArguAna); a task of mteb follows mteb.
        split: of a BEIR folder without qrels.tsv: reads qrels/SPLIT.tsv; None for "test".
        watch: in place of `model`: the folder of a stage, whose checkpoints are scored as they appear; see
            `evaluation.watch`. Needs `output`.
        poll_seconds: time between two looks at the folder of `watch`.

    Returns:
        With `watch`, what `watch_stage` returns.
        For one task, the first setting's {"metrics", "intervals", "queries", "documents"}. For several tasks, "metrics"
        holds the benchmark's averages and the mean of each metric that all finished tasks report, "queries" and
        "documents" are sums, and there are also "averages", "average_intervals", "finished", "of" and "tasks". Always
        "benchmark", "settings" (all settings, as in results.json) and "table"; with `compare`, "comparison". None on
        processes other than 0.

    Raises:
        BadInput: an argument is wrong, an input is missing, the results folder holds another model or benchmark, or a
            text is over the model's limit.
    """
    if (model is None) == (watch is None):
        raise BadInput("give either --model, or --watch with the folder of a stage")
    for name, given in {"tasks": tasks, "quantization": quantization, "dims": dims}.items():
        if isinstance(given, Sequence) and not given:
            raise BadInput(f"--{name} is empty; give one or several separated by commas, or leave it out")
    if overflow not in (None, *get_args(Overflow)):
        raise BadInput(f"overflow={overflow!r}: give one of {', '.join(get_args(Overflow))}")
    if truncate and overflow not in (None, "truncate"):
        raise BadInput(f"--truncate and --overflow {overflow} exclude each other; give one of them")
    if (task is None) == (benchmark is None):
        raise BadInput("give --task, or bind evaluate_task.benchmark in a gin file, and not both")
    truncate = truncate or max_length is not None
    chosen: list[Task] = []
    of_tasks: TaskPrompts = {}
    if leads():
        if benchmark is None:
            options = {} if split is None else {"split": split}
            benchmark = open_benchmark(str(task), None if data is None else local_copy(as_path(data)), **options)
        chosen = chosen_tasks(benchmark, tasks)
        if own_document is not None:
            chosen = [_with_own_document(one, own_document) for one in chosen]
        if prompts is not None:
            of_tasks = _task_prompts(prompts, benchmark)
    if watch is not None:
        excluded = (compare, run_file, query_prompt, document_prompt, max_length)
        if output is None or deterministic or any(given is not None for given in excluded):
            raise BadInput(
                "--watch needs --output, and takes no --compare, --run_file, --max_length, --deterministic, "
                "--query_prompt or --document_prompt"
            )
        if jax.distributed.is_initialized() or benchmark is None:
            raise BadInput("--watch runs as one process, with all its devices; leave --num_processes out")
        settings = {"quantization": quantization, "dims": dims, "context": context, "truncate": truncate}
        settings |= {"own_document": own_document} | ({} if overflow is None else {"overflow": overflow})
        names = [one.name for one in chosen]
        told = {"prompts": of_tasks} if of_tasks else {}
        scores = functools.partial(evaluate_task, benchmark=benchmark, tasks=names, **told, **settings)
        facts = {"benchmark": benchmark.name, "tasks": names, **told, **settings}
        return watch_stage(
            as_path(watch),
            as_path(output),
            lambda encoder, results: scores(encoder, output=results),
            facts,
            poll_seconds=poll_seconds,
        )
    name, encoder = (str(model), None) if isinstance(model, str | os.PathLike) else (type(model).__name__, model)
    for option, given in {"max_length": max_length is not None, "deterministic": deterministic}.items():
        if given and (encoder is not None or name == BM25):
            raise BadInput(f"--{option} is for the folder of a model; leave it out")
    if encoder is None and name != BM25:
        options: dict[str, Any] = {"query_prompt": query_prompt, "document_prompt": document_prompt}
        options |= {"deterministic": True} if deterministic else {}
        encoder = load_encoder(name, **options, max_length=max_length, shared=True)

    def score(encoder: Encoder | None) -> dict[str, Any]:
        assert benchmark is not None  # of the process that leads
        settings = _settings(encoder, quantization, dims, context, "truncate" if truncate else overflow or "error")
        systems = [System(name, encoder, one) for one in settings]
        ready = chosen if run_file is None else [_with_run_file(chosen, systems, as_path(run_file))]
        results = Results(_subject(benchmark, name, encoder), output)
        files = None if results.folder is None else LogFolder(results.folder)
        if files is not None:
            ready = [one.within(files.local) if hasattr(one, "within") else one for one in ready]
        ready = with_prompts(ready, of_tasks)
        run_tasks(ready, systems, results, again=run_file is not None)
        if files is not None:
            files.upload()
        return _reported(results, benchmark, systems[0].setting, [one.name for one in ready], compare)

    return lead(encoder, score)


def _task_prompts(prompts: TaskPrompts | str | pathlib.Path, benchmark: Benchmark) -> TaskPrompts:
    if isinstance(prompts, Mapping):
        return checked_task_prompts(prompts, benchmark.tasks, "prompts")
    read = read_json(as_path(prompts), fix='write TASK -> {"query": TEXT, "document": TEXT}')
    return checked_task_prompts(read, benchmark.tasks, f"--prompts {prompts}")


def _reported(
    results: Results, benchmark: Benchmark, setting: str, names: list[str], compare: str | pathlib.Path | None
) -> dict[str, Any]:
    """Writes the summary, and returns the report with the numbers of one setting first."""
    summary = summarize(results, benchmark)
    if results.folder is not None:
        from pplx_jax.reports.evaluation_page import render_evaluation

        write_json(results.folder / "results.json", summary)
        write_text(results.folder / "results.md", format_table(summary))
        write_text(results.folder / "report.html", render_evaluation(summary, results.outcomes))
    result = _report(summary, setting, names)
    if compare is not None:
        ours = [one for one in results.outcomes if one.setting == setting and one.task in names]
        result["comparison"] = compare_outcomes(ours, compare)
    return result


def _with_run_file(tasks: Sequence[Task], systems: Sequence[System], path: pathlib.Path) -> Task:
    if len(tasks) > 1 or len(systems) > 1 or not hasattr(tasks[0], "with_run_file"):
        raise BadInput("--run_file needs one retrieval task and one setting; choose the task with --tasks")
    if path.is_dir() or not (is_bucket(path) or path.parent.is_dir()):
        raise BadInput(f"{path}: --run_file must name a file in an existing folder; create the folder first")
    return tasks[0].with_run_file(path)


def _with_own_document(task: Task, own_document: OwnDocument) -> Task:
    if own_document not in get_args(OwnDocument):
        raise BadInput(f"own_document={own_document!r}: give one of {', '.join(get_args(OwnDocument))}")
    if not hasattr(task, "with_own_document"):
        raise BadInput(f"the task {task.name} has no choice of --own_document; leave it out")
    return task.with_own_document(own_document)


def _settings(
    encoder: Encoder | None,
    quantization: Sequence[str] | str | None,
    dims: Sequence[int] | int | None,
    context: Context,
    overflow: Overflow,
) -> list[Settings]:
    if encoder is None:
        return [Settings()]
    forms = [quantization] if isinstance(quantization, str) else list(quantization or quantizations(encoder)[:1])
    widths = [dims] if dims is None or isinstance(dims, int) else list(dims)
    for form in forms:
        check_quantization(encoder, form)
    for form, width in itertools.product(forms, widths):
        check_form(form, width, encoder.dims)
    return [
        Settings(form, width, with_context, overflow == "truncate", overflow == "split")  # type: ignore[arg-type]
        for with_context, form, width in itertools.product(_CONTEXTS[context], forms, widths)
    ]


def _subject(benchmark: Benchmark, name: str, encoder: Encoder | None) -> Subject:
    if encoder is None:
        return Subject(benchmark.name, name, name)
    dtype = getattr(encoder.config, "dtype", None)
    return Subject(benchmark.name, name, encoder.fingerprint, encoder.dims, encoder.config.max_length, dtype)


def _report(summary: dict[str, Any], setting: str, names: list[str]) -> dict[str, Any]:
    """Returns the report of the verb: the numbers of one setting first."""
    first = next(one for one in summary["settings"] if one["setting"] == setting)
    tasks = [one for one in first["tasks"] if one["task"] in names]
    rest = {"benchmark": summary["benchmark"], "settings": summary["settings"], "table": "\n" + format_table(summary)}
    if len(tasks) == 1:
        return {**{key: tasks[0][key] for key in ("metrics", "intervals", "queries", "documents")}, **rest}
    done = first["tasks"]
    shared = [name for name in done[0]["metrics"] if all(name in one["metrics"] for one in done)]
    means = {name: float(np.mean([one["metrics"][name] for one in done])) for name in shared}
    totals = {key: sum(one[key] for one in done) for key in ("queries", "documents")}
    finished = {"finished": len(done), "of": summary["tasks_of_benchmark"]}
    averages = {key: first[key] for key in ("averages", "average_intervals")}
    return {"metrics": means | first["averages"], **totals, **averages, **finished, "tasks": tasks, **rest}
