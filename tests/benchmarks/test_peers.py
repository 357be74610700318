"""The comparison with other libraries: turns, agreement before times, texts, and one run of everything, tiny."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
COUNTS = """
import pathlib, sys

class Side:
    def __init__(self, name, case):
        self.name, self.case = name, case
        print("libraries print what they like")

    def run(self):
        with open(self.case["log"], "a") as log:
            log.write(self.name + "\\n")
        if self.name == self.case.get("fails"):
            raise ValueError("no memory")

    def check(self):
        return {"value": len(self.name)}

def open_side(name, case):
    return Side(name, case)
"""


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("peers", FOLDER / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def turns(peers):
    from peer_cases import turns

    return turns


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part whose implementations write their names to a file."""
    (tmp_path / "counting_part.py").write_text(COUNTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {"log": str(tmp_path / "log")}


def agree(first, other, name):
    from peer_cases.turns import Different

    if first != other:
        raise Different(f"{name} computes {other['value']}")
    return {"equal": True}


def test_passes_take_turns(turns, part):
    found = turns.measure("counting_part", part, ["ours", "mine"], agree, passes=2)
    names = pathlib.Path(part["log"]).read_text().split()
    assert names == ["ours", "mine"] + ["ours", "mine"] * 2  # first passes, then turns
    assert len(found["mine"]["seconds"]) == 2 and found["mine"]["least_seconds"] <= found["mine"]["median_seconds"]
    assert found["ours"]["peak_bytes"] > 1e6


def test_what_computes_something_else_gets_no_time(turns, part):
    found = turns.measure("counting_part", part, ["ours", "theirs", "mine"], agree, passes=1)
    assert found["theirs"] == {"error": "theirs computes 6"}
    assert found["mine"]["agreement"] == {"equal": True}


def test_a_peer_that_fails_does_not_end_the_others(turns, part):
    found = turns.measure("counting_part", part | {"fails": "mine"}, ["ours", "mine"], agree, passes=1)
    assert found["mine"] == {"error": "ValueError: no memory"} and found["ours"]["seconds"]
    with pytest.raises(RuntimeError, match="ours: ValueError: no memory"):
        turns.measure("counting_part", part | {"fails": "ours"}, ["ours", "mine"], agree, passes=1)


def test_the_ratio_is_that_to_the_fastest_peer(turns):
    def one(seconds):
        times = {f"{name}_seconds": seconds for name in ("load", "first", "least", "median")}
        return times | {"peak_bytes": 1, "agreement": {}}

    found = {"ours": one(1.0), "ours_float32": one(0.1), "a": one(2.0), "b": one(4.0), "c": {"error": "none"}}
    row = turns.table_row(found, {"tokens": 100})
    assert row["ratio"] == 2.0 and row["a"] == 50.0 and row["errors"] == {"c": "none"}


def test_vectors_are_compared_as_their_precision_allows(peers, tmp_path):
    from peer_cases import encode

    vectors = np.random.default_rng(0).standard_normal((4, 64))
    names = {"same": vectors, "near": vectors + 0.05 * np.random.default_rng(1).standard_normal((4, 64))}
    for name, array in names.items():
        np.save(tmp_path / f"{name}.npy", array)
    same, near = ({"vectors": tmp_path / f"{name}.npy"} for name in names)
    assert encode.compare(same, near, "peer_bfloat16")["least_cosine"] > 0.99
    with pytest.raises(Exception, match="peer_float32: a vector has cosine 0.99"):
        encode.compare(same, near, "peer_float32")


def test_losses_and_gradients_are_compared_as_their_precision_allows(peers):
    from peer_cases import contrastive_step

    ours, near = {"loss": 2.0, "gradient_norm": 1.0}, {"loss": 2.01, "gradient_norm": 1.0}
    assert contrastive_step.compare(ours, near, "peer_bfloat16")["loss_difference"] < 0.02
    for other in (near, {"loss": 2.0, "gradient_norm": 1.02}):
        with pytest.raises(Exception, match=r"peer_float32: loss 2.* ours 2.00000 and 1.00000"):
            contrastive_step.compare(ours, other, "peer_float32")


def test_texts_of_a_length_have_nearly_that_length(peers):
    from peer_cases import subject

    def count(texts):
        return np.array([len(text.split()) for text in texts])

    made = subject.of_length(["one two three", "four five", "x" * 99], count, 64, 16)
    assert count(made).tolist() == [16] * 4
    mix = subject.choose(["one two", " ", "a b c d", "three"], count, 3, most=3)
    assert mix == ["one two", "three"]


@pytest.mark.long
def test_a_quick_run_prints_every_part(peers):
    command = [sys.executable, FOLDER / "peers.py", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert set(report) == {*peers.PARTS, "taken"}
    for part in peers.PARTS:
        for row in report[part].values():
            assert row["ours"] > 0 and row["ratio"] > 0 and "errors" not in row
            assert set(row["peak_bytes"]) == set(row["seconds"]) == set(row["agreement"])
