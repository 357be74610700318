"""The batches of a process: equal for any number of processes and any device order; references find their texts."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from helpers import tiny

from pplx_jax.core.errors import BadInput
from pplx_jax.data.batches import host_batches
from pplx_jax.data.batches.host_batches import HostBatches
from pplx_jax.data.batches.shares import best_groups, packed_part, shard_count, shares

BATCH = 8
# Which process holds which of eight shards of the rows: neighbours, a torus of 2 x 2 hosts, and shards held twice.
ORDERS = {
    "one process": [0] * 8,
    "neighbours": [0, 0, 1, 1, 2, 2, 3, 3],
    "torus": [0, 1, 0, 1, 2, 3, 2, 3],
    "scattered": [3, 1, 0, 2, 0, 3, 2, 1],
    "held twice": [0, 0, 1, 1],
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return tiny.tiny_tables(folder, tiny.tiny_vocabulary(folder))


class Device(NamedTuple):
    """Of a process that is not there."""

    process_index: int
    number: int


@dataclasses.dataclass(frozen=True)
class Spread:
    """Stands for a sharding of the first axis over devices of several processes."""

    processes: tuple[int, ...]
    replicas: int = 1

    @property
    def device_set(self):
        return {*self._devices()}

    def _devices(self):
        return [Device(p, n) for n, p in enumerate(np.repeat(self.processes, self.replicas))]

    def shard_shape(self, shape):
        return (shape[0] // len(self.processes), *shape[1:])

    def devices_indices_map(self, shape):
        size = shape[0] // len(self.processes)
        return {
            device: (slice(device.number // self.replicas * size, (device.number // self.replicas + 1) * size),)
            for device in self._devices()
        }


def spread(order: str) -> Spread:
    return Spread(tuple(ORDERS[order]), replicas=2 if order == "held twice" else 1)


def stage(name: str, **fields):
    return dataclasses.replace(tiny.STAGES[name], **{"batch_size": BATCH, **fields}).batch


def batches_of(monkeypatch, process: int, spec, table, sharding, groups: int) -> HostBatches:
    """The batches as process `process` would make them; arrays of its shards, by the start of their rows."""

    def place(shape, sharding, callback):
        held = {
            device: index
            for device, index in sharding.devices_indices_map(shape).items()
            if device.process_index == process
        }
        return {index[0].start: callback(index) for index in held.values()}

    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # not one: the arrays are made shard by shard
    monkeypatch.setattr(jax, "make_array_from_callback", place)
    return HostBatches(spec, table, None, 0, sharding, groups=groups)


def whole(spec, table, groups: int, position: int = 0):
    """The batch of one process with one device for each of eight shards."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    return HostBatches(spec, table, None, 0, sharding, groups=groups).at(position)


@pytest.mark.parametrize("name", tiny.STAGES)
@pytest.mark.parametrize("order, groups", [*itertools.product(ORDERS, [1, 4]), ("scattered", 8)])
def test_the_shards_of_all_processes_are_one_batch(tables, monkeypatch, name, order, groups):
    spec, sharding = stage(name), spread(order)
    processes = sorted(set(sharding.processes))
    parts, counts = {}, []
    for process in processes:
        batch = batches_of(monkeypatch, process, spec, tables[name], sharding, groups).at(0)
        counts.append(batch.counts)
        for key, shards in batch.arrays.items():
            for start, shard in shards.items():
                np.testing.assert_array_equal(parts.setdefault(key, {}).setdefault(start, shard), shard)
    monkeypatch.undo()
    together = {key: np.concatenate([shards[start] for start in sorted(shards)]) for key, shards in parts.items()}
    shards = len(sharding.processes)
    # One process packs the same groups into as many sequences.
    monkeypatch.setattr(host_batches, "shard_count", lambda _: shards)
    alone = whole(spec, tables[name], groups)
    assert together.keys() == alone.arrays.keys()
    for key, array in together.items():
        np.testing.assert_array_equal(array, alone.arrays[key], err_msg=key)
    for key in host_batches.COUNTS:  # every group is counted once
        assert sum(count[key] for count in counts) == alone.counts[key]


@pytest.mark.parametrize("name", tiny.STAGES)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_batch_is_the_same_on_any_number_of_devices(tables, monkeypatch, name, microbatches):
    """Also where there is too little space, so that texts are cut. More devices only add empty sequences."""
    spec, positions = dataclasses.replace(stage(name, microbatches=microbatches), length=20), (0, 32, 40, 72)
    one = [whole(spec, tables[name], groups=1, position=position) for position in positions]
    assert name == "pair" or microbatches > 1 or any(batch.counts["cut_tokens"] for batch in one)
    for shards in (3, 8):
        monkeypatch.setattr(host_batches, "shard_count", lambda _, shards=shards: shards)
        for alone, position in zip(one, positions, strict=True):
            many = whole(spec, tables[name], groups=1, position=position)
            assert len(many.arrays["tokens"]) % (shards * microbatches) == 0
            assert {**many.counts, "cells": 0} == {**alone.counts, "cells": 0}
            for key, array in alone.arrays.items():
                found = np.asarray(many.arrays[key])
                np.testing.assert_array_equal(found[: len(array)], array, err_msg=key)
                if len(found) > len(array):
                    assert np.unique(found[len(array) :]).tolist() == [tables[name].pad_id if key == "tokens" else 0]


@pytest.mark.parametrize("name", ["pair", "triplet", "contextual"])
def test_references_find_their_texts_among_all_sequences(tables, name):
    """The query that a reference points at is the one that the table has."""
    table = tables[name]
    batch = whole(stage(name), table, groups=2)
    arrays = {key: np.asarray(array) for key, array in batch.arrays.items()}
    for example, (row, slot) in zip(batch.rows, arrays["query"], strict=True):
        own = arrays["tokens"][row][arrays["chunk_ids"][row] == slot + 1]
        start, stop = table["query"].offsets[example : example + 2]
        np.testing.assert_array_equal(own, table["query"].values[start:stop][: len(own)])


def test_pairs_of_tokens_are_squares_of_lengths(tables):
    batch = whole(stage("diffusion"), tables["diffusion"], groups=1)
    lengths = [np.bincount(row, minlength=2)[1:] for row in np.asarray(batch.arrays["segment_ids"])]
    assert batch.counts["token_pairs"] == sum(int(np.sum(row.astype(int) ** 2)) for row in lengths)


def test_work_that_several_processes_do_is_said_with_the_number_that_shares_it(tables, monkeypatch, caplog):
    batches_of(monkeypatch, 0, stage("pair"), tables["pair"], spread("torus"), groups=2)
    assert "packed in 2 groups, and the 4 processes pack 4" in caplog.text
    assert "Training.packing_groups=8" in caplog.text
    caplog.clear()
    batches_of(monkeypatch, 0, stage("pair"), tables["pair"], spread("torus"), groups=8)
    assert not caplog.text


@pytest.mark.parametrize("order", ORDERS)
def test_a_process_packs_the_groups_that_its_devices_hold_a_part_of(order):
    sharding = spread(order)
    shards = shard_count(sharding)
    assert shards == len(ORDERS[order])
    for groups in (1, 2, shards, 2 * shards):
        shared = shares(sharding, groups)
        counted = sorted(group for share in shared.values() for group in share.counted)
        assert counted == list(range(groups))
        for process, share in shared.items():
            held = {shard for shard, holder in enumerate(sharding.processes) if holder == process}
            assert share.packed == [g for g in range(groups) if any(g * shards < (s + 1) * groups and s * groups < (g + 1) * shards for s in held)]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    "order, batch_size, best, part",
    [
        ("one process", 8, 1, 1),
        ("neighbours", 8, 4, 1 / 4),
        ("torus", 8, 8, 1 / 4),
        ("scattered", 16, 8, 1 / 4),
        ("held twice", 8, 2, 1 / 2),
        ("neighbours", 6, 6, 1 / 3),  # four groups do not divide it
    ],
)
def test_the_fewest_groups_that_share_the_work(order, batch_size, best, part):
    sharding = spread(order)
    assert best_groups(sharding, batch_size) == best
    assert float(packed_part(shares(sharding, best))) == part
    assert packed_part(shares(sharding, 1)) == 1


def test_batches_resume_at_any_position(tables):
    spec, table = stage("pair"), tables["pair"]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    with HostBatches(spec, table, None, 0, sharding) as batches:
        found = [next(batches) for _ in range(4)]
        assert [batch.position for batch in found] == [8, 16, 24, 32]
        again = batches.at(16)
        assert np.array_equal(again.arrays["tokens"], found[2].arrays["tokens"]) and again.position == 24
        assert next(batches).position == 40  # reading again moved nothing
    resumed = HostBatches(spec, table, None, 0, sharding)
    resumed.seek(16)
    with resumed:
        assert np.array_equal(next(resumed).arrays["tokens"], found[2].arrays["tokens"])
    assert not np.array_equal(found[1].arrays["tokens"], found[2].arrays["tokens"])  # control


def test_a_batch_that_does_not_divide_is_bad_input(tables):
    with pytest.raises(BadInput, match="batch of 8 cannot be packed in 3 equal groups"):
        whole(stage("pair"), tables["pair"], groups=3)


def test_a_process_without_a_device_in_the_mesh_is_bad_input(tables, monkeypatch):
    with pytest.raises(BadInput, match="process 7 has no device in the mesh"):
        batches_of(monkeypatch, 7, stage("pair"), tables["pair"], spread("torus"), groups=1)
