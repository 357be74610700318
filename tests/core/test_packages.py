"""Which extra installs a module."""

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
