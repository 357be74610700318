"""Launches to Kubernetes, up to the last call before the network."""

import json
import re

import pytest
from helpers.fake_clouds import IMAGE, PARAMS, RECIPE, TOGETHER, launched

from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator")  # XManager's database


def environment_of(container):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_a_stage_on_two_slices_is_one_jobset(cluster):
    made = cluster()
    slices = TpuSlices("v5e", "16x16", 2)
    failed, [trial] = launched(
        executor="kubernetes",
        stage="diffusion",
        slices=slices,
        service_account="trainer",
        max_restarts=7,
        gin_params=[*PARAMS, "Mesh.slice=2"],
    )
    assert failed == 0
    method, url, body = made.requests[0]
    assert (method, url) == ("POST", "https://cluster.test/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets")
    name = body["metadata"]["name"]
    assert re.fullmatch(r"pplx-[0-9a-f]{10}-diffusion", name)
    [replicated] = body["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    variables = environment_of(container)
    note = json.loads(variables.pop("PPLX_TRIAL"))
    assert note["workdir"] == "/gcs/bucket/run" and note["record"]["stage"] == "diffusion"
    assert variables == {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}},
        "MEGASCALE_COORDINATOR_ADDRESS": f"{name}-slice-0-0.{name}",
    }
    container.pop("env")
    job.pop("template")
    assert body == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": 7,
                "rules": [{"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": 2, "template": {"spec": job}}],
        },
    }
    exit_codes = {"containerName": "train", "operator": "In", "values": [2]}
    assert job == {
        "completionMode": "Indexed",
        "completions": 64,
        "parallelism": 64,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]},
    }
    words = [f"--gin_file={RECIPE}", *(f"--gin_param={param}" for param in (*PARAMS, "Mesh.slice=2"))]
    assert container == {
        "name": "train",
        "image": IMAGE,
        "args": ["train", *words, "--workdir=/gcs/bucket/run", *TOGETHER, "--stage=diffusion"],
        "ports": [{"containerPort": 8482}, {"containerPort": 8471}],
        "resources": {"limits": {"google.com/tpu": 4}},
        "volumeMounts": [{"name": "bucket", "mountPath": "/gcs/bucket"}],
    }
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert (pod["restartPolicy"], pod["serviceAccountName"]) == ("Never", "trainer")
    [volume] = pod["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"


def test_one_slice_has_no_megascale(cluster):
    made = cluster()
    launched(executor="kubernetes", stage="diffusion", slices=TpuSlices("v5p", "2x2x4"))
    body = made.requests[0][2]
    job = body["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], body["spec"]["replicatedJobs"][0]["replicas"]) == (4, 1)
    container = job["template"]["spec"]["containers"][0]
    assert not [name for name in environment_of(container) if "MEGASCALE" in name]
    assert {*TOGETHER} <= {*container["args"]}


def test_one_host_waits_for_no_other(cluster):
    made = cluster()
    launched(executor="kubernetes", stage="pair", slices=TpuSlices("v5e", "2x4"))
    job = made.requests[0][2]["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert not {*TOGETHER} & {*container["args"]}
    assert (job["completions"], container["resources"]["limits"]) == (1, {"google.com/tpu": 8})


def test_a_stage_waits_for_the_one_before_it(cluster):
    made = cluster()
    failed, _ = launched(executor="kubernetes", slices=TpuSlices("v5e", "4x4"))
    assert failed == 0
    stages = ["diffusion", "pair", "contextual", "triplet", "finish"]
    order = [(method, url.rpartition("-")[2] if method == "GET" else body["metadata"]["name"].rpartition("-")[2])
             for method, url, body in made.requests]  # fmt: skip
    assert order == [(method, stage) for stage in stages for method in ("POST", "GET", "GET")]


def test_after_a_failed_stage_no_other_starts(cluster, capsys):
    made = cluster(failing=("pair",))
    failed, _ = launched(executor="kubernetes", slices=TpuSlices("v5e", "4x4"))
    assert failed == 1 and "all its pods; to try again: kubectl delete jobset pplx-" in capsys.readouterr().err
    assert len([method for method, _, _ in made.requests if method == "POST"]) == 2


def test_another_recipe_in_the_same_place_is_another_job(cluster):
    made = cluster()
    for params in (PARAMS, (*PARAMS, "pair/Training.steps=7")):
        assert launched(executor="kubernetes", stage="pair", slices=TpuSlices("v6e", "8x8"), gin_params=params)[0] == 0
    names = [body["metadata"]["name"] for method, _, body in made.requests if method == "POST"]
    assert len({*names}) == 2


def test_launching_again_finds_the_job_that_is_there(cluster, capsys):
    made = cluster()
    for _ in range(2):
        assert launched(executor="kubernetes", stage="pair", slices=TpuSlices("v6e", "8x8"))[0] == 0
    names = [body["metadata"]["name"] for method, _, body in made.requests if method == "POST"]
    assert len(names) == 2 and names[0] == names[1] and "exists already" in capsys.readouterr().out


def test_a_cluster_that_does_not_answer_for_a_while_is_asked_again(cluster):
    made = cluster(unanswered=3)
    assert launched(executor="kubernetes", stage="pair", slices=TpuSlices("v5e", "4x4"))[0] == 0
    assert [method for method, _, _ in made.requests] == ["POST", *5 * ["GET"]]


def test_a_cluster_that_is_silent_for_good_is_given_up(cluster, capsys):
    cluster(unanswered=1000)
    assert launched(executor="kubernetes", stage="pair", slices=TpuSlices("v5e", "4x4"))[0] == 1
    assert "no answer about it" in capsys.readouterr().err


def test_a_job_that_is_refused_stops_no_other_trial(cluster, capsys):
    made = cluster(refusing=("pair",))
    failed, _ = launched(executor="kubernetes", slices=TpuSlices("v5e", "4x4"))
    error = capsys.readouterr().err
    assert failed == 1 and "pair failed" in error and "jobsets is forbidden" in error
    assert [method for method, _, _ in made.requests] == ["POST", "GET", "GET", "POST"]


@pytest.mark.parametrize(
    "param, slices, told",
    [
        (
            "Mesh.fsdp=-1",
            TpuSlices("v5e", "4x4", 2),
            r"has 1 slices, --num_slices=2; give --gin_file",
        ),
        ("Mesh.slice=2", TpuSlices("v5e", "4x4"), r"has 2 slices, --num_slices=1; give Mesh.slice=1"),
        ("Mesh.fsdp=8", TpuSlices("v5e", "4x4"), r"fsdp=8 has 8 chips, --tpu=v5e --topology=4x4 has 16; give"),
        ("Mesh.tensor=3", TpuSlices("v5e", "4x4"), r"3 does not divide 16 devices"),
    ],
)
def test_a_mesh_of_other_chips_is_refused(param, slices, told):
    with pytest.raises(BadInput, match=told):
        launched(executor="kubernetes", slices=slices, gin_params=[*PARAMS, param])
