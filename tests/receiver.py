"""A real HTTP server that takes notifications, or does not, as a test has it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.ports import free_port


class Receiver:
    """Keeps what was posted, by path. `answers` are the statuses that come next; 200 when there are none left.

    While `hanging`, a request is read and never answered. `location` is where a redirect leads.
    """

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.answers: list[int] = []
        self.hanging = False
        self.location: str | None = None
        self._posts: list[tuple[str, dict[str, Any]]] = []
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def url(self, path: str) -> str:
        """The address of a path, as apprise writes it."""
        return f"json://127.0.0.1:{self.port}/{path}"

    def posts(self, path: str | None = None) -> list[dict[str, Any]]:
        """What was posted so far: the bodies, of one path or of all."""
        return [body for at, body in self._posts if path is None or at == f"/{path}"]

    def titles(self, path: str | None = None) -> list[str]:
        """The titles of what was posted so far."""
        return [body["title"] for body in self.posts(path)]

    def start(self) -> None:
        """Listen."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver._posts.append((self.path, body))
                if receiver.hanging:
                    receiver._released.wait(60)
                    return
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.send_header("Content-Length", "0")
                if receiver.location is not None:
                    self.send_header("Location", receiver.location)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._released.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Be away: connections are refused."""
        if self._server is not None:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()
