"""The mesh that a model encodes on: copies if a device can hold one, and devices of any host of a real slice."""

import json

import pytest
from helpers import tpu_compile

from pplx_jax.inference.encoding_mesh import copies

GIB = 2**30
LOCAL = """
import json, sys
from jax.experimental import topologies
from pplx_jax.parallel.mesh import REST, Mesh

found = {}
for name in sys.argv[1:]:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    hosts = sorted({device.process_index for device in devices})
    for host in (hosts[0], hosts[-1]):
        local = [device for device in devices if device.process_index == host]
        for count in (1, 2, 4):
            mesh = Mesh(data=count, fsdp=REST).build(local)
            found[f"{name} {host} {count}"] = [mesh.shape["data"], mesh.shape["fsdp"]]
print(json.dumps(found))
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
    found = json.loads(tpu_compile.run(LOCAL, "v5e:4x8", "v5p:4x4x4", "v6e:8x8").splitlines()[-1])
    assert len(found) == 18
    assert all(data * fsdp == 4 and data == int(name.split()[-1]) for name, (data, fsdp) in found.items())
