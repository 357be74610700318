"""An index of millions of INT8 vectors on this machine: bytes, memory, queries a second, recall against exact search.

The vectors are drawn like real ones: `--like` names a folder of real embeddings (`embed --quantization none`), whose
mean, spectrum and scale they take, in topics and subtopics, then INT8 by the quantizer itself. `--queries` names
embeddings of real queries: the same search over the real vectors, and over as many drawn ones, says how alike the two
are. `--labels` names the BEIR folder whose corpus and queries these are: what its own labels call found, beside what
exact search finds. Each phase runs in a process of its own, so that its peak memory is its own; mapped files count.

Usage: python benchmarks/search_scale.py --like DIR --queries DIR --labels DIR --workdir DIR
           [--vectors 5000000] [--output FILE]
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from pplx_jax.core.files import write_json
from pplx_jax.core.progress import Progress
from pplx_jax.data.io.beir import read_qrels
from pplx_jax.kernels.quantization import quantize
from pplx_jax.retrieval.build_index import build_index
from pplx_jax.retrieval.embeddings.folder import EmbeddingFolder, Settings, Shard
from pplx_jax.retrieval.local.index_part import IndexPart
from pplx_jax.retrieval.search_options import SearchOptions

WIDTH, SHARD, QUERIES, K, BATCH, ALONE = 1024, 65_536, 500, 100, 50, 20
TOPIC, SUBTOPIC = 2_000, 40  # vectors of each, on average
# Shares of the variance: of the topic, of the subtopic; the rest is the vector's own.
TOPIC_SHARE, SUBTOPIC_SHARE = 0.25, 0.1
QUERY_SHARE = 0.1  # of a query's own part that is that of the vector it is drawn near to
RANKS = (1, 10, 100)
HIDDEN = (("phase", str), ("name", str), ("found", str), ("engine", str), ("lists", int), ("probes", int))


class Drawn:
    """Vectors of the mean, spectrum and scale of real pooled ones [n, d], at any width."""

    def __init__(self, like: np.ndarray, count: int):
        rng = np.random.default_rng(0)
        mean, spread = like.mean(axis=0), np.linalg.eigvalsh(np.cov(like, rowvar=False))[::-1]
        places = np.linspace(0, len(spread) - 1, WIDTH)
        scale = np.sqrt(np.maximum(np.interp(places, np.arange(len(spread)), spread), 0)).astype(np.float32)
        basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
        self._mix, self._mean = scale[:, None] * basis, rng.choice(mean, WIDTH).astype(np.float32)
        self._topics = rng.standard_normal((max(count // TOPIC, 1), WIDTH), np.float32)
        self._subtopics = rng.standard_normal((max(count // SUBTOPIC, 1), WIDTH), np.float32)

    def block(self, number: int, size: int, query: bool = False) -> np.ndarray:
        """Pooled vectors [size, WIDTH] of block `number`, or of queries near to its first ones."""
        rng = np.random.default_rng((1, number))
        subtopic = rng.integers(0, len(self._subtopics), SHARD)[:size]
        own = rng.standard_normal((SHARD, WIDTH), np.float32)[:size]
        if query:
            other = np.random.default_rng((2, number)).standard_normal(own.shape, np.float32)
            own = QUERY_SHARE**0.5 * own + (1 - QUERY_SHARE) ** 0.5 * other
        hidden = TOPIC_SHARE**0.5 * self._topics[subtopic % len(self._topics)]
        hidden += SUBTOPIC_SHARE**0.5 * self._subtopics[subtopic]
        hidden += (1 - TOPIC_SHARE - SUBTOPIC_SHARE) ** 0.5 * own
        return hidden @ self._mix + self._mean


def ids_of(folder: pathlib.Path) -> list[str]:
    return [row["id"] for row in EmbeddingFolder.read(folder).described()]


def read_pooled(folder: pathlib.Path) -> np.ndarray:
    return np.concatenate(list(EmbeddingFolder.read(folder).vectors()))


def write_embeddings(folder: pathlib.Path, blocks: Any, count: int, dims: int) -> None:
    """A folder as `embed` leaves it, of INT8 vectors from blocks of pooled ones."""
    settings = Settings("drawn", "0", dims, "int8", "big", "text", "chunks", SHARD, None, "error", None)
    written = EmbeddingFolder.open_for_writing(folder, settings, folder)
    done = 0
    with Progress("draw", count, unit="vector") as progress:
        for number, pooled in enumerate(blocks):
            ids = range(done, done + len(pooled))
            described = [{"id": f"d{place:09d}", "text": f"text {place}", "row": place + 1} for place in ids]
            shard = Shard(len(pooled), len(pooled), 0, 0.0, [])
            written.add(number, quantize(pooled, "int8"), described, shard)
            done += len(pooled)
            progress.update(done)
    written.finish()


def draw(workdir: pathlib.Path, like: pathlib.Path, count: int) -> dict[str, Any]:
    drawn = Drawn(read_pooled(like), count)
    sizes = [min(SHARD, count - begin) for begin in range(0, count, SHARD)]
    write_embeddings(workdir / "embeddings", (drawn.block(*each) for each in enumerate(sizes)), count, WIDTH)
    near = np.linspace(0, len(sizes) - 1, 10).astype(int)
    size = min(QUERIES // len(near), *sizes)
    queries = np.concatenate([drawn.block(int(number), size, query=True) for number in near])
    np.save(workdir / "queries.npy", quantize(queries, "int8"))
    return {}


def real(workdir: pathlib.Path, like: pathlib.Path, queries: pathlib.Path, labels: pathlib.Path) -> dict[str, Any]:
    """The real vectors as INT8, to search in the same way, and which of them each query's labels name."""
    pooled, ids = read_pooled(like), ids_of(queries)
    blocks = (pooled[begin : begin + SHARD] for begin in range(0, len(pooled), SHARD))
    write_embeddings(workdir / "embeddings", blocks, len(pooled), pooled.shape[1])
    np.save(workdir / "queries.npy", quantize(read_pooled(queries), "int8"))
    row_of, grades = {name: row for row, name in enumerate(ids_of(like))}, read_qrels(labels, ids)
    named = [[row_of[name] for name, grade in grades[query].items() if grade > 0] for query in ids]
    (workdir / "labels.json").write_text(json.dumps(named), encoding="utf-8")
    return {}


def index(workdir: pathlib.Path, name: str, lists: int) -> dict[str, Any]:
    build_index(workdir / "embeddings", workdir / name, engine="faiss", lists=lists)
    signs = next((workdir / name).glob("signs.*")).stat().st_size
    return {"bytes_of_signs": signs, "lists": lists}


def search(workdir: pathlib.Path, name: str, found: str, options: SearchOptions) -> dict[str, Any]:
    """Searches in batches, then single queries; saves what is found."""
    opened, queries = IndexPart.load(workdir / name), np.load(workdir / "queries.npy")
    opened.nearest(queries[:1], K, options)  # reads and compiles what only the first search does
    started, ranked = time.perf_counter(), []
    for begin in range(0, len(queries), BATCH):
        ranked.append(opened.nearest(queries[begin : begin + BATCH], K, options))
    seconds = time.perf_counter() - started
    np.savez(workdir / f"{found}.npz", found=np.concatenate([r[0] for r in ranked]), scores=ranked_scores(ranked))
    report = {"queries": len(queries), "queries_per_second": round(len(queries) / seconds, 2)}
    if options.engine == "faiss":
        started = time.perf_counter()
        for query in queries[:ALONE]:
            opened.nearest(query[None], 10, options)
        report["milliseconds_of_one_query_k10"] = round(1000 * (time.perf_counter() - started) / ALONE, 1)
    return report


def ranked_scores(ranked: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.concatenate([scores for _, scores in ranked])


def recall(workdir: pathlib.Path, found: str) -> dict[str, float]:
    """Of what exact search found among its first 10 and 100, and of what labels name where there are some."""
    exact, ours = (np.load(workdir / f"{name}.npz")["found"] for name in ("exact", found))
    # Asked for 10, the first stage brings fewer candidates than asked for 100: see `at_10`.
    return shares(workdir, exact, ours, (10, 100), "of_100_asked")


def at_10(workdir: pathlib.Path, name: str, options: SearchOptions) -> dict[str, float]:
    """Recall of the first 10, where 10 are asked for."""
    opened, queries = IndexPart.load(workdir / name), np.load(workdir / "queries.npy")
    exact = np.load(workdir / "exact.npz")["found"]
    ours = np.concatenate(
        [opened.nearest(queries[begin : begin + BATCH], 10, options)[0] for begin in range(0, len(queries), BATCH)]
    )
    return shares(workdir, exact, ours, (10,), "of_10_asked")


def shares(workdir: pathlib.Path, exact: np.ndarray, ours: np.ndarray, ks: tuple[int, ...], asked: str) -> dict:
    """Mean shares of two rankings [Q, 100] and [Q, k or more]."""
    path, report = workdir / "labels.json", {}
    labels = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    for k in ks:
        report[f"recall@{k}_{asked}"] = mean_share(exact[:, :k], ours[:, :k])
        for name, ranked in (("", ours), ("exact_", exact)) if labels else ():
            report[f"{name}recall@{k}_by_labels_{asked}"] = mean_share(labels, ranked[:, :k])
    return report


def mean_share(wanted: Iterable, ranked: np.ndarray) -> float:
    pairs = zip(wanted, ranked, strict=True)
    return round(float(np.mean([len(np.intersect1d(some, row)) / len(some) for some, row in pairs])), 4)


def likeness(workdir: pathlib.Path) -> dict[str, Any]:
    """How queries score: cosine of random pairs, and of the hits at some ranks, in deviations of random pairs above."""
    vectors, queries = IndexPart.load(workdir / "flat"), np.load(workdir / "queries.npy").astype(np.float64)
    some = vectors._vectors.take(np.sort(np.random.default_rng(0).choice(vectors.count, 2000, replace=False)))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, some.astype(np.float64))]
    cosines, scores = unit[0] @ unit[1].T, np.load(workdir / "exact.npz")["scores"]
    deviation = cosines.std()
    at = {
        f"at_rank_{rank}": round(float((scores[:, rank - 1].mean() - cosines.mean()) / deviation), 2) for rank in RANKS
    }
    zeros, ones = (some == 0).mean(), (some >= 0).mean(axis=0)
    return {
        "random_cosine": round(float(cosines.mean()), 4),
        "deviation": round(float(deviation), 4),
        **at,
        "zeros": round(float(zeros), 4),
        "mean_bias_of_a_sign": round(float(np.abs(ones - 0.5).mean()), 4),
    }


def run_phase(arguments: argparse.Namespace) -> dict[str, Any]:
    phase, workdir = arguments.phase, arguments.workdir
    options = SearchOptions(arguments.engine, arguments.candidates, arguments.least, arguments.probes)
    started = time.perf_counter()
    match phase:
        case "draw":
            report = draw(workdir, arguments.like, arguments.vectors)
        case "real":
            report = real(workdir, arguments.like, arguments.queries, arguments.labels)
        case "index":
            report = index(workdir, arguments.name, arguments.lists)
        case "likeness":
            report = likeness(workdir)
        case _:
            report = search(workdir, arguments.name, arguments.found, options)
            if arguments.found != "exact":
                report |= recall(workdir, arguments.found) | at_10(workdir, arguments.name, options)
    return {**report, "seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most of this process that lay in memory, mapped files included; `getrusage` would start from the parent's."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(workdir: pathlib.Path, source: list[str], settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All phases over one collection in `workdir`, which is emptied before and after."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)

    def phase(*words: str) -> dict[str, Any]:
        command = [sys.executable, __file__, f"--workdir={workdir}", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report = json.loads(done.stdout.splitlines()[-1])
        print(" ".join(words), report, file=sys.stderr, flush=True)
        return report

    report: dict[str, Any] = {"draw": phase(*source)}
    report["index"] = {"flat": phase("--phase=index", "--name=flat", "--lists=0")}
    report["exact"] = phase("--phase=search", "--name=flat", "--found=exact", "--engine=numpy")
    report["likeness"] = {
        name: value for name, value in phase("--phase=likeness").items() if name not in ("seconds", "peak_bytes")
    }
    for name, setting in settings.items():
        place = f"lists{setting['lists']}" if setting["lists"] else "flat"
        if place not in report["index"]:
            report["index"][place] = phase("--phase=index", f"--name={place}", f"--lists={setting['lists']}")
        words = [f"--{key}={value}" for key, value in setting.items() if key != "lists"]
        report[name] = phase("--phase=search", f"--name={place}", f"--found={name}", "--engine=faiss", *words)
    shutil.rmtree(workdir)
    return report


def derived(report: dict[str, Any], measured: int, count: int) -> dict[str, Any]:
    """What the measured figures say of `count` vectors, on paper: bytes exactly, times in proportion."""
    beside = 8 + 8 + 1  # places, offsets, empty
    rate = report["faiss"]["milliseconds_of_one_query_k10"]
    return {
        "bytes_of_vectors": count * WIDTH,
        "bytes_of_signs": count * WIDTH // 8,
        "bytes_of_lists": count * (WIDTH // 8 + 8),
        "bytes_beside": count * beside,
        "milliseconds_of_one_query_exhaustive": round(rate * count / measured),
        "seconds_to_index_flat": round(report["index"]["flat"]["seconds"] * count / measured),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--like", type=pathlib.Path)
    parser.add_argument("--queries", type=pathlib.Path)
    parser.add_argument("--labels", type=pathlib.Path)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a folder to use and remove")
    parser.add_argument("--vectors", type=int, default=5_000_000)
    parser.add_argument("--output", type=pathlib.Path)
    for name, kind in HIDDEN:
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    for name, default in (("candidates", SearchOptions.candidates), ("least", SearchOptions.least_candidates)):
        parser.add_argument(f"--{name}", type=int, default=default, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(run_phase(arguments)))
        return
    count, like = arguments.vectors, f"--like={arguments.like}"
    asked = [f"--queries={arguments.queries}", f"--labels={arguments.labels}"]
    flat = {f"faiss, {n} candidates a hit": {"lists": 0, "candidates": n, "least": 0} for n in (10, 40, 100)}
    flat["faiss"] = {"lists": 0}
    lists = round(count**0.5)
    inverted = {f"faiss, one in {n} lists": {"lists": lists, "probes": lists // n} for n in (64, 16, 4)}
    real_vectors = measure(arguments.workdir, ["--phase=real", like, *asked], flat)
    as_many = len(read_pooled(arguments.like))
    drawn = measure(arguments.workdir, ["--phase=draw", like, f"--vectors={as_many}"], flat)
    large = measure(arguments.workdir, ["--phase=draw", like, f"--vectors={count}"], {**flat, **inverted})
    versions = {name: importlib.metadata.version(name) for name in ("faiss-cpu", "jax", "numpy")}
    report = {
        "machine": f"{os.cpu_count()} CPU cores",
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "width": WIDTH,
        f"real, {as_many}": real_vectors,
        f"drawn, {as_many}": drawn,
        f"drawn, {count}": large,
        "derived": {f"{each}": derived(large, count, each) for each in (30_000_000, 1_000_000_000)},
    }
    if arguments.output:
        write_json(arguments.output, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
