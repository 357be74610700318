"""Finds the benchmark that `pplx-jax eval --task TASK` names. Nothing here lists benchmarks.

TASK is one of:

- a name that a module of `evaluation/suites/` lists in its `NAMES`, such as "toolret" or "mteb-code". The module opens
  it with `open_benchmark(name, data, **options)`.
- a BEIR folder, a folder of BEIR folders, or a pattern of such folders, such as "data/nano-*".
- MODULE:NAME of your own package, such as `my_lab.benchmarks:MyBenchmark`. NAME is a class or function that returns a
  `core.benchmark.Benchmark`. It is called without arguments, or with `data=FOLDER` if `--data` is given.

In gin, bind an object instead of a name, and leave `--task` out:

    from my_lab.benchmarks import MyBenchmark
    evaluate_task.benchmark = @MyBenchmark()

A new family for this package is one new file (or folder) in `evaluation/suites/` with `NAMES` and `open_benchmark`.
"""

import fnmatch
import glob
import importlib
import os
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.paths import as_path
from pplx_jax.core.spelling import nearest
from pplx_jax.evaluation import suites
from pplx_jax.evaluation.core.benchmark import Benchmark
from pplx_jax.evaluation.suites.beir_folder import open_folder


def benchmark_names() -> dict[str, Callable[..., Benchmark]]:
    """Returns the name of every shipped benchmark -> the `open_benchmark` of its family.

    Families import the packages of their data only when they open a benchmark.
    """
    found = [f"{suites.__name__}.{module.name}" for module in pkgutil.iter_modules(suites.__path__)]
    modules = map(importlib.import_module, found)
    return {name: module.open_benchmark for module in modules for name in getattr(module, "NAMES", ())}


def open_benchmark(task: str | pathlib.Path, data: pathlib.Path | None = None, **options: Any) -> Benchmark:
    """Opens a benchmark.

    Args:
        task: see the module. A name goes before a folder of the same name; "./NAME" is the folder.
        data: a local folder with the files of a named benchmark; None for the Hugging Face hub.
        **options: of the family.

    Raises:
        BadInput: there is no such benchmark or folder, or a package is not installed.
    """
    names = benchmark_names()
    try:
        if str(task) in names:
            if "split" in options:
                raise BadInput(f"--split is for BEIR folders; the task {task} has its own splits")
            return names[str(task)](str(task), data, **options)
        if matched := [] if as_path(task).exists() else fnmatch.filter(names, str(task)):
            raise BadInput(
                f"--task {task} matches the benchmarks {', '.join(matched)}; a results folder belongs to one, so give "
                f"one of them, or ./{task} for folders"
            )
        if as_path(task).is_dir() or glob.has_magic(str(task)):
            if data is not None:
                raise BadInput(f"--data is for benchmarks with a name; {task} is a folder with its own files")
            return open_folder(task, **options)
        if ":" in str(task):
            return _open_external(str(task), data, **options)
    except ModuleNotFoundError as error:
        raise BadInput(f"{task} needs the module {error.name}: pip install 'pplx-jax[eval]'") from error
    raise BadInput(
        f"no benchmark and no folder {task}; give a BEIR folder, MODULE:NAME of your own benchmark, or one of "
        f"{', '.join(names)}{nearest(str(task), names)}"
    )


def _open_external(task: str, data: pathlib.Path | None, **options: Any) -> Benchmark:
    """Opens MODULE:NAME. Modules of the working directory are found, as `python -m` finds them."""
    module, _, name = task.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{task}: {error}; give MODULE:NAME of a class or function that returns a benchmark") from error
    benchmark = make(**options) if data is None else make(data=data, **options)
    missing = [attribute for attribute in ("name", "tasks", "averages") if not hasattr(benchmark, attribute)]
    if missing:
        raise BadInput(f"{task} returns no benchmark: it has no {', '.join(missing)}; see evaluation/core/benchmark.py")
    return benchmark
