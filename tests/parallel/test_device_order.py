"""Several processes whose devices are not neighbours in the mesh, as on a real slice, train as one process does."""

import numpy as np
import pytest
from helpers import job, tiny, torus

from pplx_jax.checkpoints.saved_params import load_params
from pplx_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow

TORUS = (
    torus.CODE
    + """
def train_all(groups):
    for name in STAGES:
        stage = dataclasses.replace(tiny.STAGES[name], batch_size=8)
        run(setting, output / name, name, mesh=Mesh(fsdp=8), stage=stage, optimizer=tiny.ROBUST_OPTIMIZER,
            packing_groups=groups, steps=2)
"""
)
STAGES = ("diffusion", "pair", "contextual", "triplet")


def test_four_processes_in_the_order_of_a_torus_train_as_one_does(tmp_path):
    tiny.tiny_tables(tmp_path, tiny.tiny_vocabulary(tmp_path))
    code = f"STAGES = {STAGES!r}\n{TORUS}"
    job.finish([job.start(code + "train_all(2)", tmp_path, tmp_path / "one", devices=8)])
    together = "with joined(Processes()):\n    train_all(2)"
    job.finish(job.start_job(code + together, tmp_path, tmp_path / "four", count=4, devices=2), timeout=600)
    for stage in STAGES:
        one, four = (read_metrics(tmp_path / run / stage / "metrics.jsonl") for run in ("one", "four"))
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose([row[name] for row in four], [row[name] for row in one], rtol=1e-5)
        assert [(row["fill"], row["cut_tokens"]) for row in four] == [(row["fill"], row["cut_tokens"]) for row in one]
        for a, b in zip(*(leaves(tmp_path / run / stage) for run in ("one", "four")), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def leaves(folder):
    import jax

    return jax.tree.leaves(load_params(folder))
