"""metrics.jsonl: written line by line; after an interruption, lines of steps that run again are dropped."""

import json

import pytest

from pplx_jax.training.metrics import MetricsWriter, read_metrics


def write(folder, steps, resume_step=0):
    writer = MetricsWriter(folder, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step})
    writer.close()


def steps(folder) -> list[int]:
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl")]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    writer.write(1, {"loss": 0.1, "fill": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1, "fill": 0.5}]  # every digit
    writer.write(2, {"loss": 1 / 3})
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"step": 2, "loss": 1 / 3}
    writer.close()


def test_lines_past_the_step_resumed_from_are_dropped(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.partial"))


def test_a_fresh_start_drops_all(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert steps(tmp_path) == [1]


def test_lines_are_kept_as_they_were(tmp_path):
    write(tmp_path, [1, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    write(tmp_path, [], resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:2]


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', '{"step": 3', "{", '{"step": 3, "loss": 0.3'])
def test_a_last_line_cut_short_is_left_out(tmp_path, tail):
    write(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert steps(tmp_path) == [1, 2]
    write(tmp_path, [3], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_last_line_without_its_end_keeps_the_next_one_apart(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write(tmp_path, [3], resume_step=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_the_last_numbers_are_known_after_a_resume_too(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert writer.last == {}
    writer.close()
    write(tmp_path, [1, 2, 3])
    writer = MetricsWriter(tmp_path, resume_step=2)
    assert writer.last == {"loss": 0.5}
    writer.write(3, {"loss": 0.25})
    assert writer.last == {"loss": 0.25}
    writer.close()


class Recorder:
    """A writer that fails at the steps of `fails`."""

    def __init__(self, fails=()):
        self.seen, self.closed, self.fails = [], 0, fails

    def write(self, step, values):
        if step in self.fails:
            raise ConnectionError("the other side is gone")
        self.seen.append((step, values))

    def close(self):
        self.closed += 1


def test_other_writers_take_the_same_numbers(tmp_path):
    recorder = Recorder()
    writer = MetricsWriter(tmp_path, writers=[recorder])
    for step in (1, 2):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    assert recorder.seen == [(1, {"loss": 1.0}), (2, {"loss": 0.5})] and recorder.closed == 1
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()] == [1.0, 0.5]


def test_a_writer_that_fails_stops_alone(tmp_path, caplog):
    failing, sound = Recorder(fails=[2]), Recorder()
    writer = MetricsWriter(tmp_path, writers=[failing, sound])
    for step in (1, 2, 3):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    assert [step for step, _ in failing.seen] == [1]
    assert [step for step, _ in sound.seen] == steps(tmp_path) == [1, 2, 3]
    assert "Recorder" in caplog.text and "the other side is gone" in caplog.text
