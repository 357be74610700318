"""Who is behind when no process of a job moves on."""

import threading
import time

from pplx_jax.core import progress
from pplx_jax.parallel.stuck import Place, Watch, here

NAMES = {index: f"process {index} (host-{index}, pid 7)" for index in range(6)}


def watch(places: list[Place], stuck_seconds: float = 0.0) -> tuple[Watch, float]:
    found, now = Watch(NAMES, stuck_seconds), time.monotonic()
    for index, place in enumerate(places):
        found.note(index, place, now)
    return found, now


def test_the_one_behind_is_named_with_its_place_and_code_within_a_minute():
    found, now = watch([Place(7, "pair step 4"), Place(6, "pair step 3", "data/io/storage.py:12", 5.0)])
    assert found.report(now + 30) is None
    report, stuck = found.report(now + 50)
    assert report == (
        "no process has moved on for 50 s: waiting for process 1 (host-1, pid 7), in pair step 3 "
        "(data/io/storage.py:12, 0.0 s of processor time); the others wait in pair step 4"
    )
    assert not stuck
    assert found.report(now + 60) is None  # again only after twice the time
    assert "for 110 s" in found.report(now + 110)[0]


def test_any_move_starts_the_wait_again():
    found, now = watch([Place(1, "a"), Place(1, "a")])
    found.note(1, Place(1, "a", cpu=3.0), now + 20)
    assert found.report(now + 50)
    found.note(1, Place(2, "b"), now + 55)
    assert found.report(now + 99) is None
    assert "waiting for process 0" in found.report(now + 101)[0]


def test_many_behind_are_counted():
    found, now = watch([Place(3, "pair step 1")] * 6)
    report, _ = found.report(now + 60)
    assert "process 3 (" in report and "process 4 (" not in report and "and 2 more processes there" in report
    assert "the others" not in report


def test_stuck_is_who_is_behind_and_computes_nothing():
    places = [Place(2, "the wait"), Place(1, "phase corpus", cpu=100.0)]
    found, now = watch(places, stuck_seconds=600)
    found.note(1, Place(1, "phase corpus", cpu=100.5), now + 599)
    assert not found.report(now + 599)[1]
    assert found.report(now + 601)[1]
    found.note(1, Place(1, "phase corpus", cpu=160.0), now + 602)  # it compiles, or reads a corpus
    assert found.report(now + 700) is None and not found.report(now + 2000)[1]
    never, now = watch(places, stuck_seconds=0)
    assert not never.report(now + 99999)[1]


def test_the_place_of_this_process_is_a_line_of_this_package():
    found = []
    with progress.Progress("x", total=1, unit="row", enabled=False):
        thread = threading.Thread(target=lambda: found.append(here(3, "phase x")))
        thread.start()
        thread.join()
    assert found[0][:2] == (3, "phase x") and found[0].cpu > 0
    assert found[0].code == ""  # the main thread runs a test
