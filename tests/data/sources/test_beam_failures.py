"""A pipeline on this machine ends when one of its workers fails, and names the reason in one line."""

import functools
import signal
import threading

import pytest
from apache_beam.options.pipeline_options import WorkerOptions

from pplx_jax.core.errors import BadInput, Failed
from pplx_jax.data.sources.beam_failures import NO_MARKER, failures_of_workers
from pplx_jax.data.sources.beam_options import pipeline_options

pytestmark = pytest.mark.slow


def failing():
    yield 1
    raise BadInput("rows.jsonl:3: not JSON")


def test_the_other_workers_stop_with_the_same_reason():
    with failures_of_workers(pipeline_options("DirectRunner", "")) as marker:
        other = marker.watch(iter(range(10)))
        assert next(other) == 0
        with pytest.raises(BadInput, match="rows.jsonl:3"):
            list(marker.watch(failing()))
        with pytest.raises(BadInput, match="rows.jsonl:3: not JSON"):
            next(other)
    marker.write("too late")  # the pipeline has ended


def test_workers_of_other_machines_have_no_marker():
    options = pipeline_options("DirectRunner", "")
    options.view_as(WorkerOptions)
    from apache_beam.options.pipeline_options import StandardOptions

    options.view_as(StandardOptions).runner = "DataflowRunner"
    with failures_of_workers(options) as marker:
        assert marker == NO_MARKER and options.view_as(WorkerOptions).default_sdk_harness_log_level is None
    with pytest.raises(BadInput, match="rows.jsonl:3"):
        list(marker.watch(failing()))
    assert list(marker.watch(range(3))) == [0, 1, 2]


@pytest.mark.parametrize("in_background", [False, True])  # there, a shell ignores SIGINT
def test_a_killed_process_interrupts_the_wait_and_other_threads_do_not(monkeypatch, request, in_background):
    shown = []
    if in_background:
        request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(threading, "excepthook", shown.append)

    def die(message, seconds=0.0):
        code = f"import time; time.sleep({seconds}); raise RuntimeError({message!r})"
        thread = threading.Thread(target=exec, args=(code,))
        thread.start()
        if not seconds:
            thread.join()

    with failures_of_workers(pipeline_options("DirectRunner", "")) as marker:
        die("something else")
        assert len(shown) == 1 and list(marker.watch([1])) == [1]
    with pytest.raises(Failed, match=r"was killed or has crashed \(Worker subprocess exited with return code 137\)"):
        with failures_of_workers(pipeline_options("DirectRunner", "")) as marker:
            die("Worker subprocess exited with return code 137", seconds=0.2)
            threading.Event().wait(60)  # Beam would wait forever
    assert len(shown) == 1
    with pytest.raises(KeyboardInterrupt), failures_of_workers(pipeline_options("DirectRunner", "")):
        raise KeyboardInterrupt
