"""Load on a server of this machine: latency against throughput, requests of mixed sizes, overload and recovery.

Clients on loopback send one request after the other, each of 1 to 16 texts of the file. For every number of clients:
requests and texts per second, and the percentiles of latency. Then a server with a short queue gets more than it can
answer: some requests get status 429, and after that a single one is answered as fast as before. `--export` names the
same model in the layout of sentence-transformers, which is served by the same server library, without joint batches.

Usage: python benchmarks/serve_load.py --model DIR --texts FILE.jsonl [--export DIR] [--seconds 10] [--output FILE]
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import http.client
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_jax.core.files import write_json

CLIENTS, SIZES, OVERLOAD = (1, 4, 16), (1, 1, 1, 4, 16), 64
SHORT_QUEUE = ["--max_queued_tokens=2000", "--max_batch_tokens=1024"]


def request(port: int, texts: list[str]) -> tuple[int, float]:
    """Sends one request and returns (status, seconds)."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        body = json.dumps({"input": texts, "encoding_format": "base64_int8"})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status, time.perf_counter() - started
    finally:
        connection.close()


def client(port: int, texts: list[str], seconds: float, seed: int) -> list[tuple[int, float, int]]:
    """Sends requests for some seconds. Returns (status, seconds, texts) of each."""
    rng, done, end = random.Random(seed), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        size = rng.choice(SIZES)
        done.append((*request(port, rng.choices(texts, k=size)), size))
    return done


def load(port: int, texts: list[str], clients: int, seconds: float) -> dict[str, Any]:
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(client, port, texts, seconds, seed) for seed in range(clients)]
        done = [each for job in jobs for each in job.result()]
    good = [(took, size) for status, took, size in done if status == 200]
    statuses = sorted({status for status, _, _ in done})
    report: dict[str, Any] = {"statuses": {str(s): sum(status == s for status, _, _ in done) for s in statuses}}
    if good:
        taken = np.array([took for took, _ in good])
        report["requests_per_second"] = round(len(good) / seconds, 1)
        report["texts_per_second"] = round(sum(size for _, size in good) / seconds, 1)
        report["milliseconds"] = {f"p{p}": round(1000 * float(np.percentile(taken, p)), 1) for p in (50, 95, 99)}
    return report


@contextlib.contextmanager
def served(command: list[str]) -> Iterator[int]:
    """Starts a server and yields its port once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, f"--port={port}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.2)
        request(port, ["warm up"])
        yield port
    finally:
        process.terminate()
        process.wait(30)


def serve_export(folder: pathlib.Path, port: int) -> None:
    """Serves a sentence-transformers folder: one request after the other, in a thread."""
    import base64

    import uvicorn
    from sentence_transformers import SentenceTransformer
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)

    async def embeddings(http: Request) -> JSONResponse:
        texts = (await http.json())["input"]
        vectors = await run_in_threadpool(model.encode, texts)
        data = [{"embedding": base64.b64encode(np.asarray(vector, np.int8).tobytes()).decode()} for vector in vectors]
        return JSONResponse({"data": data})

    app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--texts", type=pathlib.Path)
    parser.add_argument("--export", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--serve_export", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_export:
        serve_export(given.serve_export, given.port)
        return
    texts = [json.loads(line)["text"] for line in given.texts.read_text(encoding="utf-8").splitlines()]
    ours = [sys.executable, "-m", "pplx_jax", "serve", f"--model={given.model}"]
    servers = {"pplx_jax": ours}
    if given.export:
        servers["sentence-transformers"] = [sys.executable, __file__, f"--serve_export={given.export}"]
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "uvicorn", "sentence-transformers")},
        "characters_of_a_text": round(float(np.mean(list(map(len, texts))))),
        "servers": {},
    }
    for name, command in servers.items():
        with served(command) as port:
            load(port, texts, max(CLIENTS), given.seconds / 2)  # compiles what the load needs
            report["servers"][name] = {f"{n} clients": load(port, texts, n, given.seconds) for n in CLIENTS}
        print(name, json.dumps(report["servers"][name]), flush=True)
    with served([*ours, *SHORT_QUEUE]) as port:
        load(port, texts, 4, given.seconds / 2)
        before = np.median([request(port, texts[:1])[1] for _ in range(10)])
        overload = load(port, texts, OVERLOAD, given.seconds)
        after = [request(port, texts[:1]) for _ in range(10)]
    overload["milliseconds_of_one_before"] = round(1000 * float(before), 1)
    overload["milliseconds_of_one_after"] = round(1000 * float(np.median([took for _, took in after])), 1)
    overload["statuses_after"] = sorted({status for status, _ in after})
    report["overload"] = overload
    print("overload", json.dumps(overload), flush=True)
    if given.output:
        write_json(given.output, report)


if __name__ == "__main__":
    main()
