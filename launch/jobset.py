"""A job on TPU slices of Google Kubernetes Engine: one JobSet, a slice a child job, a host a pod.

JobSet (jobset.sigs.k8s.io) starts all hosts of all slices together and, when one fails or is preempted, all of them
anew: training goes on from its last checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.buckets import MOUNT
from launch.tpu_slices import TpuSlices

GROUP, VERSION, PLURAL, NAMESPACE = "jobset.x-k8s.io", "v1alpha2", "jobsets", "default"
COORDINATOR_PORT, RUNTIME_PORT = 8482, 8471
BAD_INPUT = 2  # of `pplx-jax`


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
    """The manifest, as Kubernetes takes it.

    Args:
      name: of the JobSet; hosts find each other by it.
      image: whose entry point is `launch/entry.py`.
      args: the words after `pplx-jax`.
      environment: of every host.
      slices: hardware.
      bucket: mounted at /gcs/BUCKET.
      service_account: of Kubernetes, with access to the bucket.
      max_restarts: how often all hosts start anew before the job has failed.
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
            # A preempted host gets this long for a last checkpoint.
            "terminationGracePeriodSeconds": 120,
        },
    }
    # What is wrong with a recipe will be wrong again: no restart for that.
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
            # A child job has a node pool, which is a slice, to itself.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": max_restarts, "rules": [give_up]},
            "replicatedJobs": [
                {"name": "slice", "replicas": slices.num_slices, "template": {"spec": slice_job}},
            ],
        },
    }
