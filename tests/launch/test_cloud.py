"""Launches to the cloud, up to the last call before the network: only the transport is replaced, and it answers."""

import asyncio
import io
import json
import pathlib
import re
import tarfile
import time

import httplib2
import pytest
import requests
import urllib3
from absl import flags
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from launch import launch_flags, tpu_executors, xm_launch
from launch.tpu_slices import TpuSlices
from pplx_jax.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator")  # XManager's database
IMAGE = "us-docker.pkg.dev/project/images/pplx-jax:1"
PARAMS = ("INITIAL='/gcs/bucket/base'", "CORPUS='/gcs/bucket/corpus'")
RECIPE = "gin/recipes/pplx_embed_4b.gin"
TOGETHER = ("--coordinator=auto", "--startup_seconds=1800")  # how hosts of several find each other


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A home with credentials of nobody, and XManager's database."""
    folder = tmp_path_factory.mktemp("home")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "client_email": "a@project.iam.gserviceaccount.com", "private_key": pem}
    account |= {"project_id": "project", "token_uri": "https://oauth2.googleapis.com/token"}
    (folder / "account.json").write_text(json.dumps(account))
    cluster = {"name": "c", "cluster": {"server": "https://cluster.test"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    config |= {"current-context": "c", "users": [{"name": "u", "user": {"token": "t"}}]}
    (folder / ".kube").mkdir()
    (folder / ".kube" / "config").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("KUBECONFIG", str(folder / ".kube" / "config"))
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))
        patch.setattr(tpu_executors, "POLL_SECONDS", 0.0)
        flags.FLAGS(["xm_launch"])
        yield folder


def launched(**options) -> tuple[int, list]:
    """What `xm_launch` does with these flags; returns how many trials failed, and the trials."""
    given = {"gin_files": (RECIPE,), "gin_params": PARAMS, "workdir": "/gcs/bucket/run", "image": IMAGE, **options}
    chosen = launch_flags.Options(**given)
    trials = xm_launch.plan(chosen)
    return asyncio.run(xm_launch.launch(trials, chosen)), trials


class Cluster:
    """Kubernetes' side of the wire: keeps what it is asked, answers as a cluster would.

    A JobSet ends at the second look at it, well unless its name holds a word of `failing`.
    """

    def __init__(self, failing=()):
        self.requests, self.failing, self.looks = [], failing, {}

    def request(self, _pool, method, url, body=None, **_keywords):
        self.requests.append((method, url, json.loads(body) if body else None))
        if method == "POST":
            status, answer = 201, json.loads(body)
            if url + "/" + answer["metadata"]["name"] in self.looks:
                status, answer = 409, {"reason": "AlreadyExists"}
            self.looks.setdefault(f"{url}/{json.loads(body)['metadata']['name']}", 0)
        else:
            self.looks[url] += 1
            kind = "Failed" if any(word in url for word in self.failing) else "Completed"
            ended = [{"type": kind, "status": "True", "message": "all its pods"}] if self.looks[url] > 1 else []
            status, answer = 200, {"status": {"conditions": [{"type": "Suspended", "status": "False"}, *ended]}}
        content = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json"}
        return urllib3.HTTPResponse(io.BytesIO(content), status=status, headers=headers, preload_content=True)


@pytest.fixture
def cluster(monkeypatch):
    def make(**keywords):
        made = Cluster(**keywords)
        monkeypatch.setattr(urllib3.PoolManager, "request", lambda *words, **more: made.request(*words, **more))
        return made

    return make


def environment_of(container):
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_a_stage_on_two_slices_is_one_jobset(cluster):
    made = cluster()
    slices = TpuSlices("v5e", "16x16", 2)
    failed, [trial] = launched(
        executor="kubernetes", stage="diffusion", slices=slices, service_account="trainer", max_restarts=7
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
    words = [f"--gin_file={RECIPE}", *(f"--gin_param={param}" for param in PARAMS)]
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
    assert len(names) == 2 and names[0] == names[1] and "is there already" in capsys.readouterr().out


class Google:
    """Google Cloud's side of the wire: tokens, and Vertex AI, where a job has ended at the second look."""

    def __init__(self, ends="JOB_STATE_SUCCEEDED", running=()):
        self.requests, self.ends, self.running, self.looks = [], ends, list(running), 0

    def send(self, request, **_keywords):
        if "oauth2" in request.url:
            answer = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}
        elif "allowedLocations" in request.url:  # asked by the authentication library
            answer = {"locations": [], "encodedLocations": "0x0"}
        else:
            is_json = isinstance(request.body, str | bytes) and request.body[:1] in ("{", b"{")
            self.requests.append((request.method, request.url, json.loads(request.body) if is_json else None))
            answer = self.answer(request)
        response = requests.Response()
        response.status_code, response.raw = 200, io.BytesIO(json.dumps(answer).encode())
        response.headers["content-type"], response.request = "application/json", request
        return response

    def answer(self, request):
        name = "projects/1/locations/us-central1/customJobs/7"
        if request.method == "POST":
            return {**json.loads(request.body), "name": name}
        if request.url.partition("?")[0].endswith("/customJobs"):
            return {"customJobs": self.running}
        self.looks += 1
        state = self.ends if self.looks > 1 else "JOB_STATE_RUNNING"
        return {"name": name, "state": state, "error": {"message": "out of quota"}}


@pytest.fixture
def google(monkeypatch):
    def make(kind=Google, **keywords):
        made = kind(**keywords)
        adapter = requests.adapters.HTTPAdapter
        monkeypatch.setattr(adapter, "send", lambda _adapter, *words, **more: made.send(*words, **more))
        return made

    return make


VERTEX = {"executor": "vertex", "project": "project", "stage": "diffusion", "slices": TpuSlices("v5e", "16x16")}


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


@pytest.mark.parametrize(
    "options, words",
    [
        ({**VERTEX, "slices": TpuSlices("v5p", "4x4x4")}, "trains on v5e and v6e"),
        ({**VERTEX, "slices": TpuSlices("v5e", "4x4", 2)}, "trains on one slice"),
        ({**VERTEX, "project": None}, "wants --project"),
        ({**VERTEX, "slices": None}, "wants hardware"),
        ({**VERTEX, "image": None}, "--repository"),
        ({**VERTEX, "workdir": "/home/me/run"}, "give /gcs/BUCKET/RUN"),
        ({**VERTEX, "workdir": "run"}, "absolute"),
        ({**VERTEX, "base": "run"}, "absolute"),
        ({**VERTEX, "stage": "merge"}, "the recipe has diffusion, pair"),
        ({**VERTEX, "gin_params": (*PARAMS[:1], "CORPUS='gin'")}, "give the whole path"),
        ({**VERTEX, "gin_files": ()}, "--gin_file or --sweep"),
        ({**VERTEX, "gin_files": ("/etc/passwd",)}, "is not in .*gin"),
        ({"executor": "local", "slices": TpuSlices("v5e", "4x4")}, "--tpu goes with"),
    ],
)
def test_flags_that_do_not_go_together(options, words, monkeypatch):
    monkeypatch.chdir(pathlib.Path(xm_launch.__file__).parents[1])
    with pytest.raises(BadInput, match=words):
        launched(**options)


class Builder(Google):
    """Also the bucket that the packaged tree is uploaded to, and Cloud Build."""

    def answer(self, request):
        if "storage.googleapis.com" in request.url:
            if request.method == "POST":  # one request with the archive in its body, between two boundaries
                body = request.body if isinstance(request.body, bytes) else request.body.read()
                self.archive = body[body.index(b"\x1f\x8b") :]
            return {"name": "archive", "bucket": "builds"}
        return super().answer(request)

    def build(self, _http, uri, method="GET", body=None, **_keywords):
        self.requests.append((method, uri, json.loads(body) if body else None))
        answer = {"status": "SUCCESS", "results": {"images": [{"name": "image", "digest": "sha256:1"}]}}
        if method == "POST":
            answer = {"metadata": {"build": {"logUrl": "https://log.test", "id": "b1"}}}
        return httplib2.Response({"status": "200", "content-type": "application/json"}), json.dumps(answer).encode()


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
    assert {"Dockerfile", "setup.py", "constraints.txt", "launch/entry.py", "pplx_jax/cli.py"} <= names
    assert "gin/recipes/pplx_embed_4b.gin" in names
    assert not [name for name in names if name.startswith(("tests", ".", "benchmarks")) or "__pycache__" in name]
