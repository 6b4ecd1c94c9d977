"""A small hub on loopback, with the wire surface of Hugging Face's as far as pulls see it, and every way to misbehave.

Files are kept in "LFS": asked for, they redirect to another path, as the real one does to another host.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

COMMIT = "1" * 40
TOKEN = "hf_test_token"


class Hub:
    """`files` are those of the one repository `org/model`. The public fields are switches that tests set."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.gated = False
        self.names_only = False
        self.listed: list[dict[str, Any]] = [{"id": "org/model", "downloads": 12, "likes": 3, "gated": False}]
        self.cuts: list[int] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.lies: dict[str, int | str] = {}
        self.ranges = True
        self.redirect_to: str | None = None
        self.bytes_per_piece = 64 << 10
        self.served_bytes = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        # While it is not set, answers stop after their first piece.
        self.paced = threading.Event()
        self.paced.set()
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Clients may leave when they like."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.paced.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.files[path]).hexdigest()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.requests.append((path, headers))
            failure = self.failures.pop(0) if self.failures and "/resolve/" in path else None
        if failure is not None:
            return send(request, failure[0], b"", failure[1])
        if path.startswith("/api/"):
            return self._api(request, path, headers)
        if self.gated and headers.get("authorization") != f"Bearer {TOKEN}" and "/resolve/" in path:
            return send(request, 401, b"", {"x-error-code": "GatedRepo"})
        name = path.partition(f"/{COMMIT}/")[2]
        if name not in self.files:
            return send(request, 404, b"", {"x-error-code": "EntryNotFound"})
        if "/resolve/" in path:
            target = self.redirect_to or f"/cdn/{COMMIT}/{name}"
            return send(request, 302, b"", {"location": target})
        return self._bytes(request, self.files[name], headers)

    def _api(self, request: BaseHTTPRequestHandler, path: str, headers: dict[str, str]) -> None:
        if path == "/api/models":
            words = parse_qs(urlsplit(request.path).query).get("search", [""])[0].lower().split()
            found = [one for one in self.listed if all(word in one["id"].lower() for word in words)]
            return send(request, 200, json.dumps(found).encode())
        if not path.startswith(("/api/models/org/model", "/api/datasets/org/model")):
            return send(request, 404, b"{}", {"x-error-code": "RepoNotFound"})
        if "/tree/" in path:
            return send(
                request, 200, json.dumps([{"type": "file", **self._entry(name)} for name in self.files]).encode()
            )
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in self.files]
        if not self.names_only:
            entries = [self._entry(name) for name in self.files]
            siblings = [
                {"rfilename": one["path"], "size": one["size"], "blobId": one["oid"], "lfs": self._blobs_lfs(one)}
                for one in entries
            ]
        body = {"id": "org/model", "modelId": "org/model", "sha": COMMIT, "private": False, "siblings": siblings}
        return send(request, 200, json.dumps(body | {"tags": [], "downloads": 0, "likes": 0}).encode())

    def _entry(self, name: str) -> dict[str, Any]:
        size = self.lies.get("size", len(self.files[name]))
        digest = self.lies.get("sha256", self.sha256(name))
        lfs = {"oid": digest, "size": size, "pointerSize": 134}
        return {"path": self.lies.get("path", name), "size": size, "oid": "a" * 40, "lfs": lfs}

    @staticmethod
    def _blobs_lfs(entry: dict[str, Any]) -> dict[str, Any]:
        lfs = entry["lfs"]
        return {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}

    def _bytes(self, request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
        start, status, extra = 0, 200, dict[str, str]()
        wanted = headers.get("range", "")
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            whole, start, status = len(content), int(first), 206
            content = content[: int(last) + 1] if last else content
            extra["content-range"] = f"bytes {start}-{len(content) - 1}/{whole}"
        with self._lock:
            cut = self.cuts.pop(0) if self.cuts else None
        request.send_response(status)
        for name, value in (extra | {"content-length": str(len(content) - start)}).items():
            request.send_header(name, value)
        request.end_headers()
        end = len(content) if cut is None else min(len(content), start + cut)
        try:
            while start < end:
                piece = content[start : min(end, start + self.bytes_per_piece)]
                request.wfile.write(piece)
                start += len(piece)
                with self._lock:
                    self.served_bytes += len(piece)
                self.paced.wait(30)
        except OSError:
            pass
        if cut is not None:
            request.close_connection = True
            request.connection.close()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    given = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    for name, value in given.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
