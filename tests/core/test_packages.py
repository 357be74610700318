"""Which extra installs a module."""

import importlib.metadata

import pytest

from pplx_jax.core.packages import extra_with


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("tensorflow", "data"),
        ("tensorflow_text", "data"),
        ("faiss", "search"),
        ("torch", "convert"),
        ("torch.nn", "convert"),
        ("psycopg", "postgres"),
        ("numpy", None),  # of no extra
        ("tensor", None),
        ("", None),
    ],
)
def test_extra_with(module, extra):
    assert extra_with(module) == extra


def test_sources_that_are_not_installed_have_no_extras(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert extra_with("torch") is None
