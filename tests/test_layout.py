"""The folders of the tests are those of the packages they test."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
OUTSIDE_THE_PACKAGE = {"benchmarks", "docs", "launch"}


def test_every_folder_of_tests_has_a_package_of_the_same_name():
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    nested = folders - {pathlib.Path()}
    assert nested
    for folder in nested:
        tested = ROOT if folder.parts[0] in OUTSIDE_THE_PACKAGE else ROOT / "pplx_jax"
        assert (tested / folder).is_dir(), f"tests/{folder}: there is no {(tested / folder).relative_to(ROOT)}"
