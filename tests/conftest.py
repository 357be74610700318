"""Settings every test shares: JAX runs on the CPU unless the caller says otherwise."""

import gc
import os
import shutil
import tempfile

from helpers import simulated

# Before the first import of jax anywhere in the suite; an explicit setting of the caller wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", simulated.XLA_FLAGS)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402

# Compiling takes seconds, so a deadline would only measure it; the same examples every time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish(session):
    """What the suite has imported stays: no collection of garbage needs to go through it."""
    gc.freeze()


def pytest_configure(config):
    """Nearly all of a tiny run is compilation: what one test has compiled, the next and its subprocesses read."""
    config.compiled = None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    if config.compiled:
        shutil.rmtree(config.compiled, ignore_errors=True)
