"""The processes of a job on Cloud TPU, from the variables of GKE and from the metadata of a VM."""

import http.server
import threading

import pytest
from helpers.job import free_ports

from pplx_jax.core.errors import ProcessLost
from pplx_jax.parallel import processes, tpu_hosts
from pplx_jax.parallel.processes import Processes, joined
from pplx_jax.parallel.tpu_hosts import TpuHosts, metadata_of_vm

GKE = {"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a,a-2.a", "TPU_WORKER_ID": "2"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first.a:8080"}


def nothing(name: str) -> str:
    return ""


def test_a_slice_of_gke():
    hosts = ["a-0.a", "a-1.a", "a-2.a"]
    assert tpu_hosts.tpu_hosts(GKE, nothing) == TpuHosts("a-0.a:8482", 2, hosts)
    addresses = {"TPU_PROCESS_ADDRESSES": "b-0:8471,b-1:8471", "JAX_COORDINATOR_PORT": "9000"}
    assert tpu_hosts.tpu_hosts({**GKE, **addresses, "TPU_WORKER_ID": "1"}, nothing) == TpuHosts(
        "b-0:9000", 1, ["b-0", "b-1"]
    )


def test_two_slices_of_gke():
    found = tpu_hosts.tpu_hosts({**GKE, **SLICES}, nothing)
    assert found == TpuHosts(
        "first.a:8482", 5, ["slice 0, host 0", "slice 0, host 1", "slice 0, host 2", "a-0.a", "a-1.a", "a-2.a"]
    )


METADATA = {
    "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    "agent-worker-number": "1",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nNODE_ID: 'pplx'\n",
}


def test_a_vm_asks_its_metadata(monkeypatch):
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            found = METADATA.get(self.path.rpartition("/")[2])
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write((found or "no").encode())

        def log_message(self, *_):
            pass

    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(tpu_hosts, "has_tpu", lambda: True)
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_address[1]}")
        assert tpu_hosts.tpu_hosts({}) == TpuHosts("10.0.0.2:8482", 1, ["10.0.0.2", "10.0.0.3"])
        assert metadata_of_vm("other") == ""
        server.shutdown()
    assert ("/computeMetadata/v1/instance/attributes/agent-worker-number", "Google") in asked
    assert metadata_of_vm("tpu-env") == ""  # nothing answers


def test_the_slices_of_a_vm_are_in_its_metadata():
    several = {**METADATA, "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"}
    found = tpu_hosts.tpu_hosts({}, lambda name: several.get(name, ""))
    assert found == TpuHosts("10.0.0.2:8482", 3, ["slice 0, host 0", "slice 0, host 1", "10.0.0.2", "10.0.0.3"])


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "x"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "2"},
        {**GKE, "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2"},
    ],
)
def test_elsewhere_jax_finds_the_processes(environment):
    assert tpu_hosts.tpu_hosts(environment, nothing) is None


def test_auto_names_the_host_that_never_starts(monkeypatch):
    monkeypatch.setattr(processes, "tpu_hosts", lambda environment: tpu_hosts.tpu_hosts(environment, nothing))
    for name, value in {"TPU_WORKER_HOSTNAMES": "localhost,host-b,host-c", "TPU_WORKER_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(free_ports()))
    monkeypatch.setattr(processes.jax.config, "update", lambda *_: None)  # not for the other tests of this process
    missing = "process 0 of 3 waited 0.3 s for process 1 on host-b, 2 on host-c; start the same command on every host"
    with pytest.raises(ProcessLost, match=missing), joined(Processes(coordinator="auto", startup_seconds=0.3)):
        pass
