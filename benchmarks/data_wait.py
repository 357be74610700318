"""How much of a step is spent waiting for data.

    python benchmarks/data_wait.py --run quickstart_run       # by stage, from the metrics of a finished run
    python benchmarks/data_wait.py [--hosts 8] [--step 1.6]   # processes that share one stream, as hosts do

The second command writes a synthetic pair table and starts one process per host. Each packs its part of batches of
16,384
pairs into sequences of 512 tokens, and sleeps for the time of a step: 1.6 s is the estimate for 8 hosts of 4 v5p chips,
  the
0.6B model and 45% utilization (3.6M tokens of 3 GFLOP). All processes share the cores of this machine, while every host
of a job has its own.
"""

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import tempfile
import time

import numpy as np

from pplx_jax.data.batches.batch_spec import PairBatch
from pplx_jax.data.batches.examples import Examples, Selection
from pplx_jax.data.batches.prefetch import Prefetch
from pplx_jax.data.sources.mixture import Mixture
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.data.tokens.ragged import Ragged
from pplx_jax.data.tokens.token_writer import write_table
from pplx_jax.training.metrics import read_metrics

BATCH, STEPS = 16_384, 20
SPEC = PairBatch(batch_size=BATCH, length=512, slots=32)
EXAMPLES = {"english": 60_000, "multilingual": 30_000}


@dataclasses.dataclass(frozen=True)
class _Words:
    """The part of a vocabulary that a table needs."""

    fingerprint: str = "synthetic"
    size: int = 151_936
    pad_id: int = 0
    mask_id: int = 1
    separator_id: int = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, help="a finished run")
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--step", type=float, default=1.6, help="seconds of a step")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    result = of_run(options.run) if options.run else of_hosts(options.hosts, options.step)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def of_run(run: pathlib.Path) -> dict[str, float]:
    """Returns the waiting share of the time of each stage, without the first logged steps, which compile."""
    shares = {}
    for path in sorted(run.glob("*/metrics.jsonl")):
        rows = read_metrics(path)[1:]
        if rows and all("data_wait_share" in row for row in rows):
            shares[path.parent.name] = round(float(np.mean([row["data_wait_share"] for row in rows])), 5)
    return shares


def of_hosts(hosts: int, step: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for seed, (name, count) in enumerate(EXAMPLES.items()):
            write_synthetic(folder / name, count, seed)
        examples = Examples(open_tables(folder), Mixture({"english": 0.7, "multilingual": 0.3}), BATCH, seed=0)
        sequences = examples.sequences(SPEC.part(hosts), multiple_of=8)[0]
        context = multiprocessing.get_context("spawn")
        with context.Pool(hosts) as pool:
            found = pool.starmap(read_share, [(temporary, host, hosts, sequences, step) for host in range(hosts)])
    waits, assembles, fills = (np.array(column) for column in zip(*found, strict=True))
    return {
        "hosts": hosts,
        "batch": BATCH,
        "steps": STEPS,
        "step_seconds": step,
        "wait_share_mean": round(float(waits.mean()), 5),
        "wait_share_worst": round(float(waits.max()), 5),
        "seconds_to_make_a_share": round(float(assembles.mean()), 4),
        "fill": round(float(fills.mean()), 4),
    }


def write_synthetic(folder: pathlib.Path, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)

    def texts(median: float, spread: float, longest: int) -> Ragged:
        lengths = np.clip(generator.lognormal(np.log(median), spread, count), 1, longest).astype(np.int64)
        return Ragged.from_lengths(generator.integers(3, 150_000, lengths.sum(), np.int32), lengths)

    columns = {
        "query": texts(14, 0.6, 64),
        "document": texts(170, 0.8, 512),
        "document_hash": np.arange(count, dtype=np.int32),
        "source": np.zeros(count, np.int32),
    }
    write_table(folder, "pair", _Words(), columns, notes={"sources": [folder.name]})


def read_share(folder: str, host: int, hosts: int, sequences: int, step: float) -> tuple[float, float, float]:
    """Returns (share of the time spent waiting, seconds to make a batch, fill) of one host."""
    examples = Examples(open_tables(folder), Mixture({"english": 0.7, "multilingual": 0.3}), BATCH, seed=0)
    spec, making, fills = SPEC.part(hosts), [], []
    part = slice(host * spec.batch_size, (host + 1) * spec.batch_size)

    def make(position: int):
        started = time.thread_time()
        selection = examples.select(np.arange(position, position + BATCH))
        own = Selection(selection.table[part], selection.row[part], selection.group)
        packed = examples.pack(spec, own, sequences)
        making.append(time.thread_time() - started)
        fills.append(packed.metrics["fill"])
        return packed

    with Prefetch(make, 0, BATCH) as batches:
        next(batches)
        started, waited = time.perf_counter(), batches.wait_seconds
        for _ in range(STEPS):
            time.sleep(step)
            next(batches)
        spent = time.perf_counter() - started
        return (batches.wait_seconds - waited) / spent, float(np.mean(making)), float(np.mean(fills))


if __name__ == "__main__":
    main()
