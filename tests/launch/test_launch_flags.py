"""Flags that do not go together are refused before anything is built."""

import pathlib
import subprocess
import sys

import pytest
from helpers.fake_clouds import PARAMS, VERTEX, launched

from launch import xm_launch
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput


@pytest.mark.parametrize(
    "options, words",
    [
        ({**VERTEX, "slices": TpuSlices("v5p", "4x4x4")}, "trains on v5e and v6e"),
        ({**VERTEX, "slices": TpuSlices("v5e", "4x4", 2)}, "trains on one slice"),
        ({**VERTEX, "project": None}, "needs --project"),
        ({**VERTEX, "slices": None}, "needs hardware"),
        ({**VERTEX, "image": None}, "--repository"),
        ({**VERTEX, "workdir": "/home/me/run"}, "give /gcs/BUCKET/RUN"),
        ({**VERTEX, "workdir": "run"}, "absolute"),
        ({**VERTEX, "base": "run"}, "absolute"),
        ({**VERTEX, "base": "/gcs/another/run"}, "the only bucket that jobs can read"),
        ({**VERTEX, "stage": "merge"}, "the recipe has diffusion, pair"),
        ({**VERTEX, "gin_params": (*PARAMS[:1], "CORPUS='gin'")}, "give the absolute path"),
        ({**VERTEX, "gin_files": ()}, "give --gin_file, --sweep or --embed"),
        ({**VERTEX, "gin_files": ("/etc/passwd",)}, "is not in .*gin"),
        ({"executor": "local", "slices": TpuSlices("v5e", "4x4")}, "--tpu needs --executor"),
    ],
)
def test_flags_that_do_not_go_together(options, words, monkeypatch):
    monkeypatch.chdir(pathlib.Path(xm_launch.__file__).parents[1])
    with pytest.raises(BadInput, match=words):
        launched(**options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "word, told", [("--executor=nope", "value should be one of"), ("--bogus", "Unknown command line flag 'bogus'")]
)
def test_a_flag_that_is_none_is_bad_input(word, told):
    command = [sys.executable, xm_launch.__file__, word]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == xm_launch.BAD_INPUT and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("xm_launch: error: ") and told in done.stderr


def test_xmanager_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "xmanager", None)
    with pytest.raises(BadInput, match="XManager is not installed: pip install"):
        launched(workdir="/run")
