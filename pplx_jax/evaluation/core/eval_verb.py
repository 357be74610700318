"""`pplx-jax eval`: a model, or BM25, on a benchmark or a BEIR folder."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pplx_jax.core.errors import BadInput
from pplx_jax.core.files import write_json, write_text
from pplx_jax.evaluation.core.benchmark import Benchmark, Settings, System
from pplx_jax.evaluation.core.comparison import compare as compare_outcomes
from pplx_jax.evaluation.core.registry import open_benchmark
from pplx_jax.evaluation.core.results import Results, Subject
from pplx_jax.evaluation.core.runner import chosen_tasks, run_tasks
from pplx_jax.evaluation.core.summary import format_table, summarize
from pplx_jax.evaluation.scoring.retrieval_task import RetrievalTask
from pplx_jax.evaluation.suites.mteb.task import MtebTask
from pplx_jax.inference.encoder import Encoder, check_quantization, load_encoder, quantizations
from pplx_jax.kernels.quantization import check_form

Context = Literal["without", "with", "both"]
BM25 = "bm25"
_CONTEXTS: dict[str, tuple[bool, ...]] = {"without": (False,), "with": (True,), "both": (False, True)}


def evaluate_task(
    model: str | pathlib.Path | Encoder,
    task: str | pathlib.Path,
    *,
    tasks: Sequence[str] | None = None,
    quantization: Sequence[str] | str | None = None,
    dims: Sequence[int] | int | None = None,
    context: Context = "without",
    truncate: bool = False,
    query_prompt: str = "",
    document_prompt: str = "",
    data: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    compare: str | pathlib.Path | None = None,
    run_file: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Scores a model; run again with the same `output`, it goes on from the finished tasks.

    Args:
        model: "bm25", a model folder, a sentence-transformers folder, or a loaded encoder.
        task: a benchmark's name, a BEIR folder, or a folder of BEIR folders.
        tasks: only these of the benchmark's.
        quantization: of the vectors, one or several; int8 where None, "none" for a model that is not ours.
        dims: only the first so many dimensions, one width or several.
        context: whether passages are encoded with their neighbours of the same document, or both ways.
        truncate: cut texts past the model's limit.
        query_prompt, document_prompt: of models that are trained with them.
        data: a folder of the benchmark's files, in place of the hub.
        output: the results folder to write.
        compare: another results folder to compare with, under the first setting.
        run_file: where to write the best thousand documents of each query; of one task and one setting.

    Returns:
        Of the first setting {"metrics", "queries", "documents"}, with "intervals" where there is one task; where there
        are more, "metrics" are the benchmark's averages and the means of what all finished tasks measure, the counts
        are sums, and "averages", "average_intervals", "finished", "of" and "tasks" stand beside them. With
        "benchmark", "settings" (all of them, as in results.json), "table", and "comparison" where one was asked for.

    Raises:
        BadInput: something of these is not there, is of another kind or another model, or a text is past the
            model's limit.
    """
    for name, given in {"tasks": tasks, "quantization": quantization, "dims": dims}.items():
        if isinstance(given, Sequence) and not given:
            raise BadInput(f"--{name} is empty; give one or several with commas between, or leave it out")
    benchmark = open_benchmark(task, None if data is None else pathlib.Path(data))
    chosen = chosen_tasks(benchmark, tasks)
    if isinstance(model, str | pathlib.Path):
        name = str(model)
        prompts = {"query_prompt": query_prompt, "document_prompt": document_prompt}
        encoder = None if name == BM25 else load_encoder(model, **prompts)
    else:
        name, encoder = type(model).__name__, model
    settings = _settings(encoder, quantization, dims, context, truncate)
    systems = [System(name, encoder, one) for one in settings]
    if run_file is not None:
        if len(chosen) > 1 or len(systems) > 1 or not isinstance(chosen[0], RetrievalTask):
            raise BadInput("--run_file is of one retrieval task under one setting; choose one by --tasks")
        run_file = pathlib.Path(run_file)
        if not run_file.parent.is_dir() or run_file.is_dir():
            raise BadInput(f"{run_file}: --run_file is a file in a folder that is there; make that first")
        chosen = [dataclasses.replace(chosen[0], run_file=run_file)]
    results = Results(_subject(benchmark, name, encoder), output)
    if results.folder is not None:
        chosen = [one.within(results.folder) if isinstance(one, MtebTask) else one for one in chosen]
    run_tasks(chosen, systems, results, again=run_file is not None)
    summary = summarize(results, benchmark)
    if results.folder is not None:
        _write(results.folder, summary, results)
    first = systems[0].setting
    result = _report(summary, first, [one.name for one in chosen])
    if compare is not None:
        names = {one.name for one in chosen}
        ours = [one for one in results.outcomes if one.setting == first and one.task in names]
        result["comparison"] = compare_outcomes(ours, compare)
    return result


def _settings(
    encoder: Encoder | None,
    quantization: Sequence[str] | str | None,
    dims: Sequence[int] | int | None,
    context: Context,
    truncate: bool,
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
        Settings(form, width, with_context, truncate)  # type: ignore[arg-type]
        for with_context, form, width in itertools.product(_CONTEXTS[context], forms, widths)
    ]


def _subject(benchmark: Benchmark, name: str, encoder: Encoder | None) -> Subject:
    if encoder is None:
        return Subject(benchmark.name, name, name)
    dtype = getattr(encoder.config, "dtype", None)
    return Subject(benchmark.name, name, encoder.fingerprint, encoder.dims, encoder.config.max_length, dtype)


def _write(folder: pathlib.Path, summary: dict[str, Any], results: Results) -> None:
    from pplx_jax.reports.evaluation_page import render_evaluation

    write_json(folder / "results.json", summary)
    pages = {"results.md": format_table(summary), "report.html": render_evaluation(summary, results.outcomes)}
    for name, text in pages.items():
        write_text(folder / name, text)


def _report(summary: dict[str, Any], setting: str, names: list[str]) -> dict[str, Any]:
    """What the verb answers: the figures of one setting first."""
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
