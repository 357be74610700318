"""The processes of a job on Cloud TPU: one per host, numbered as JAX numbers them.

`jax.distributed.initialize` reads the same values (jax/_src/clusters/cloud_tpu_cluster.py). We read them too, because
it aborts without a name if a host does not start.
"""

import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pplx_jax.core.native_logs import has_tpu

_PORT = "8482"  # JAX's default on TPU
_METADATA = "http://{}/computeMetadata/v1/instance/attributes/{}"
_METADATA_SECONDS = 10.0


class TpuHosts(NamedTuple):
    """The hosts of all slices.

    Attributes:
      coordinator: HOST:PORT of process 0.
      index: of this process.
      names: of the host of each process; "slice 1, host 3" for those of other slices, whose names are not known.
    """

    coordinator: str
    index: int
    names: list[str]


def metadata_of_vm(name: str) -> str:
    """Returns an attribute of this Cloud TPU VM; "" if this is no such machine or it has no such attribute."""
    if not has_tpu() or "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(_METADATA.format(server, name), headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def tpu_hosts(environment: Mapping[str, str], metadata: Callable[[str], str] = metadata_of_vm) -> TpuHosts | None:
    """Returns the hosts of this job, from the variables of GKE, else from the metadata of a Cloud TPU VM.

    Args:
      environment: TPU_WORKER_HOSTNAMES and TPU_WORKER_ID of a slice; for several slices MEGASCALE_NUM_SLICES,
        MEGASCALE_SLICE_ID and MEGASCALE_COORDINATOR_ADDRESS; JAX_COORDINATOR_PORT.
      metadata: returns an attribute of the machine, or "".

    Returns:
      None if nothing tells them, or there is only one.
    """
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    worker, more = environment.get("TPU_WORKER_ID", ""), environment
    if not worker:
        workers, worker = metadata("worker-network-endpoints"), metadata("agent-worker-number")
        told = re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*)", metadata("tpu-env"), re.MULTILINE)
        more = {**dict(told), **environment}
    hosts = [_host(endpoint) for endpoint in workers.split(",") if endpoint]
    try:
        index = int(worker)
        slices, own = int(more.get("MEGASCALE_NUM_SLICES") or 1), int(more.get("MEGASCALE_SLICE_ID") or 0)
    except ValueError:
        return None
    if len(hosts) * slices < 2 or not (index < len(hosts) and own < slices):
        return None
    first = (more.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    names = [
        host if slice_id == own else f"slice {slice_id}, host {number}"
        for slice_id in range(slices)
        for number, host in enumerate(hosts)
    ]
    port = environment.get("JAX_COORDINATOR_PORT", _PORT)
    return TpuHosts(f"{first}:{port}", own * len(hosts) + index, names)


def _host(endpoint: str) -> str:
    """Returns the address in HOST, HOST:PORT, or NAME:ID:ADDRESS of the metadata."""
    parts = endpoint.strip().split(":")
    return parts[2] if len(parts) == 3 else parts[0]
