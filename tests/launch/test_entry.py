"""What a job does before it becomes `pplx-jax`."""

import json
import os
import subprocess
import sys

import pytest

from launch import entry

RECORD = {"trial": 3, "gin_params": ["a=1"], "package": "old"}


def note(workdir, **more):
    return {"workdir": str(workdir), "record": RECORD} | more


def test_the_record_is_left_and_left_again(tmp_path):
    assert entry.prepare(note(tmp_path / "a" / "b")) is None
    assert json.loads((tmp_path / "a" / "b" / "trial.json").read_text()) == RECORD
    assert entry.prepare(note(tmp_path / "a" / "b", record={**RECORD, "package": "new"})) is None
    assert json.loads((tmp_path / "a" / "b" / "trial.json").read_text())["package"] == "new"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["trial.json"]


def test_another_trial_is_refused_untouched(tmp_path):
    entry.prepare(note(tmp_path))
    complaint = entry.prepare(note(tmp_path, record={**RECORD, "gin_params": ["a=2"]}))
    assert "another trial" in complaint and "gin_params" in complaint and "package" not in complaint
    assert json.loads((tmp_path / "trial.json").read_text()) == RECORD


def test_a_relative_workdir_is_refused():
    assert "absolute" in entry.prepare(note("run"))


def test_links_are_made_once_and_only_to_what_is_there(tmp_path):
    base = tmp_path / "base"
    (base / "data" / "tokens" / "pair").mkdir(parents=True)
    (base / "phases").mkdir()
    (base / "phases" / "pair.json").write_text("{}")
    links = ["data/tokens/pair", "phases/pair.json", "phases/mine.json"]
    for _ in range(2):
        assert entry.prepare(note(tmp_path / "trial", base=str(base), links=links)) is None
    trial = tmp_path / "trial"
    assert (trial / "data" / "tokens" / "pair").resolve() == base / "data" / "tokens" / "pair"
    assert (trial / "phases" / "pair.json").read_text() == "{}"
    assert not (trial / "phases" / "mine.json").is_symlink()
    assert not (trial / "data").is_symlink() and not (trial / "data" / "tokens").is_symlink()  # others write there


@pytest.mark.slow
@pytest.mark.parametrize("words, code, text", [(["--version"], 0, "pplx-jax"), (["nothing"], 2, "invalid choice")])
def test_it_becomes_the_command(tmp_path, words, code, text):
    environment = {**os.environ, "PPLX_TRIAL": json.dumps(note(tmp_path / "run"))}
    command = [sys.executable, entry.__file__, *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and text in done.stdout + done.stderr
    assert (tmp_path / "run" / "trial.json").exists()


# A job whose parent goes just before Linux is asked to tell of that.
ORPHAN = """
import ctypes, os, signal, subprocess, sys, time
from launch import entry

def late(name):
    os.kill(os.getppid(), signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    return library(name)

if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "job"])
else:
    parent, library, ctypes.CDLL = os.getppid(), ctypes.CDLL, late
    entry.prepare = lambda note: print("goes on", flush=True) or "it has no parent"
    print("starts", flush=True)
    entry.main([])
"""


@pytest.mark.slow
def test_a_job_whose_parent_went_first_leaves(tmp_path):
    (tmp_path / "orphan.py").write_text(ORPHAN)
    environment = {**os.environ, "PPLX_TRIAL": "{}", "PPLX_STOP_WITH_PARENT": "1"}
    environment["PYTHONPATH"] = str(entry.PACKAGE)
    words = [sys.executable, tmp_path / "orphan.py"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)  # until the job ends too
    assert done.stdout == "starts\n", done.stderr


@pytest.mark.slow
def test_a_refused_trial_has_its_exit_code(tmp_path):
    entry.prepare(note(tmp_path))
    environment = {**os.environ, "PPLX_TRIAL": json.dumps(note(tmp_path, record={}) | {"record": {"trial": 4}})}
    done = subprocess.run(
        [sys.executable, entry.__file__, "--version"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == entry.BAD_INPUT and "another trial" in done.stderr and not done.stdout
