"""`gateway sessions`: the kept conversations of a running server, asked over HTTP as every client would."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, urlencode

import msgspec

from gateway.chat import Server, escape
from gateway.model_files import size

PAGE = 100
HEADINGS = ("KEY", "ID", "MODEL", "OWNER", "TOKENS", "TIER", "SIZE", "CREATED", "LAST USED", "PINNED")


class KeptSession(msgspec.Struct):
    """A session as the server shows it; times in Unix seconds."""

    id: str
    key: str | None
    model: str
    owner: str
    tokens: int
    tier: str
    size_bytes: int
    created_at: int
    last_used_at: int
    pinned: bool
    checkpoints: int


class _Page(msgspec.Struct):
    data: list[KeptSession]
    has_more: bool
    unavailable_models: list[str]


class Desk:
    """The sessions of a server, in one model (None: all) and of one tenant (None: the caller's own)."""

    def __init__(self, server: Server, model: str | None, tenant: str | None) -> None:
        self._server = server
        self._where = {name: value for name, value in (("model", model), ("tenant", tenant)) if value}

    def carry_out(self, verb: str, name: str = "", new_id: str | None = None) -> KeptSession | list[KeptSession]:
        """Do what the verb says to the session with this key or id; the session or sessions it is about."""
        match verb:
            case "list":
                return list(self._all())
            case "show":
                return self._one("GET", name)
            case "delete":
                return self._one("DELETE", name)
        return self._one("POST", name, f"/{verb}", {"new_id": new_id} if new_id else None)

    def _all(self) -> Iterator[KeptSession]:
        after: dict[str, str] = {}
        while True:
            query = urlencode({"limit": str(PAGE), **self._where, **after})
            page = self._server.ask("GET", f"/sessions?{query}", _Page)
            yield from page.data
            if not page.has_more or not page.data:
                break
            after = {"after": page.data[-1].id}
        for model in page.unavailable_models:
            print(f"gateway: the model {escape(model)} cannot be asked now", file=sys.stderr)

    def _one(self, method: str, name: str, action: str = "", body: Mapping[str, object] | None = None) -> KeptSession:
        # A key of dots alone would be taken for a step in the path and never arrive.
        path = f"/sessions/{quote(name, safe='').replace('.', '%2E')}{action}"
        query = f"?{urlencode(self._where)}" if self._where else ""
        return self._server.ask(method, path + query, KeptSession, body)


def table(sessions: Iterable[KeptSession]) -> list[tuple[str, ...]]:
    """The sessions as rows under `HEADINGS`."""
    rows = (
        (
            session.key or "",
            session.id,
            session.model,
            session.owner,
            str(session.tokens),
            session.tier,
            size(session.size_bytes),
            _moment(session.created_at),
            _moment(session.last_used_at),
            "yes" if session.pinned else "",
        )
        for session in sessions
    )
    return [HEADINGS, *rows]


def _moment(time_s: int) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
