"""A server of the JSON API of Google Cloud Storage on loopback, for gcsfs, TensorStore and google-cloud-storage."""

import contextlib
import functools
import http.server
import threading
import urllib.parse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"
_CLOSED = 1


class _Server(http.server.ThreadingHTTPServer):
    """Has a long queue: Orbax opens dozens of connections at once, and takes a refused one for an absent object."""

    daemon_threads, request_queue_size = True, 256


class BucketServer:
    """gcp-storage-emulator with what it lacks: many connections, moves, generations of what is read, and conditions
    on them.

    Attributes:
        refusals: how many of the next requests are refused: by 503, by 429, or by closing the connection.
        forbidden: what begins the "METHOD PATH " of requests that no account may make; None for none.
        requests: "METHOD PATH" of every request.
        environment: variables that make every client of a process use the server.
    """

    def __init__(self):
        self.refusals, self.requests = 0, []
        self.forbidden: str | None = None
        self.storage, self.lock = Storage(use_memory_fs=True), threading.Lock()
        buckets.create_bucket(BUCKET, self.storage)
        self._server = _Server(("127.0.0.1", 0), functools.partial(_Handler, self.storage, owner=self))
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
        }

    def refusal(self) -> int:
        """Returns the status of a refusal that is due, or 0."""
        if not self.refusals:
            return 0
        self.refusals -= 1
        return (503, 429, _CLOSED)[self.refusals % 3]

    def generation(self, name: str | None) -> str:
        """Returns the generation of an object, "0" if there is none."""
        try:
            return self.storage.get_file_obj(BUCKET, name)["generation"] if name else "0"
        except NotFound:
            return "0"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Handler(RequestHandler):
    wbufsize = 1 << 16  # an answer in one piece

    def __init__(self, storage, *arguments, owner: BucketServer):
        self._owner, self._shown = owner, ""
        super().__init__(storage, *arguments)

    def _answer(self, inherited):
        with self._owner.lock:
            self._owner.requests.append(f"{self.command} {self.path}")
            wanted = f"{self.command} {self.path.partition('?')[0]} "
            forbidden = self._owner.forbidden and wanted.startswith(self._owner.forbidden)
            status = self._owner.refusal() or (403 if forbidden else self._unmet())
            if not status:
                inherited(self)
                return
        if status != _CLOSED:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(status)

    def _unmet(self) -> int:
        """Returns the status for a condition on the generation that does not hold, or 0."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = query.get("name") or urllib.parse.unquote(url.path.partition("/o/")[2])
        found = self._owner.generation(name)
        self._shown = found if self.command == "GET" and found != "0" else ""
        reads = self.command == "GET"
        if "ifGenerationMatch" in query and query["ifGenerationMatch"] != found and not (reads and found == "0"):
            return 412
        if query.get("ifGenerationNotMatch") == found and found != "0":
            return 304 if reads else 412
        return 0

    def end_headers(self):
        if self._shown:
            self.send_header("x-goog-generation", self._shown)
        super().end_headers()

    def do_GET(self):
        self._answer(RequestHandler.do_GET)

    def do_POST(self):
        self._answer(RequestHandler.do_POST if "/moveTo/o/" not in self.path else _Handler._move)

    def _move(self):
        moved, _, target = self.path.partition("/moveTo/o/")
        self.path = f"{moved}/copyTo/b/{BUCKET}/o/{target}"
        RequestHandler.do_POST(self)
        with contextlib.suppress(NotFound):
            self._owner.storage.delete_file(BUCKET, urllib.parse.unquote(moved.partition("/o/")[2]))

    def do_PUT(self):
        self._answer(RequestHandler.do_PUT)

    def do_DELETE(self):
        self._answer(RequestHandler.do_DELETE)

    def do_PATCH(self):
        self._answer(RequestHandler.do_PATCH)

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle_one_request()
