"""Stand-ins of cloud services: they record the requests of a launch and answer them as the services would."""

import asyncio
import io
import json

import httplib2
import requests
import urllib3

from launch import launch_flags, xm_launch
from launch.tpu_slices import TpuSlices

IMAGE = "us-docker.pkg.dev/project/images/pplx-jax:1"
PARAMS = ("INITIAL='/gcs/bucket/base'", "CORPUS='/gcs/bucket/corpus'")
RECIPE = "gin/recipes/pplx_embed_4b.gin"
TOGETHER = ("--coordinator=auto", "--startup_seconds=1800")  # how hosts of several find each other
VERTEX = {"executor": "vertex", "project": "project", "stage": "diffusion", "slices": TpuSlices("v5e", "16x16")}


def launched(**options) -> tuple[int, list]:
    """Runs `xm_launch` with these flags. Returns the number of failed trials, and the trials."""
    given = {"gin_files": (RECIPE,), "gin_params": PARAMS, "workdir": "/gcs/bucket/run", "image": IMAGE, **options}
    chosen = launch_flags.Options(**given)
    trials = xm_launch.plan(chosen)
    return asyncio.run(xm_launch.launch(trials, chosen)), trials


def _call_once(cloud) -> None:
    call, cloud.at_look = cloud.at_look, None
    if call:
        call()


class Cluster:
    """Kubernetes' side of the wire: keeps what it is asked, answers as a cluster would.

    A JobSet ends at the second look at it, well unless its name holds a word of `failing`; one that holds a word of
    `refusing` is not taken; the first looks, `unanswered` of them, are answered by an error. One that holds a word of
    `lasting` does not end. A deleted one is still there for one look, as long as its pods end.

    `at_look` is called once, at the first look at one that lasts.
    """

    at_look = None

    def __init__(self, failing=(), refusing=(), unanswered=0, lasting=()):
        self.requests, self.failing, self.looks = [], failing, {}
        self.refusing, self.unanswered, self.lasting, self.deleted = refusing, unanswered, lasting, set()

    def request(self, _pool, method, url, body=None, **_keywords):
        self.requests.append((method, url, json.loads(body) if body else None))
        if method == "POST":
            status, answer = 201, json.loads(body)
            if url + "/" + answer["metadata"]["name"] in self.looks:
                status, answer = 409, {"reason": "AlreadyExists"}
            self.looks.setdefault(f"{url}/{json.loads(body)['metadata']['name']}", 0)
            if any(word in json.loads(body)["metadata"]["name"] for word in self.refusing):
                status, answer = 403, {"message": "jobsets is forbidden"}
        elif self.unanswered:
            self.unanswered -= 1
            status, answer = 503, {"message": "overloaded"}
        elif url.partition("?")[0] not in self.looks:
            status, answer = 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        elif method == "DELETE":
            self.deleted.add(url.partition("?")[0])
            status, answer = 200, {"kind": "Status", "status": "Success"}
        elif url in self.deleted:
            del self.looks[url]
            status, answer = 200, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {}}
        elif any(word in url for word in self.lasting):
            status, answer = 200, {"status": {"conditions": []}}
            _call_once(self)
        else:
            self.looks[url] += 1
            kind = "Failed" if any(word in url for word in self.failing) else "Completed"
            ended = [{"type": kind, "status": "True", "message": "all its pods"}] if self.looks[url] > 1 else []
            status, answer = 200, {"status": {"conditions": [{"type": "Suspended", "status": "False"}, *ended]}}
        content = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json"}
        return urllib3.HTTPResponse(io.BytesIO(content), status=status, headers=headers, preload_content=True)


class Google:
    """Google Cloud's side of the wire: tokens, and Vertex AI, where a job has ended at the second look.

    With `ends` None it does not end before it is cancelled, and then at the second look; `at_look` is called once, at
    the first look at it.
    """

    at_look = None

    def __init__(self, ends="JOB_STATE_SUCCEEDED", running=()):
        self.requests, self.ends, self.running, self.looks = [], ends, list(running), 0
        self.cancelled = False

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
        if request.url.partition("?")[0].endswith(":cancel"):
            self.cancelled, self.looks = True, 0
            return {}
        if request.method == "POST":
            return {**json.loads(request.body), "name": name}
        if request.url.partition("?")[0].endswith("/customJobs"):
            return {"customJobs": self.running}
        self.looks += 1
        if self.cancelled:
            state = "JOB_STATE_CANCELLED" if self.looks > 1 else "JOB_STATE_CANCELLING"
            return {"name": name, "state": state, "error": {"code": 1, "message": "CANCELED"}}
        state = self.ends if self.ends and self.looks > 1 else "JOB_STATE_RUNNING"
        if self.ends is None:
            _call_once(self)
        return {"name": name, "state": state, "error": {"message": "out of quota"}}


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
