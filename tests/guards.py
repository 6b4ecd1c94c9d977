"""Those whom guardrails ask, as faithful as tests need them: a moderation model, a webhook's receiver, Presidio."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from tests.threads import answering

SECRET = "a-secret-of-the-webhook"
CARD = "4111 1111 1111 1111"


class Guards(ThreadingHTTPServer):
    """Finds the word `badword`, and a card. `broken` is what it answers instead, with status 200, or a status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.broken: bytes | int | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


def _places(text: str) -> Iterator[tuple[str, int, int]]:
    for found in re.finditer(f"badword|{CARD}", text):
        yield ("BADWORD" if found[0] == "badword" else "CREDIT_CARD"), found.start(), found.end()


class _Answer(BaseHTTPRequestHandler):
    server: Guards
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = msgspec.json.decode(body)
        self.server.asked.append((self.path, asked))
        broken = self.server.broken
        if isinstance(broken, int):
            return self._send(broken, b"")
        if broken is not None:
            return self._send(200, broken)
        answers = {"/v1/moderations": moderated, "/hook": judged, "/analyze": analyzed, "/anonymize": anonymized}
        if self.path == "/hook":
            stamp, _, given = self.headers["x-gateway-signature"].partition(",v1=")
            signed = stamp.removeprefix("t=").encode() + b"." + body
            if not hmac.compare_digest(hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest(), given):
                return self._send(401, b"")
        return self._send(200, msgspec.json.encode(answers[self.path](asked)))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None: ...


def moderated(asked: dict[str, Any]) -> object:
    def result(text: str) -> object:
        bad = any(_places(text))
        return {
            "flagged": bad,
            "categories": {"violence": bad, "illicit": False, "new": None},
            "category_scores": {"violence": 0.9 if bad else 0.01, "illicit": 0.2},
        }

    return {"id": "modr-1", "model": "omni", "results": [result(text) for text in asked["input"]]}


def judged(asked: dict[str, Any]) -> object:
    return {"findings": [{"kind": kind, "start": a, "end": b} for kind, a, b in _places(asked["text"])]}


def analyzed(asked: dict[str, Any]) -> object:
    return [
        {"entity_type": kind, "start": a, "end": b, "score": 0.85, "analysis_explanation": None}
        for kind, a, b in _places(asked["text"])
    ]


def anonymized(asked: dict[str, Any]) -> object:
    text = asked["text"]
    items: list[dict[str, Any]] = []
    for one in sorted(asked["analyzer_results"], key=lambda one: -one["start"]):
        put = f"<{one['entity_type']}>"
        text = text[: one["start"]] + put + text[one["end"] :]
        shift = len(put) - (one["end"] - one["start"])
        items = [{**item, "start": item["start"] + shift, "end": item["end"] + shift} for item in items]
        end = one["start"] + len(put)
        items.append({"start": one["start"], "end": end, "entity_type": one["entity_type"], "text": put})
    return {"text": text, "items": [{**item, "operator": "replace"} for item in items]}


def guards() -> AbstractContextManager[Guards]:
    """They answer from a thread of their own."""
    return answering(Guards())
