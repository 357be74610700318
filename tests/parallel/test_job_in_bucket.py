"""Two processes that train in a bucket, with a cache each as on two hosts, against the same two on a disk."""

import jax
import numpy as np
import pytest
from helpers import job, tiny

from pplx_jax.checkpoints.orbax import load_params
from pplx_jax.core.buckets import replace
from pplx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

CODE = """
from pplx_jax.core.paths import as_path
os.environ["PPLX_JAX_CACHE"] = str(output / f"cache-{os.getpid()}")
bucket = as_path(URL)
with joined(Processes()):
    for tables, folder in ((setting, output), (bucket / "setting", bucket)):
        run(tables, folder / "stage", "pair", mesh=Mesh(data=2, fsdp=2), steps=3, checkpoint_every_steps=1)
"""


def test_two_processes_train_in_a_bucket_as_on_a_disk(bucket, tmp_path):
    setting, output = tmp_path / "setting", tmp_path / "output"
    setting.mkdir()
    output.mkdir()
    tiny.tiny_tables(setting, tiny.tiny_vocabulary(setting))
    replace(setting, bucket / "setting", last="")
    job.finish(job.start_job(f"URL = {str(bucket)!r}\n{CODE}", setting, output, count=2, devices=2))
    disk, stored = (load_params(folder / "stage") for folder in (output, bucket))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, disk, stored)))
    disk, stored = (read_metrics(folder / "stage" / "metrics.jsonl") for folder in (output, bucket))
    assert [(row["step"], row["loss"]) for row in stored] == [(row["step"], row["loss"]) for row in disk]
    assert len(stored) == 3 and (bucket / "stage" / "finished.json").exists()
    assert len(list(output.glob("cache-*/objects"))) == 2  # each host downloads the tables
