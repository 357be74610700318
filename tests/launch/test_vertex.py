"""Launches to Vertex AI, up to the last call before the network, and the image that is built for them."""

import io
import json
import re
import tarfile
import time

import httplib2
import pytest
from helpers.fake_clouds import IMAGE, PARAMS, RECIPE, TOGETHER, VERTEX, Builder, launched

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator")  # XManager's database


def test_a_stage_on_vertex_is_one_custom_job(google):
    made = google()
    failed, _ = launched(**VERTEX, service_account="trainer@project.iam.gserviceaccount.com")
    assert failed == 0
    listed, (method, url, body), *polls = made.requests
    endpoint = "https://us-central1-aiplatform.googleapis.com/v1/projects/project/locations/us-central1/customJobs"
    assert listed[0] == "GET" and listed[1].startswith(endpoint + "?") and "display_name" in listed[1]
    assert (method, url.partition("?")[0]) == ("POST", endpoint)
    assert re.fullmatch(r"pplx-[0-9a-f]{10}-diffusion", body["displayName"])
    container = body["jobSpec"]["workerPoolSpecs"][0].pop("containerSpec")
    assert body["jobSpec"] == {
        "workerPoolSpecs": [
            {"machineSpec": {"machineType": "ct5lp-hightpu-4t", "tpuTopology": "16x16"}, "replicaCount": "1"}
        ],
        "scheduling": {"restartJobOnWorkerRestart": True, "timeout": "2419200s"},
        "serviceAccount": "trainer@project.iam.gserviceaccount.com",
    }
    [variable] = container.pop("env")
    assert variable["name"] == "PPLX_TRIAL" and json.loads(variable["value"])["workdir"] == "/gcs/bucket/run"
    words = [f"--gin_file={RECIPE}", *(f"--gin_param={param}" for param in PARAMS)]
    assert container == {
        "imageUri": IMAGE,
        "args": ["train", *words, "--workdir=/gcs/bucket/run", *TOGETHER, "--stage=diffusion"],
    }
    assert len(polls) == 2 and all(url.partition("?")[0].endswith("/customJobs/7") for _, url, _ in polls)


def test_a_job_that_fails_on_vertex_is_told(google, capsys):
    google(ends="JOB_STATE_FAILED")
    assert launched(**VERTEX)[0] == 1
    assert "JOB_STATE_FAILED: out of quota" in capsys.readouterr().err


def test_a_job_that_runs_on_vertex_is_not_started_twice(google):
    running = {"name": "projects/1/locations/us-central1/customJobs/7", "displayName": "the same"}
    made = google(running=[running])
    assert launched(**VERTEX)[0] == 0
    assert not [method for method, _, _ in made.requests if method == "POST"]


def test_the_working_tree_is_built_into_an_image(google, monkeypatch):
    made = google(kind=Builder)
    monkeypatch.setattr(httplib2.Http, "request", lambda _http, *words, **more: made.build(_http, *words, **more))
    monkeypatch.setenv("GOOGLE_CLOUD_BUCKET_NAME", "builds")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")  # no Docker: Cloud Build is what is left
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    repository = "us-docker.pkg.dev/project/images"
    failed, [trial] = launched(**VERTEX, image=None, repository=repository)
    assert failed == 0
    image = f"{repository}/pplx-jax:{trial.record['package']}"
    bodies = [body for method, _, body in made.requests if method == "POST" and body]
    build = next(body for body in bodies if "steps" in body)
    assert build["images"] == [f"{repository}/pplx-jax"] and image in build["steps"][0]["args"]
    job = next(body for body in bodies if "jobSpec" in body)
    assert job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["imageUri"] == image
    with tarfile.open(fileobj=io.BytesIO(made.archive), mode="r|gz") as archive:
        names = {member.name.lstrip("/") for member in archive}
    assert {"Dockerfile", "setup.py", "constraints.txt", "launch/entry.py", "pplx_jax/cli/main.py"} <= names
    assert "gin/recipes/pplx_embed_4b.gin" in names
    assert not [name for name in names if name.startswith(("tests", ".", "benchmarks")) or "__pycache__" in name]
