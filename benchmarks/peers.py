"""Ours beside what a user would pick instead, on this machine: the same architecture, weights and texts.

Weights go through our exporter. Outputs are compared before times: an implementation that computes something else gets
no time. Each runs in a process of its own, and they take turns (`peer_cases/turns.py`). `encode` is
`peer_cases/encode.py`.

`--json` prints {PART: {CASE: {IMPLEMENTATION: tokens per second of the fastest pass, "ratio": ours / the fastest peer,
"peak_bytes", "seconds": {IMPLEMENTATION: {load, first, least, median}}, "agreement"}}} and what the machine is. `first`
is the first pass of a fresh process, which compiles.

Usage: python benchmarks/peers.py [--parts encode] [--model FOLDER] [--json]
       python benchmarks/peers.py --parts encode --model qwen3_0p6b --layers 2 --lengths 128 512
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peer_cases import encode
from peer_cases.subject import SHAPES, Subject, choose, make_subject, of_length, read_texts
from peer_cases.turns import LEAST_PASSES, measure

from pplx_jax.core.errors import BadInput
from pplx_jax.data.tokens.load_vocabulary import load_vocabulary

_LONGEST_OF_MIX = 2048
_QUICK = ("ours", "sentence_transformers_float32", "onnxruntime_int8")
_PACKAGES = ("jax", "flax", "torch", "transformers", "sentence-transformers", "onnxruntime", "numpy")
Cases = Iterator[tuple[str, dict[str, Any]]]


def encode_cases(options: argparse.Namespace, subject: Subject, workdir: pathlib.Path) -> Cases:
    """Yields the cases of `encode`: a mix of lengths, equal lengths, the mix from token ids; INT8 apart."""
    texts = read_texts(options.texts)
    vocabulary = load_vocabulary(pathlib.Path(subject.ours))

    def count_tokens(some: list[str]) -> Any:
        import numpy as np

        return np.array([len(ids) for ids in vocabulary.encode_batch(list(some))], np.int64)

    mix = choose(texts, count_tokens, options.tokens, _LONGEST_OF_MIX)
    sets = {"mix": (mix, False)} | ({"mix, from ids": (mix, True)} if options.from_ids else {})
    sets |= {f"{each}": (of_length(texts, count_tokens, options.tokens, each), False) for each in options.lengths}
    for name, (chosen, from_ids) in sets.items():
        case = {
            "ours": subject.ours,
            "exported": subject.exported,
            "texts": chosen,
            "from_ids": from_ids,
            "threads": options.threads,
            "vectors": os.fspath(workdir),
        }
        names = [each for each in encode.NAMES if each in options.implementations or each == encode.NAMES[0]]
        found = measure(encode.__name__, case, names, encode.compare, options.passes)
        counts = count_tokens(chosen)
        facts = {"texts": len(chosen), "tokens": int(counts.sum()), "longest": int(counts.max())}
        whole = f"{subject.name}, {name}"
        yield whole, table_row({key: each for key, each in found.items() if "int8" not in key}, facts)
        if int8 := {key: each for key, each in found.items() if "int8" in key}:
            yield f"{whole}, int8", table_row({"ours": found["ours"], **int8}, facts)


def table_row(found: dict[str, dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Returns a case as `--json` prints it.

    Args:
      found: what `measure` returns; names that start with "ours" are ours, the others peers.
      facts: of the case; `tokens` is what a pass reads.
    """
    rates = {name: facts["tokens"] / each["least_seconds"] for name, each in found.items() if "error" not in each}
    peers = [rate for name, rate in rates.items() if not name.startswith("ours")]
    timed = {name: found[name] for name in rates}
    report: dict[str, Any] = {name: round(rate, 1) for name, rate in rates.items()}
    if peers and "ours" in rates:
        report["ratio"] = round(rates["ours"] / max(peers), 3)
    report["peak_bytes"] = {name: each["peak_bytes"] for name, each in timed.items()}
    report["seconds"] = {
        name: {key: round(each[f"{key}_seconds"], 4) for key in ("load", "first", "least", "median")}
        for name, each in timed.items()
    }
    report["agreement"] = {name: each["agreement"] for name, each in timed.items()}
    errors = {name: each["error"] for name, each in found.items() if "error" in each}
    return report | facts | ({"errors": errors} if errors else {})


PARTS: dict[str, Callable[[argparse.Namespace, Subject, pathlib.Path], Cases]] = {"encode": encode_cases}


def show(part: str, case: str, report: dict[str, Any]) -> None:
    """Prints a case on standard error."""
    print(f"{part}: {case} ({report['tokens']:,} tokens)", file=sys.stderr)
    for name, seconds in report["seconds"].items():
        print(
            f"  {name:<32} {report[name]:>10,.0f} tokens/s  least {seconds['least']:.3f} s  median "
            f"{seconds['median']:.3f} s  load {seconds['load']:.1f} s  first {seconds['first']:.2f} s  "
            f"peak {report['peak_bytes'][name] / 2**20:,.0f} MiB",
            file=sys.stderr,
        )
    for name, error in report.get("errors", {}).items():
        print(f"  {name:<32} {error}", file=sys.stderr)
    if "ratio" in report:
        print(f"  ours / the fastest peer: {report['ratio']}", file=sys.stderr, flush=True)


def parse(words: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--model", default="smollm2", help=f"a model folder, or random weights of {', '.join(SHAPES)}")
    add("--layers", type=int, default=4, help="of random weights")
    add("--texts", type=pathlib.Path, help="JSON lines with `text` (default: ../shared/data, or this project's pages)")
    add("--tokens", type=int, default=8192, help="of a pass of `encode`")
    add("--lengths", nargs="*", type=int, default=[128, 512, 2048, 8192], help="of the texts of `encode`")
    add("--passes", type=int, default=LEAST_PASSES, help="timed passes of each implementation")
    add("--threads", type=int, default=os.cpu_count(), help="of the peers; ours takes all cores")
    add("--implementations", nargs="+", choices=encode.NAMES, default=encode.NAMES, help="of `encode`")
    add("--from_ids", action=argparse.BooleanOptionalAction, default=True, help="`encode` without tokenization too")
    add("--workdir", type=pathlib.Path, help="where models and exports go (default: a folder that is removed)")
    add("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    add("--quick", action="store_true", help="a tiny model and few passes, to see that everything runs")
    options = parser.parse_args(None if words is None else list(words))
    if options.quick:
        options.model, options.layers, options.tokens, options.lengths, options.passes = "tiny", 1, 512, [], 1
        options.implementations, options.from_ids = _QUICK, False
    return options


def main() -> int:
    options = parse()
    with contextlib.ExitStack() as stack:
        workdir = options.workdir or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        report: dict[str, Any] = {}
        try:
            subject = make_subject(options.model, options.layers, read_texts(options.texts), workdir)
            for part in options.parts:
                for case, found in PARTS[part](options, subject, workdir):
                    report.setdefault(part, {})[case] = found
                    show(part, case, found)
        except BadInput as error:
            print(f"peers: {error}", file=sys.stderr)
            return 2
    report["taken"] = taken(options)
    if options.json:
        print(json.dumps(report, indent=1))
    return int(any("errors" in case for part in options.parts for case in report[part].values()))


def taken(options: argparse.Namespace) -> dict[str, Any]:
    """Returns date, machine and versions."""
    lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} cores of {model or platform.machine()}",
        "matrix_units": sorted(flag for flag in flags if flag.startswith(("amx", "avx512_bf16", "avx512_vnni"))),
        "threads": options.threads,
        "passes": options.passes,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


if __name__ == "__main__":
    sys.exit(main())
