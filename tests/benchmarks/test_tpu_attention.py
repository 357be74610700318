"""The benchmark of attention on one TPU chip: in interpret mode, and by compilation for a topology."""

import functools
import importlib
import json
import pathlib
import subprocess
import sys

import pytest
from helpers import tpu_compile

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SMALL = ["--lengths=256", "--heads=16", "--tokens=256", "--repeats=1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("attention_cases", "tpu_attention"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("tpu_attention")


def run(script, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["tpu_attention.py", *SMALL, "--json", *flags])
    return script.main()


def test_without_a_tpu_it_says_what_to_give(script, monkeypatch, capsys):
    assert run(script, monkeypatch) == 2
    out, err = capsys.readouterr()
    assert not out and "this is cpu, it needs a TPU; without one give --compile v5e:2x2" in err


@pytest.mark.long
def test_every_case_is_compared_and_timed(script, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["attention_cases"], "HEAD_DIM", 32)
    assert run(script, monkeypatch, "--interpret", "--implementations", "splash", "blockwise") == 0
    report = json.loads(capsys.readouterr().out)
    cases = report["L256_H16"]
    assert list(cases) == ["dense_forward", "dense_backward", "packed_forward", "packed_backward"]
    for case in cases.values():
        assert case["differences"].keys() == case["seconds"].keys() == {"splash", "blockwise"}
        assert all(0 < value < 3e-2 for value in case["differences"].values())
        assert min(case["ratios"].values()) == 1 and all(value > 0 for value in case["seconds"].values())
    assert report["left_out"] == [] and {"date", "device", "versions"} <= report["taken"].keys()


@pytest.mark.long
def test_our_kernel_is_compared(script):
    candidates = functools.partial(script.candidates, interpret=True)
    assert 0 < script.check(candidates, "pallas", 16, packed=True, backward=False, length=128) < 3e-2


@pytest.mark.long
def test_a_wrong_kernel_is_named_and_fails_the_script(script, monkeypatch, capsys):
    seen_by_all = script.INTERPRETED["blockwise"]  # texts that see each other
    wrong = {**script.INTERPRETED, "splash": lambda q, k, v, ids: seen_by_all(q, k, v, 0 * ids + 1)}
    monkeypatch.setattr(script, "INTERPRETED", wrong)
    assert run(script, monkeypatch, "--interpret", "--implementations", "splash", "blockwise") == 1
    cases = json.loads(capsys.readouterr().out)["L256_H16"]
    said = cases["packed_forward"]["seconds"]
    assert said["splash"].startswith("ValueError: splash differs from the reference by")
    assert isinstance(said["blockwise"], float)
    assert isinstance(cases["dense_forward"]["seconds"]["splash"], float)


def test_it_begins_no_case_after_its_time(script, monkeypatch, capsys):
    assert run(script, monkeypatch, "--interpret", "--minutes=-1") == 0
    report = json.loads(capsys.readouterr().out)
    assert "L256_H16" not in report and len(report["left_out"]) == 4


@pytest.mark.long
@tpu_compile.needs_libtpu
def test_it_compiles_for_a_chip_that_is_not_here():
    command = [sys.executable, FOLDER / "tpu_attention.py", *SMALL, "--json", "--compile=v5e:2x2"]
    done = subprocess.run([*command, "--implementations", "splash"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["taken"]["device"] == "v5e:2x2"
    for case in report["L256_H16"].values():
        assert case["compile_seconds"]["splash"] > 0 and case["temporary_bytes"]["splash"] >= 0
