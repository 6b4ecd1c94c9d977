"""A hub that lets down whoever fetches one large file from it, at chosen bytes, and counts what it sends twice."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Literal, get_args

import msgspec

from tests.hub import COMMIT, Hub, send

MODEL = "model-Q8_0.gguf"

# What happens to a connection; "busy", "broken", "around" and "elsewhere" are also what the next request is answered:
# 429, 503, a redirect within the hub, and one to a host that is none of its own.
Cut = Literal["cut", "reset", "stall", "busy", "broken", "around", "elsewhere"]
KINDS: tuple[Cut, ...] = get_args(Cut)
RESET = struct.pack("ii", 1, 0)


class Trouble(msgspec.Struct, frozen=True, order=True):
    """At the byte `at` of the file the connection fails, or the process at its other end is killed."""

    at: int
    kind: Cut | Literal["kill"]


def troubles(
    size_bytes: int, cuts: int, kills: int, draw: random.Random, kinds: Sequence[Cut] = KINDS
) -> list[Trouble]:
    """So many of both at random bytes, in order. Every kind of cut has its turn."""
    first = draw.randrange(len(kinds))
    chosen: list[Cut | Literal["kill"]] = [kinds[(first + number) % len(kinds)] for number in range(cuts)]
    chosen += ["kill"] * kills
    return sorted(Trouble(draw.randrange(1, size_bytes), kind) for kind in chosen)


class Storm(Hub):
    """`again` has for each answer that began before what had been sent already by how many bytes it did."""

    def __init__(self, content: bytes, coming: Sequence[Trouble], kill: Callable[[], None]) -> None:
        super().__init__({MODEL: content})
        self.again: list[int] = []
        self._digest = super().sha256(MODEL)
        self._coming = list(coming)
        self._kill = kill
        self._next: Trouble | None = None
        self._reached = 0
        self._one = threading.Lock()

    def sha256(self, path: str) -> str:
        return self._digest

    @property
    def left(self) -> int:
        """How many troubles have not come yet."""
        return len(self._coming)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        trouble = self._next if "/resolve/" in request.path or "/cdn/" in request.path else None
        match trouble and trouble.kind:
            case "busy":
                answer = 429, {"retry-after": "1"}
            case "broken":
                answer = 503, {}
            case "around":
                answer = 307, {"location": f"/cdn/again/{COMMIT}/{MODEL}"}
            case "elsewhere":
                answer = 302, {"location": f"http://elsewhere.invalid/{MODEL}"}
            case _:
                return super()._answer(request)
        self._next = None
        return send(request, answer[0], b"", answer[1])

    def _bytes(self, request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> None:
        with self._one:  # One reader at a time: what is counted is in order.
            start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            request.send_response(206 if start else 200)
            request.send_header("content-length", str(len(content) - start))
            if start:
                request.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            request.end_headers()
            if start < self._reached:
                self.again.append(self._reached - start)
            try:
                self._send_from(request, content, start)
            except OSError:
                request.close_connection = True

    def _send_from(self, request: BaseHTTPRequestHandler, content: bytes, start: int) -> None:
        while start < len(content):
            at = self._coming[0].at if self._coming else len(content)
            piece = content[start : max(start, min(at, start + self.bytes_per_piece))]
            request.wfile.write(piece)
            start += len(piece)
            self.served_bytes += len(piece)
            self._reached = max(self._reached, start)
            if self._coming and start >= at:
                self._strike(request, self._coming.pop(0))
                return

    def _strike(self, request: BaseHTTPRequestHandler, trouble: Trouble) -> None:
        request.close_connection = True
        match trouble.kind:
            case "kill":
                self._kill()
            case "stall":
                # Until whoever reads has enough of it.
                request.connection.settimeout(120)
                request.connection.recv(1)
            case "reset":
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case "cut":
                pass
            case _:
                self._next = trouble
        if trouble.kind == "reset":
            request.connection.close()
        else:
            request.connection.shutdown(socket.SHUT_RDWR)
