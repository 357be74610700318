"""The parameters of both models lie where the checked-in dumps say."""

import pytest
from parallel import golden


@pytest.mark.parametrize("preset", golden.PRESETS)
@pytest.mark.parametrize("size", golden.SIZES)
def test_parameters_lie_where_they_did(size, preset):
    kept = (golden.FOLDER / f"{size}_{preset}.txt").read_text(encoding="utf-8")
    assert golden.dump(size, preset) == kept, "where this is meant: python tests/parallel/golden.py"


@pytest.mark.parametrize("preset", [name for name in golden.PRESETS if name != "single"])
def test_no_matrix_is_on_every_chip(preset):
    for line in (golden.FOLDER / f"4b_{preset}.txt").read_text(encoding="utf-8").splitlines():
        if "kernel" in line or "embedding" in line:
            assert "fsdp" in line, line
