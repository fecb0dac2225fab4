"""Stand-ins for the servers that penjing fetches from, on 127.0.0.1: a hub and a package index.

They are real servers with the few routes that the real clients call, and a fault to order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class Server(ThreadingHTTPServer):
    """Counts what is asked for: (method, path, Range) of every request, in order."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Any]:
        thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Hub(Server):
    """Repositories of files. `break_at`: bytes after which a download breaks off, and all later ones are
    answered with 503; `stall_at`: bytes after which it stops sending and keeps the connection."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(_HubHandler)
        self.repositories = repositories
        self.etags: dict[str, str] = {}
        self.break_at: int | None = None
        self.stall_at: int | None = None
        self.broken = False
        self.stalled = threading.Event()

    def downloads(self) -> list[tuple[str, str | None]]:
        """File and Range of every GET of a file."""
        return [
            (path.rpartition("/")[2], span)
            for method, path, span in self.asked
            if method == "GET" and "/resolve/" in path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def note(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        about = re.match(r"/api/models/([^/?]+/[^/?]+)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/(?:main|\w{40})/([^?]+)", self.path)
        found = about or file
        files = self.server.repositories.get(found[1]) if found else None
        if files is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif about:
            self.list_files(files)
        elif file and file[2] in files:
            self.send_file(file[2], files[file[2]])
        else:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def list_files(self, files: dict[str, bytes]) -> None:
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
        self.answer(200, body, {"Content-Type": "application/json"})

    def send_file(self, name: str, data: bytes) -> None:
        if self.command == "GET" and self.server.broken:
            self.answer(503, b"")
            return
        etag = self.server.etags.get(name) or hashlib.sha256(data).hexdigest()
        begin = int(re.sub(r"\D", "", self.headers.get("Range") or "0"))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.send_body(data[begin:])

    def send_body(self, data: bytes) -> None:
        if self.server.break_at is not None:
            self.wfile.write(data[: self.server.break_at])
            self.server.broken, self.close_connection = True, True
        elif self.server.stall_at is not None:
            self.wfile.write(data[: self.server.stall_at])
            self.wfile.flush()
            self.server.stalled.set()
            self.rfile.read()  # until the client goes away
        else:
            self.wfile.write(data)


class Index(Server):
    """A package index that holds wheels by file name."""

    def __init__(self, wheels: dict[str, bytes]) -> None:
        super().__init__(_IndexHandler)
        self.wheels = wheels

    def downloads(self) -> list[str]:
        return [path for _, path, _ in self.asked if path.endswith(".whl")]


class _IndexHandler(_Handler):
    def do_GET(self) -> None:
        self.note()
        name = self.path.rpartition("/")[2]
        project = re.fullmatch(r"/simple/([\w-]+)/", self.path)
        if name in self.server.wheels:
            self.answer(200, self.server.wheels[name], {"Content-Type": "application/octet-stream"})
        elif project:
            mine = [wheel for wheel in self.server.wheels if wheel.startswith(project[1].replace("-", "_"))]
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>' for wheel in mine)
            self.answer(200 if mine else 404, links.encode(), {"Content-Type": "text/html"})
        else:
            self.answer(404, b"")


def wheel(project: str, version: str, members: dict[str, bytes]) -> tuple[str, bytes]:
    """File name and content of a wheel that holds `members`."""
    name = project.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return f"{name}-{version}-py3-none-any.whl", content.getvalue()
