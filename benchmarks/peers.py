"""Ours beside what a user would pick instead, on this machine: the same architecture, weights and texts.

Weights go through our exporter. Outputs are compared before times: an implementation that computes something else gets
no time. Each runs in a process of its own, and they take turns (`peer_cases/turns.py`). The parts are
modules of `peer_cases`.

`--json` prints {PART: {CASE: {IMPLEMENTATION: tokens per second of the fastest pass, "ratio": ours / the fastest peer,
"peak_bytes", "seconds": {IMPLEMENTATION: {load, first, least, median}}, "agreement"}}} and what the machine is. `first`
is the first pass of a fresh process, which compiles.

Usage: python benchmarks/peers.py [--parts encode] [--model FOLDER] [--json]
       python benchmarks/peers.py --parts encode --model qwen3_0p6b --layers 2 --lengths 128 512
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from peer_cases import contrastive_step, diffusion_step, encode, evaluation, mining, search, start_up
from peer_cases.subject import SHAPES, make_subject, read_texts
from peer_cases.turns import LEAST_PASSES

from pplx_jax.core.errors import BadInput

_QUICK = ("ours", "sentence_transformers_float32", "torch_float32", "onnxruntime_int8", "faiss_flat", "mteb")
_FACTS = ("texts", "pairs", "sequences", "vectors", "queries", "tokens")
_PACKAGES = ("jax", "torch", "transformers", "sentence-transformers", "onnxruntime", "faiss-cpu", "mteb", "numpy")


PARTS: dict[str, Any] = {
    "encode": encode,
    "contrastive_step": contrastive_step,
    "diffusion_step": diffusion_step,
    "start_up": start_up,
    "search": search,
    "mining": mining,
    "evaluation": evaluation,
}
IMPLEMENTATIONS = tuple(dict.fromkeys(name for part in PARTS.values() for name in part.NAMES))


def show(part: str, case: str, report: dict[str, Any]) -> None:
    """Prints a case on standard error."""
    facts = ", ".join(
        f"{report[name]:,} {name}" for name in ("texts", "pairs", "sequences", "tokens") if name in report
    )
    print(f"{part}: {case} ({facts})", file=sys.stderr)
    for name, seconds in report["seconds"].items():
        print(
            f"  {name:<32} {report[name]:>12,.5g} {report['unit']}  least {seconds['least']:.3f} s  median "
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", default="smollm2", help=f"a model folder, or random weights of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, default=4, help="of random weights")
    parser.add_argument(
        "--texts", type=pathlib.Path, help="JSON lines with `text` (default: ../shared/data, or this project's pages)"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="of a pass of `encode` with equal lengths")
    parser.add_argument("--mix_tokens", type=int, default=16_384, help="of a pass with a mix; several batches of 32")
    parser.add_argument(
        "--lengths", nargs="*", type=int, default=[128, 512, 2048, 8192], help="of the texts of `encode`"
    )
    parser.add_argument("--passes", type=int, default=LEAST_PASSES, help="timed passes of each implementation")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[64, 256], help="pairs of a `contrastive_step`")
    parser.add_argument("--cached_from", type=int, default=256, help="pairs from which on both encode twice, in parts")
    parser.add_argument("--part_size", type=int, default=64, help="pairs of a part")
    parser.add_argument("--pairs", type=pathlib.Path, help="a BEIR folder (default: as for --texts)")
    parser.add_argument("--pair_tokens", type=int, default=64, help="to which the texts of a pair are cut")
    parser.add_argument(
        "--row_lengths", nargs="+", type=int, default=[512, 4096], help="tokens of a sequence of `diffusion_step`"
    )
    parser.add_argument("--diffusion_tokens", type=int, default=4096, help="of a `diffusion_step`")
    parser.add_argument("--vectors", type=int, default=50_000, help="of `search` and `mining`")
    parser.add_argument("--queries", type=int, default=200, help="of `search` and `mining`")
    parser.add_argument("--dims", type=int, default=576, help="of `search` and `mining`")
    parser.add_argument("--documents", type=int, default=200, help="of `evaluation`, with as many queries")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peers; ours takes all cores")
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS, help="default: all"
    )
    parser.add_argument(
        "--from_ids", action=argparse.BooleanOptionalAction, default=True, help="`encode` without tokenization too"
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        help="where the model and its export are kept for the next run (default: nowhere)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout; the table on stderr")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few passes, to see that everything runs")
    options = parser.parse_args(None if words is None else list(words))
    if options.quick:
        options.model, options.layers, options.mix_tokens, options.lengths, options.passes = "tiny", 1, 512, [], 1
        options.implementations, options.from_ids = _QUICK, False
        options.batch_sizes, options.cached_from, options.part_size = [8, 16], 16, 8
        options.row_lengths, options.diffusion_tokens = [128], 256
        options.vectors, options.queries, options.dims, options.documents = 2000, 8, 32, 16
    return options


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        report: dict[str, Any] = {}
        try:
            subject = make_subject(options.model, options.layers, read_texts(options.texts), options.workdir or scratch)
            for part in options.parts:
                for case, found in PARTS[part].cases(options, subject, scratch):
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
