"""Client of a running Vespa: deploys an application, puts documents, counts them, sends queries."""

import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from pplx_jax.core.errors import BadInput
from pplx_jax.core.http_client import HttpClient
from pplx_jax.retrieval.vespa.application import CLUSTER, DOCUMENT_TYPE, NAMESPACE
from pplx_jax.retrieval.vespa.documents import Document

OK, NOT_FOUND, FULL = 200, 404, 507


def deploy(config: HttpClient, package: bytes) -> None:
    """Deploys a zipped application package.

    Raises:
        BadInput: the configuration server refuses it; its message is included.
    """
    path = "/application/v2/tenant/default/prepareandactivate"
    status, answer = config.send("POST", path, body=package, kind="application/zip")
    if status != OK:
        raise BadInput(f"{config.url} refuses the application: {_reason(status, answer)}")


class Vespa:
    """The container's HTTP interface: /document/v1 and /search."""

    def __init__(self, http: HttpClient):
        self._http = http
        self.url = http.url

    def wait_until_up(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Waits for the container after a deployment.

        Raises:
            BadInput: the container is not up in time.
        """
        end = clock() + seconds
        probe = HttpClient(self.url, retries=0, seconds=10)
        while True:
            try:
                status, health = probe.send("GET", "/state/v1/health")
                reason = f"status {status}, {health.get('status')}"
                if status == OK and health.get("status", {}).get("code") == "up":
                    return
            except BadInput as error:
                reason = str(error)
            if clock() >= end:
                raise BadInput(f"{self.url} is not up {seconds:g} s after the deployment: {reason}")
            pause(1.0)

    def put(self, document: Document) -> None:
        """Writes a document. It replaces one with the same id. Temporary errors are retried.

        Raises:
            BadInput: Vespa refuses the document, is full or does not answer.
        """
        status, answer = self._http.send("POST", _place(document.id), {"fields": document.fields})
        if status == OK:
            return
        reason = _reason(status, answer)
        if status == FULL:
            raise BadInput(f"{self.url} has no space left ({reason}); add nodes or disk, then run this again")
        raise BadInput(
            f"{self.url} refuses document {document.id!r} ({reason}); check that this application is deployed there"
        )

    def remove(self, identity: str) -> int:
        """Removes a document. Returns its number of chunks, 0 if Vespa has no such document.

        Raises:
            BadInput: Vespa refuses the request or does not answer.
        """
        path = _place(identity)
        status, answer = self._http.send("GET", path)
        if status == NOT_FOUND:
            return 0
        if status == OK:
            chunks = len(answer.get("fields", {}).get("chunk_ids", ()))
            status, answer = self._http.send("DELETE", path)
            if status == OK:
                return chunks
        raise BadInput(f"{self.url} does not remove document {identity!r} ({_reason(status, answer)})")

    def remove_all(self) -> None:
        """Removes all documents.

        Raises:
            BadInput: Vespa refuses a request or does not answer.
        """
        path = f"/document/v1/{NAMESPACE}/{DOCUMENT_TYPE}/docid?selection=true&cluster={CLUSTER}"
        more = ""
        while True:  # a request ends after some time, with a token for the next one
            status, answer = self._http.send("DELETE", path + more)
            if status != OK:
                raise BadInput(f"{self.url} does not remove its documents ({_reason(status, answer)})")
            if not answer.get("continuation"):
                return
            more = f"&continuation={urllib.parse.quote(answer['continuation'], safe='')}"

    def count(self) -> int:
        """Returns the number of documents."""
        every = f"select * from {DOCUMENT_TYPE} where true"
        options = {"ranking.profile": "unranked", "ranking.softtimeout.enable": False, "timeout": "120s"}
        answer = self.query({"yql": every, "hits": 0, **options})
        return int(answer["root"]["fields"]["totalCount"])

    def query(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a query.

        Raises:
            BadInput: Vespa refuses the query or reports errors.
        """
        status, answer = self._http.send("POST", "/search/", request)
        errors = answer.get("root", {}).get("errors", [])
        if status != OK or errors:
            reason = _reason(status, answer) if not errors else "; ".join(map(_describe, errors))
            raise BadInput(f"{self.url} cannot answer ({reason}); check that this application is deployed there")
        return answer


def _place(identity: str) -> str:
    return f"/document/v1/{NAMESPACE}/{DOCUMENT_TYPE}/docid/{urllib.parse.quote(identity, safe='')}"


def _describe(error: dict[str, Any]) -> str:
    return " ".join(str(error[name]) for name in ("summary", "message") if name in error)


def _reason(status: int, answer: dict[str, Any]) -> str:
    message = answer.get("message") or "; ".join(map(_describe, answer.get("root", {}).get("errors", [])))
    return f"status {status}{': ' if message else ''}{' '.join(str(message or '').split())}"
