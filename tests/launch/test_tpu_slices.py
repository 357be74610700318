"""What Google Cloud calls the hardware, against its own tables and the device lists of libtpu."""

import pytest
from helpers import rehearsals, tpu_compile

from launch import tpu_slices
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput
from pplx_jax.plan.chips import Topology


@pytest.mark.parametrize(
    "kind, topology, hosts, chips_per_host, machine, label",
    [
        ("v5e", "1x1", 1, 1, "ct5lp-hightpu-1t", "tpu-v5-lite-podslice"),
        ("v5e", "2x2", 1, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
        ("v5e", "2x4", 1, 8, "ct5lp-hightpu-8t", "tpu-v5-lite-podslice"),
        ("v5e", "4x4", 4, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
        ("v5e", "16x16", 64, 4, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
        ("v5p", "2x2x1", 1, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
        ("v5p", "2x2x4", 4, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
        ("v5p", "4x4x8", 32, 4, "ct5p-hightpu-4t", "tpu-v5p-slice"),
        ("v6e", "2x4", 1, 8, "ct6e-standard-8t", "tpu-v6e-slice"),
        ("v6e", "16x16", 64, 4, "ct6e-standard-4t", "tpu-v6e-slice"),
    ],
)
def test_hosts_and_names(kind, topology, hosts, chips_per_host, machine, label):
    slices = TpuSlices(kind, topology)
    assert (slices.hosts, slices.chips_per_host, slices.machine_type) == (hosts, chips_per_host, machine)
    assert slices.node_label == label and slices.hosts * slices.chips_per_host == slices.chips
    assert hosts == 1 or TpuSlices(kind, topology, 2).all_chips == 2 * slices.chips


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("v4", "2x2x1"), "the kinds are v5e, v5p, v6e"),
        (("v5e", "16x8"), "8x16"),
        (("v5e", "2x2x1"), "v5e has 1x1"),
        (("v5p", "4x4"), "v5p has"),
        (("v5p", "4x4x6"), "v5p has"),
        (("v5p", "8x4x4"), "rising order"),
        (("v5p", "2x2x8"), "v5p has 2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4"),
        (("v5p", "20x20x24"), "up to 8960 chips"),
        (("v5p", "4x4x260"), "rising order"),
        (("v5e", "2x2", 2), "slices of one host cannot be joined"),
        (("v5e", "4x4", 0), "--num_slices=0"),
    ],
)
def test_what_does_not_exist(arguments, words):
    with pytest.raises(BadInput, match=words):
        TpuSlices(*arguments)


@pytest.mark.slow
@tpu_compile.needs_libtpu
def test_the_hosts_are_those_of_libtpu():
    """Every topology of v5e and v6e, and of v5p the small ones and some of each shape of large ones."""
    large = ("4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x24")
    every = [(kind, topology) for kind in ("v5e", "v6e") for topology in tpu_slices.PLANE]
    every += [("v5p", topology) for topology in (*tpu_slices.SMALL_V5P, *large)]
    slices = [TpuSlices(*each) for each in every] + [TpuSlices("v6e", "4x4", 2), TpuSlices("v5p", "4x4x8", 2)]
    known = rehearsals.in_worker("hosts", [Topology(f"{one.kind}:{one.topology}", one.num_slices) for one in slices])
    for one, chips in zip(slices, known, strict=True):
        assert chips == one.hosts * one.num_slices * [one.chips_per_host], one
