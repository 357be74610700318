"""Wall time by cause, over restarts: every second is counted once."""

import json

import pytest

from pplx_jax.training.goodput import FILE, Goodput

pytestmark = pytest.mark.slow


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_restarts_take_back_lost_steps_and_count_the_time_between(tmp_path):
    clock = Clock()
    first = Goodput(tmp_path, clock=clock)
    first.spent("compile", 10.0)
    first.spent("useful", 60.0)
    first.spent("data_wait", 5.0)
    clock.now = 1100.0
    first.save()
    assert first.numbers() == {"goodput": 0.6, "restarts": 0}
    # Killed here; the checkpoint stands for 40 of its 60 seconds, and 50 seconds pass.
    clock.now = 1150.0
    written = json.loads((tmp_path / FILE).read_text())
    assert written["seconds"].pop("evaluation") == 0
    (tmp_path / FILE).write_text(json.dumps(written))  # as versions without evaluation wrote it
    second = Goodput(tmp_path, useful=40.0, clock=clock)
    assert second.numbers() == {"goodput": pytest.approx(40 / 150), "restarts": 1}
    second.spent("useful", 40.0)
    second.spent("checkpoint", 2.0)
    second.spent("evaluation", 3.0)
    clock.now = 1200.0
    second.save()
    found = json.loads((tmp_path / FILE).read_text())
    assert (found["goodput"], found["starts"]) == (0.4, 2)
    assert (found["useful_seconds"], found["wall_seconds"]) == (80.0, 200.0)
    parts = {
        "compile": 10,
        "data_wait": 5,
        "checkpoint": 2,
        "evaluation": 3,
        "repeated": 20,
        "stopped": 50,
        "other": 30,
    }
    assert found["seconds"] == parts
    assert found["useful_seconds"] + sum(parts.values()) == found["wall_seconds"]


def test_one_process_writes(tmp_path):
    Goodput(tmp_path, write=False).save()
    assert not list(tmp_path.iterdir())
