"""The benchmarks that `pplx-jax eval --task` knows by name; adding one is an entry here."""

import importlib
import pathlib
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.evaluation.core.benchmark import Benchmark
from pplx_jax.evaluation.suites.beir_folder import open_folder

# Name -> "module:function" of `open_benchmark(name, data, **options) -> Benchmark`, where `data` is a local folder of
# the benchmark's files, or None for the hub.
BENCHMARKS = {
    "toolret": "pplx_jax.evaluation.suites.toolret:open_benchmark",
    "toolret-instructions": "pplx_jax.evaluation.suites.toolret:open_benchmark",
    "toolret-by-category": "pplx_jax.evaluation.suites.toolret:open_benchmark",
    "toolret-by-category-instructions": "pplx_jax.evaluation.suites.toolret:open_benchmark",
    "conteb": "pplx_jax.evaluation.suites.conteb:open_benchmark",
    "mteb-multilingual": "pplx_jax.evaluation.suites.mteb.benchmarks:open_benchmark",
    "mteb-code": "pplx_jax.evaluation.suites.mteb.benchmarks:open_benchmark",
    "miracl": "pplx_jax.evaluation.suites.mteb.benchmarks:open_benchmark",
    "miracl-full": "pplx_jax.evaluation.suites.mteb.benchmarks:open_benchmark",
    "bergen": "pplx_jax.evaluation.suites.bergen:open_benchmark",
    "query-to-document": "pplx_jax.evaluation.suites.query_to_document:open_benchmark",
    "query-to-query": "pplx_jax.evaluation.suites.query_to_document:open_benchmark",
}


def open_benchmark(task: str | pathlib.Path, data: pathlib.Path | None = None, **options: Any) -> Benchmark:
    """A benchmark by its name, or what a BEIR folder (or a folder of them) is.

    Args:
        task: a name of `BENCHMARKS`, or a folder; a name goes before a folder of that name, "./NAME" is the folder.
        data: a local folder of a named benchmark's files; None for the hub.
        **options: of the family.

    Raises:
        BadInput: there is neither such a benchmark nor such a folder, or a library is missing.
    """
    target = BENCHMARKS.get(str(task))
    if target is None:
        if pathlib.Path(task).is_dir():
            if data is not None:
                raise BadInput(f"--data is for benchmarks with a name; {task} is a folder that holds its own files")
            return open_folder(task)
        raise BadInput(f"no benchmark and no folder {task}; give a BEIR folder, or one of {', '.join(BENCHMARKS)}")
    module, _, function = target.partition(":")
    try:
        open_named = getattr(importlib.import_module(module), function)
        return open_named(str(task), data, **options)
    except ModuleNotFoundError as error:
        raise BadInput(f"{task} needs the module {error.name}: pip install 'pplx-jax[eval]'") from error
