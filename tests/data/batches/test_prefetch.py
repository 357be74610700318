"""The background thread: resumes at any position, errors reach the consumer, and `close` ends it."""

import itertools
import threading
import time

import pytest

from pplx_jax.data.batches.prefetch import Prefetch


def take(count, position=0):
    with Prefetch(lambda place: place * place, position, 5) as items:
        return list(itertools.islice(items, count))


@pytest.mark.parametrize("stop", [0, 3, 59])
def test_resumed_anywhere_equals_uninterrupted(stop):
    whole = take(70)
    position = whole[stop][1]
    assert position == (stop + 1) * 5
    assert take(69 - stop, position) == whole[stop + 1 :]
    assert take(1, position + 1) != whole[stop + 1 : stop + 2]  # negative control


def test_prefetched_items_do_not_move_the_position():
    items = Prefetch(lambda place: place, 0, 4, depth=3)
    deadline = time.monotonic() + 5
    while items._ready.qsize() < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert items.position == 0
    next(items)
    assert items.position == 4
    items.close()
    assert items.position == 4


def test_an_exception_reaches_the_consumer_after_the_good_items():
    def make(place):
        if calls.append(None) or len(calls) == 3:
            raise RuntimeError("third item")
        return len(calls)

    calls = []
    with Prefetch(make, 0, 2) as items:
        assert [next(items)[0], next(items)[0]] == [1, 2]
        for _ in range(2):  # and again, instead of hanging
            with pytest.raises(RuntimeError, match="third item"):
                next(items)
    assert not items._thread.is_alive()
    assert len(calls) == 3


def test_closing_ends_the_thread_at_once():
    threads = threading.active_count()
    slow = Prefetch(lambda place: time.sleep(0.05), 0, 2)
    full = Prefetch(lambda place: place, 0, 2, depth=1)
    next(full)
    time.sleep(0.05)
    started = time.monotonic()
    for items in (slow, full, full):  # closing twice is fine
        items.close()
        with pytest.raises(StopIteration):
            next(items)
    assert time.monotonic() - started < 1
    assert threading.active_count() == threads


def test_items_are_made_ahead_and_waiting_is_measured():
    with Prefetch(lambda place: time.sleep(0.1), 0, 2) as items:
        next(items)
        assert 0.05 < items.wait_seconds < 1
        time.sleep(0.4)  # the consumer works; two items become ready
        before = items.wait_seconds
        next(items), next(items)
        assert items.wait_seconds - before < 0.05
