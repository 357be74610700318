"""The order of examples and the loader: a bijection, well mixed, resumable anywhere, the same on any host."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches.prefetch import Loader, shuffled


def take(batches, **arguments):
    with Loader(lambda indices: indices, **arguments) as loader:
        return [next(loader) for _ in range(batches)]


def stream(batches):
    return np.concatenate([indices for indices, _ in batches])


@given(st.integers(1, 3000), st.integers(-5, 2**70), st.integers(0, 50))
def test_every_pass_is_a_permutation(count, seed, epoch):
    order = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed)
    assert np.array_equal(np.sort(order), np.arange(count))


def test_places_are_independent_of_each_other():
    whole = shuffled(np.arange(1000), 123, 5)
    for places in ([999, 0, 17], [4], np.arange(100, 300)):
        np.testing.assert_array_equal(shuffled(np.array(places), 123, 5), whole[places])


def test_large_tables_are_reached_at_once():
    count = 10**12
    order = shuffled(np.arange(10_000) + 7 * count, count, 0)
    assert len(np.unique(order)) == 10_000
    assert abs(order.mean() / count - 0.5) < 0.02 and order.max() < count


def test_the_order_is_well_mixed():
    count = 4096
    orders = np.array([shuffled(np.arange(count) + epoch * count, count, seed)
                       for seed in (0, 1) for epoch in (0, 1)])  # fmt: skip
    places = np.arange(count)
    for order in orders:
        assert abs(np.corrcoef(places, order)[0, 1]) < 0.06
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
        # Neighbours stay neighbours no more often than chance (2 in n), fixed points are about one.
        assert (np.abs(np.diff(order)) == 1).sum() < 12 and (order == places).sum() < 8
    for one in range(4):
        for other in range(one):
            assert (orders[one] == orders[other]).sum() < 8 and abs(np.corrcoef(orders[[one, other]])[0, 1]) < 0.06
    # Negative control: the statistics do see an order that is not mixed.
    assert np.corrcoef(places, np.roll(places, 100))[0, 1] > 0.06


@pytest.mark.parametrize("count", [5, 10, 40])
def test_every_example_comes_first_equally_often(count):
    first = np.concatenate([shuffled(np.array([0]), count, seed) for seed in range(200 * count)])
    counts = np.bincount(first, minlength=count)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < count + 5 * np.sqrt(2 * count)


def test_small_tables_see_many_orders():
    orders = {tuple(shuffled(np.arange(4), 4, seed)) for seed in range(1000)}
    assert len(orders) == 24


def test_stream_does_not_depend_on_batch_size():
    small = stream(take(60, count=50, batch_size=2, seed=3))
    large = stream(take(3, count=50, batch_size=40, seed=3))
    np.testing.assert_array_equal(small, large)
    np.testing.assert_array_equal(small, shuffled(np.arange(120), 50, 3))


@given(st.integers(0, 60), st.integers(0, 3))
def test_resumed_anywhere_equals_uninterrupted(stop, seed):
    whole = take(70, count=37, batch_size=5, seed=seed)
    position = whole[stop][1]
    assert position == (stop + 1) * 5
    resumed = take(69 - stop, count=37, batch_size=5, seed=seed, start_position=position)
    for (one, after_one), (other, after_other) in zip(whole[stop + 1 :], resumed, strict=True):
        assert after_one == after_other and np.array_equal(one, other)
    # Negative control: one example off is another stream.
    off = take(1, count=37, batch_size=5, seed=seed, start_position=position + 1)
    assert not np.array_equal(off[0][0], whole[stop + 1][0])


def test_prefetched_batches_do_not_move_the_position():
    loader = Loader(lambda indices: indices, count=20, batch_size=4, seed=0, depth=3)
    deadline = time.monotonic() + 5
    while loader._ready.qsize() < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader.position == 0
    next(loader)
    assert loader.position == 4
    loader.close()
    assert loader.position == 4


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_share_the_same_global_batches(hosts):
    arguments = {"count": 50, "batch_size": 16, "seed": 1, "start_position": 7}
    alone = take(6, **arguments)
    shares = [take(6, **arguments, host_index=host, host_count=hosts) for host in range(hosts)]
    for step, (batch, position) in enumerate(alone):
        assert {share[step][1] for share in shares} == {position}
        np.testing.assert_array_equal(np.concatenate([share[step][0] for share in shares]), batch)


def test_an_exception_reaches_the_consumer_after_the_good_batches():
    def assemble(indices):
        if calls.append(None) or len(calls) == 3:
            raise RuntimeError("third batch")
        return len(calls)

    calls = []
    with Loader(assemble, count=10, batch_size=2, seed=0) as loader:
        assert [next(loader)[0], next(loader)[0]] == [1, 2]
        for _ in range(2):  # and again, instead of hanging
            with pytest.raises(RuntimeError, match="third batch"):
                next(loader)
    assert not loader._thread.is_alive()
    assert len(calls) == 3


def test_closing_ends_the_thread_at_once():
    threads = threading.active_count()
    slow = Loader(lambda indices: time.sleep(0.05), count=10, batch_size=2, seed=0)
    full = Loader(lambda indices: indices, count=10, batch_size=2, seed=0, depth=1)
    next(full)
    time.sleep(0.05)
    started = time.monotonic()
    for loader in (slow, full, full):  # closing twice is fine
        loader.close()
        with pytest.raises(StopIteration):
            next(loader)
    assert time.monotonic() - started < 1
    assert threading.active_count() == threads


def test_batches_are_assembled_ahead_and_waiting_is_measured():
    with Loader(lambda indices: time.sleep(0.1), count=10, batch_size=2, seed=0) as loader:
        next(loader)
        assert 0.05 < loader.data_wait_seconds < 1
        time.sleep(0.4)  # the consumer works; two batches become ready
        before = loader.data_wait_seconds
        next(loader), next(loader)
        assert loader.data_wait_seconds - before < 0.05


@pytest.mark.parametrize("batch_size, hosts", [(0, 1), (11, 1), (9, 2)])
def test_impossible_batches_are_refused(batch_size, hosts):
    with pytest.raises(BadInput, match="loader: a batch of .*; set a batch size"):
        Loader(lambda indices: indices, count=10, batch_size=batch_size, seed=0, host_count=hosts)
