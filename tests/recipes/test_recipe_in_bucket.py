"""A recipe in a bucket: killed while it trains, resumed, equal to one on a disk. Then every verb on what it left."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.python_code import write_packages
from helpers.small_recipe import command

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.cli import main as cli
from pplx_jax.core.buckets import local_copy
from pplx_jax.core.files import read_json
from pplx_jax.core.paths import as_path
from pplx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.long

STAGES, STEPS = ("diffusion", "pair"), 6
KILLED = "killed"


@pytest.fixture(scope="module")
def server(bucket_server, tmp_path_factory):
    """The server, for all clients of this process and of those that it starts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PPLX_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in bucket_server.environment.items():
            patched.setenv(name, value)
        yield bucket_server


@pytest.fixture(scope="module")
def roots(server, tmp_path_factory):
    """The workdirs of a run on a disk and of one in a bucket that was killed in its second stage, and resumed."""
    packages = write_packages(tmp_path_factory.mktemp("code"), ("alpha", "beta", "gamma"))
    disk, bucket = tmp_path_factory.mktemp("run") / "run", as_path(f"gs://bucket/{KILLED}")

    def words(workdir):
        return [*command(packages, workdir, *(f"{stage}/Training.steps={STEPS}" for stage in STAGES)), "--until=pair"]

    process = subprocess.Popen([sys.executable, "-m", "pplx_jax", *words(bucket)], stderr=subprocess.PIPE, text=True)
    assert cli.main(words(disk)) == cli.DONE
    while server.generation(f"{KILLED}/pair/checkpoints/2/commit_success.txt") == "0":
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (bucket / "phases" / "pair.json").exists() and (bucket / "phases" / "diffusion.json").exists()
    assert cli.main(words(bucket)) == cli.DONE
    assert not pathlib.Path("gs:").exists()
    return disk, bucket


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_with_the_numbers_of_one_on_a_disk(roots, stage):
    on_disk, in_bucket = (load_params(root / stage) for root in roots)
    flat = [sorted(_flat(params)) for params in (on_disk, in_bucket)]
    assert [name for name, _ in flat[0]] == [name for name, _ in flat[1]]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(*flat, strict=True))
    rows = [[(row["step"], row["loss"]) for row in read_metrics(root / stage / "metrics.jsonl")] for root in roots]
    assert rows[0] == rows[1] and [step for step, _ in rows[1]] == [*range(1, STEPS + 1)]


def _flat(tree, prefix=""):
    for name, value in tree.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def test_so_are_its_results(roots):
    disk, bucket = (read_json(root / "results.json") for root in roots)
    assert {name: disk[name] for name in ("bm25", "random", *STAGES)} == {
        name: bucket[name] for name in ("bm25", "random", *STAGES)
    }
    assert read_json(roots[1] / "pair" / "goodput.json")["starts"] == 2
    assert (roots[1] / "report.html").exists()


def on_both(roots, capsys, *words):
    """What a command returns with {root} on the disk and in the bucket."""
    returned = []
    for root in roots:
        code = cli.main([*(word.format(root=root) for word in words), "--json"])
        out, err = capsys.readouterr()
        assert code == cli.DONE, err
        returned.append(json.loads(out))
    return returned


def test_merge(roots, capsys):
    on_both(roots, capsys, "merge", "{root}/diffusion", "{root}/pair", "{root}/merged", "--weight=0.25")
    disk, bucket = (dict(_flat(load_params(root / "merged"))) for root in roots)
    assert all(np.array_equal(disk[name], bucket[name]) for name in disk)
    on_both(roots, capsys, "merge", "{root}/diffusion", "{root}/pair", "{root}/merged", "--weight=0.5")


def test_embed_index_and_search(roots, capsys, tmp_path):
    rows = [json.dumps({"id": str(place), "text": f"def read_{place}(path): lines"}) for place in range(30)]
    for root in roots:
        (root / "rows.jsonl").write_text("\n".join(rows) + "\n")
    embed = ("embed", "--model={root}/pair", "--input={root}/rows.jsonl", "--output={root}/embeddings")
    disk, bucket = on_both(roots, capsys, *embed, "--shard_size=8")
    assert disk["count"] == bucket["count"] == 30
    on_both(roots, capsys, "index", "--embeddings={root}/embeddings", "--output={root}/index")
    disk, bucket = on_both(roots, capsys, "search", "--index={root}/index", "read 7", "--k=3")
    assert disk == bucket and len(bucket["hits"]) == 3
    (roots[0] / "queries.jsonl").write_text('{"id": "q", "text": "read 3"}\n')
    (roots[1] / "queries.jsonl").write_text('{"id": "q", "text": "read 3"}\n')
    search = ("search", "--index={root}/index", "--queries={root}/queries.jsonl", "--output={root}/hits.trec")
    on_both(roots, capsys, *search)
    assert (roots[0] / "hits.trec").read_text() == (roots[1] / "hits.trec").read_text()


def test_eval(roots, capsys):
    words = ("eval", "--model={root}/pair", "--task={root}/data/corpus/evaluation", "--output={root}/scores")
    disk, bucket = on_both(roots, capsys, *words, "--run_file={root}/run.trec")
    assert disk["metrics"] == bucket["metrics"]
    assert (roots[0] / "run.trec").read_text() == (roots[1] / "run.trec").read_text()
    disk, bucket = on_both(roots, capsys, *words, "--compare={root}/scores")
    assert disk["comparison"].keys() == bucket["comparison"].keys()


def test_mine(roots, capsys):
    settings = ("examples=0", "first_rank=2", "last_rank=40", "ceiling=2.0")
    words = ("mine", "--model={root}/pair", "--pairs={root}/data/tokens/pair", "--output={root}/triplets")
    disk, bucket = on_both(roots, capsys, *words, *(f"--gin_param=Mining.{each}" for each in settings))
    assert disk == bucket
    files = [{file.name: file.read_bytes() for file in local_copy(root / "triplets").iterdir()} for root in roots]
    assert files[0] == files[1] and "negatives.npy" in files[1]
    assert not (roots[1] / "triplets.mining").exists()


def test_export_and_import(roots, capsys):
    on_both(roots, capsys, "export-hf", "{root}/pair", "{root}/hf")
    on_both(roots, capsys, "import-hf", "{root}/hf", "{root}/imported", "--no_parity")
    model = dict(_flat(load_params(roots[1] / "pair")))
    imported = dict(_flat(load_params(roots[1] / "imported")))
    assert all(np.array_equal(model[name], imported[name]) for name in imported)


def test_report_of_trials(roots, capsys):
    disk, bucket = on_both(roots, capsys, "report", "{root}", "--metric=pair.loss")
    assert disk["trials"][0]["value"] == bucket["trials"][0]["value"]
    assert (roots[1] / "trials.html").exists()


def test_nothing_was_written_beside_the_bucket(roots):
    assert not [name for name in os.listdir() if name.startswith("gs:")]
