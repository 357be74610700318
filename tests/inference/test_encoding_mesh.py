"""The mesh that a model encodes on: copies if a device can hold one, and devices of any host of a real slice."""

import pytest
from helpers import tpu_compile

from pplx_jax.inference.encoding_mesh import copies

GIB = 2**30
MEASURE = """
from pplx_jax.parallel.mesh import REST, Mesh

def measure(topology, copies):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    hosts = sorted({device.process_index for device in devices})
    found = []
    for host in (hosts[0], hosts[-1]):
        local = [device for device in devices if device.process_index == host]
        found.append(list(Mesh(data=copies, fsdp=REST).build(local).devices.shape))
    return found
"""


@pytest.mark.parametrize(
    ("bytes_needed", "memory", "devices", "expected"),
    [
        (1, float("inf"), 4, 4),  # a CPU says nothing of its memory
        (8 * GIB, 16 * GIB, 4, 4),
        (16 * GIB, 16 * GIB, 4, 2),  # half a copy for each device
        (32 * GIB, 16 * GIB, 4, 1),
        (64 * GIB, 16 * GIB, 4, 0),
        (16 * GIB, 16 * GIB, 6, 3),
    ],
)
def test_as_many_copies_as_the_memory_holds(bytes_needed, memory, devices, expected):
    assert copies(bytes_needed, memory, devices) == expected


@pytest.mark.slow
@tpu_compile.needs_libtpu
def test_the_devices_of_every_host_of_a_slice_are_a_mesh():
    cases = [(topology, count) for topology in ("v5e:4x8", "v5p:4x4x4", "v6e:8x8") for count in (1, 2, 4)]
    measured = tpu_compile.compile_all(MEASURE, cases)
    for topology, count in cases:
        assert measured(topology, count) == [[1, count, 4 // count, 1, 1]] * 2
