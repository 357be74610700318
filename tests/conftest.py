"""Settings of every test: JAX runs on the CPU unless the caller says otherwise; fast tests start no Python process."""

import gc
import os
import pathlib
import shutil
import sys
import tempfile

from helpers import simulated

# Before the first import of jax anywhere in the suite; an explicit setting of the caller wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", simulated.XLA_FLAGS)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Compiling takes seconds, so a deadline would only measure it; the same examples every time.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("repeatable")

TESTS = pathlib.Path(__file__).parent
# They import PyTorch, train, or compile for GPUs.
SLOW_FOLDERS = ("export", "evaluation/suites/mteb", "training/stages", "benchmarks")
_fast = False  # whether the test that runs now is not marked `slow`


def _in_slow_folder(path: pathlib.Path) -> bool:
    return any(path.is_relative_to(TESTS / folder) for folder in SLOW_FOLDERS)


def pytest_ignore_collect(collection_path, config):
    """Ignores files that have only slow tests if only fast tests are selected, so that they are not imported."""
    if config.option.markexpr != "not slow" or not collection_path.match("test_*.py"):
        return None
    return (
        _in_slow_folder(collection_path)
        or any(f"\npytestmark = pytest.mark.{mark}\n" in collection_path.read_text() for mark in ("slow", "long"))
        or None
    )


def pytest_itemcollected(item):
    """Marks the tests of whole folders, and long tests, as slow; other slow tests have the mark in their file."""
    if _in_slow_folder(item.path) or item.get_closest_marker("long"):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Records whether a test is fast, for its fixtures too."""
    global _fast
    _fast = item.get_closest_marker("slow") is None
    try:
        return (yield)
    finally:
        _fast = False


def _refuse_python(event, arguments):
    # Libraries ask small programs (uname) about the machine; a Python that imports JAX takes seconds.
    if _fast and event == "subprocess.Popen" and arguments[0] == sys.executable:
        raise RuntimeError("a fast test starts a Python process; mark it with @pytest.mark.slow")


sys.addaudithook(_refuse_python)


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first, so that workers that take one file at a time end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    """Freezes what the suite has imported, so that no garbage collection goes through it."""
    gc.freeze()


def pytest_configure(config):
    """Shares a compilation cache between the tests and their processes, because a tiny run is mostly compilation."""
    config.compiled = None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    if config.compiled:
        shutil.rmtree(config.compiled, ignore_errors=True)


@pytest.fixture(scope="session")
def bucket_server():
    """The server of buckets on loopback, which only tests that ask for `bucket` use."""
    from helpers.buckets import BucketServer

    with BucketServer() as server:
        yield server


@pytest.fixture
def bucket(bucket_server, monkeypatch, tmp_path):
    """Returns a new folder gs://... on that server, with an empty cache of what is read from it."""
    for name, value in {**bucket_server.environment, "PPLX_JAX_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    from pplx_jax.core.paths import as_path

    return as_path(f"gs://bucket/{tmp_path.name}")
