"""A job on TPU slices of Google Kubernetes Engine: a JobSet with a child job for each slice and a pod for each host.

JobSet (jobset.sigs.k8s.io) starts all hosts of all slices together. When one host fails or is preempted, it restarts
all of them, and training resumes from its last checkpoint.

Google's `xpk` 1.16 does not replace this: it needs a cluster that it created itself, has no Python API for a manifest,
can list only the exit codes to restart on (here: all but one), and pins urllib3<2.6 and kubernetes==35.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.buckets import MOUNT
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BAD_INPUT

GROUP, VERSION, PLURAL, NAMESPACE = "jobset.x-k8s.io", "v1alpha2", "jobsets", "default"
COORDINATOR_PORT, RUNTIME_PORT = 8482, 8471


def jobset(
    name: str,
    image: str,
    args: Sequence[str],
    environment: Mapping[str, str],
    slices: TpuSlices,
    bucket: str,
    *,
    service_account: str,
    max_restarts: int,
) -> dict[str, Any]:
    """Returns the manifest of the JobSet.

    Args:
      name: name of the JobSet, which is also part of the host names.
      image: container image; its entry point is `launch/entry.py`.
      args: the arguments of `pplx-jax`.
      environment: environment variables of every host.
      slices: the hardware.
      bucket: mounted at /gcs/BUCKET.
      service_account: name of a Kubernetes account with access to the bucket.
      max_restarts: number of restarts of all hosts before the job has failed.
    """
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    if slices.num_slices > 1:
        job_index = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}}
        variables += [
            {"name": "MEGASCALE_NUM_SLICES", "value": str(slices.num_slices)},
            {"name": "MEGASCALE_SLICE_ID", "valueFrom": job_index},
            {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": f"{name}-slice-0-0.{name}"},
        ]
    container = {
        "name": "train",
        "image": image,
        "args": list(args),
        "env": variables,
        "ports": [{"containerPort": COORDINATOR_PORT}, {"containerPort": RUNTIME_PORT}],
        "resources": {"limits": {"google.com/tpu": slices.chips_per_host}},
        "volumeMounts": [{"name": "bucket", "mountPath": f"{MOUNT}/{bucket}"}],
    }
    volume = {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
    }
    pod = {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": service_account,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": slices.node_label,
                "cloud.google.com/gke-tpu-topology": slices.topology,
            },
            "containers": [container],
            "volumes": [{"name": "bucket", "csi": volume}],
            # Time for a last checkpoint on a preempted host.
            "terminationGracePeriodSeconds": 120,
        },
    }
    # Bad input stays bad after a restart, so the JobSet fails at once.
    bad_input = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [BAD_INPUT]},
    }
    give_up = {"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    slice_job = {
        "completionMode": "Indexed",
        "completions": slices.hosts,
        "parallelism": slices.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [bad_input]},
        "template": pod,
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            # Each child job gets a node pool (a slice) that it shares with no other.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": max_restarts, "rules": [give_up]},
            "replicatedJobs": [
                {"name": "slice", "replicas": slices.num_slices, "template": {"spec": slice_job}},
            ],
        },
    }
