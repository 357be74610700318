"""The lock of a workdir."""

import subprocess
import sys

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.core.sole_owner import sole_owner

PROGRAM = """
import pathlib, sys, time
from pplx_jax.core.sole_owner import sole_owner
with sole_owner(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_ends_with_its_block_and_leaves_no_file(tmp_path):
    for _ in range(2):
        with sole_owner(tmp_path):
            with pytest.raises(BadInput, match="another process is at work"), sole_owner(tmp_path):
                pass
            assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_lock_ends_with_a_killed_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match="another process is at work"), sole_owner(tmp_path):
            pass
        process.kill()
    with sole_owner(tmp_path):
        pass
