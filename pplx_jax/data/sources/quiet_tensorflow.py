"""Starts TensorFlow, and keeps what it and Beam print about a failed source away from the user, who gets one line."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

from pplx_jax.core.errors import BadInput
from pplx_jax.core.native_logs import silent_native_stderr

_LEVEL, _OF_JAX, _ONLY_ERRORS = "TF_CPP_MIN_LOG_LEVEL", "1", "2"  # JAX sets level 1 if there is none
_BAD_INPUT = re.compile(r"BadInput: (.+)")


def start_tensorflow() -> None:
    """Imports TensorFlow and starts its runtime without its messages.

    Its warnings stay off, unless TF_CPP_MIN_LOG_LEVEL is "0": it prints every exception of a generator as two warnings
    of many lines, before the exception is raised.
    """
    if os.environ.get(_LEVEL, _OF_JAX) == _OF_JAX:
        os.environ[_LEVEL] = _ONLY_ERRORS
    with silent_native_stderr():
        import tensorflow as tf

        tf.constant(0)  # starts the runtime, which prints more messages


def first_line(error: Exception) -> str:
    """Returns what an error of TensorFlow says, without the traceback that follows in its text."""
    text = str(getattr(error, "message", None) or error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def bad_input_through_beam() -> Iterator[None]:
    """Raises the original BadInput.

    TensorFlow and Beam wrap exceptions and keep only their text. What Beam logs about it is not shown.
    """
    handlers = logging.getLogger().handlers or [logging.lastResort]
    found = [handler for handler in handlers if handler is not None]
    for handler in found:
        handler.addFilter(_is_no_bad_input)
    try:
        yield
    except Exception as error:
        if match := _BAD_INPUT.search(str(error)):
            raise BadInput(match[1].strip()) from None
        raise
    finally:
        for handler in found:
            handler.removeFilter(_is_no_bad_input)


def _is_no_bad_input(record: logging.LogRecord) -> bool:
    """Returns whether to show a record: not if Beam reports a BadInput, which is raised again."""
    return not (record.name.startswith("apache_beam") and _BAD_INPUT.search(record.getMessage()))
