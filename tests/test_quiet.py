"""Native messages are swallowed, and only while asked."""

import os

import pytest

from pplx_jax.quiet import silent_native_stderr


def test_the_descriptor_is_silent_inside_and_itself_again_after(capfd):
    os.write(2, b"before ")
    with silent_native_stderr():
        os.write(2, b"inside ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_an_exception_passes_and_the_descriptor_is_itself_again(capfd):
    with pytest.raises(ImportError), silent_native_stderr():
        raise ImportError
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
