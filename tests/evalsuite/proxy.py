"""A small HTTP server for tests, which passes requests on, changed, or answers by itself; and a real `assay serve`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]
Reply = tuple[int, bytes]


@contextmanager
def assay_serve(*arguments: str | Path) -> Iterator[str]:
    """The URL of `assay serve ARGUMENTS` on a free port, in a process of its own."""
    command = [sys.executable, "-m", "assay", "serve", *map(str, arguments)]
    server = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", "--allow-unproven"], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    try:
        line = next((line for line in server.stderr if line.startswith("serving on ")), "")
        assert line, "the server did not come up"
        yield line.split()[2]
    finally:
        server.terminate()
        server.communicate(timeout=60)


@contextmanager
def answering(reply: Callable[[str, Body | None, dict[str, str]], Reply]) -> Iterator[str]:
    """A server that answers by `reply(path, body, headers)`; a status of 0 hangs up without an answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Body | None) -> None:
            status, data = reply(self.path, body, dict(self.headers))
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxy(
    url: str,
    *,
    request: Callable[[Body], object] = lambda body: None,
    answer: Callable[[Body], object] = lambda body: None,
    chat: Callable[[int], Reply | None] = lambda count: None,
) -> Iterator[str]:
    """Between a client and `url`: `request` and `answer` change chat bodies in place.

    `chat` is asked first, with how many chats there were before: what it returns is answered instead.
    """
    lock, count = threading.Lock(), 0

    def reply(path: str, body: Body | None, headers: dict[str, str]) -> Reply:
        nonlocal count
        if body is not None:
            with lock:
                instead, count = chat(count), count + 1
            if instead is not None:
                return instead
            request(body)
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        if body is not None:
            answer(found)
        return 200, json.dumps(found).encode()

    with answering(reply) as address:
        yield address
