"""An HTTP server on loopback, for stand-ins of services."""

import contextlib
import http.server
import json
import threading


@contextlib.contextmanager
def serving(answer):
    """Yields the base URL of a server that answers every request by `answer(method, path, headers, body)`.

    `answer` returns the status, what to send (bytes as they are, anything else as JSON) and, if any, further headers.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece: a second one would wait for a delayed acknowledgement

        def _handle(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content, *more = answer(self.command, self.path, self.headers, body)
            is_bytes = isinstance(content, bytes)
            sent = content if is_bytes else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if is_bytes else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            for name, value in more[0].items() if more else ():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(sent)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
