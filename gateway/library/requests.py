"""Rows of datasets as requests, in the shape of the lines of a batch: an id, a URL and a body each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from gateway.library.errors import Unusable
from gateway.library.rows import Row

Request = Literal["chat", "completion", "embedding"]

# As many as a batch may have.
ROWS_MAX = 50_000
PROBLEMS_SHOWN = 20
# What rows are taken from where nobody says it: the first of these that the first row has.
COLUMNS = ("messages", "prompt", "question", "text")
URLS: Mapping[Request, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
}
ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be made of rows: requests of a kind to a `model`, of a `column` (None: as the first row offers), at
    most `limit`, each answer of at most `max_tokens`. Rows that are lines of a batch already are left as they are."""

    request: Request = "chat"
    model: str | None = None
    column: str | None = None
    limit: int = ROWS_MAX
    max_tokens: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """Why a row is no request. `file` is its name, `line` counts from 1."""

    file: str
    line: int
    reason: str


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """What was made of rows: so many requests, and so many rows `skipped`, the first of which have their `problems`.
    `column` None: they were requests already. `models` and `urls` are what the requests name; `whole`: all rows were
    taken."""

    rows: int
    skipped: int
    problems: tuple[Problem, ...]
    column: str | None
    models: tuple[str, ...]
    urls: tuple[str, ...]
    whole: bool


class Refused(Exception):
    """A row is no request; the message says why."""


class Requests:
    """Makes requests of rows, and keeps count."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._column: str | None = wish.column
        self._ids = set[str]()
        self._models = dict[str, None]()
        self._urls = dict[str, None]()
        self._problems = list[Problem]()
        self._skipped = 0
        self._whole = True

    def lines(self, file: str, rows: Iterator[Row]) -> Iterator[bytes]:
        """The lines of the rows of one file, until there are as many as wished for."""
        for row in rows:
            if len(self._ids) >= self._wish.limit:
                self._whole = False
                return
            try:
                if row.fields is None:
                    raise Refused(row.problem)
                yield msgspec.json.encode(self._line(row.fields)) + b"\n"
            except Refused as refused:
                self._skipped += 1
                if len(self._problems) < PROBLEMS_SHOWN:
                    self._problems.append(Problem(file, row.line, str(refused)))

    def summary(self) -> Dataset:
        """Raises Unusable when there is no request at all."""
        if not self._ids:
            first = self._problems[0] if self._problems else None
            why = f": {first.file}, line {first.line}: {first.reason}" if first else ""
            raise Unusable(f"none of its {self._skipped} rows is a request{why}")
        return Dataset(
            rows=len(self._ids),
            skipped=self._skipped,
            problems=tuple(self._problems),
            column=self._column,
            models=tuple(self._models)[:PROBLEMS_SHOWN],
            urls=tuple(self._urls),
            whole=self._whole,
        )

    def _line(self, fields: dict[str, Any]) -> dict[str, Any]:
        ready = "body" in fields and "url" in fields
        line = _checked(fields) if ready else self._made(fields)
        identity, model = line["custom_id"], line["body"]["model"]
        if identity in self._ids:
            raise Refused(f"the custom_id {identity[:50]!r} is there twice")
        self._ids.add(identity)
        self._models[model] = self._urls[line["url"]] = None
        return line

    def _made(self, fields: dict[str, Any]) -> dict[str, Any]:
        if self._wish.model is None:
            raise Refused("no model is named for it")
        if self._column is None:
            self._column = next((name for name in COLUMNS if name in fields), None)
        if self._column is None or self._column not in fields:
            offered = ", ".join(list(fields)[:20])
            raise Refused(f"it has no {self._column or ' or '.join(COLUMNS)}, but {offered or 'nothing'}"[:300])
        body = {"model": self._wish.model} | _asked(self._wish.request, fields[self._column])
        if self._wish.max_tokens is not None and self._wish.request != "embedding":
            body["max_tokens"] = self._wish.max_tokens
        url = URLS[self._wish.request]
        return {"custom_id": f"row-{len(self._ids) + 1}", "method": "POST", "url": url, "body": body}


def _asked(request: Request, value: Any) -> dict[str, Any]:
    if request == "chat" and isinstance(value, list):
        return {"messages": _messages(value)}
    if not isinstance(value, str) or not value.strip():
        raise Refused("there is no text in it")
    match request:
        case "chat":
            return {"messages": [{"role": "user", "content": value}]}
        case "completion":
            return {"prompt": value}
        case "embedding":
            return {"input": value}


def _messages(value: list[Any]) -> list[dict[str, Any]]:
    """Raises Refused unless it is a conversation that can be answered."""
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Refused(f"a message has no role of {', '.join(sorted(ROLES))}")
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            raise Refused("a message has no content")
    # What asks is answered: a conversation of a dataset often ends with the answer it is about.
    while value and value[-1]["role"] == "assistant":
        value = value[:-1]
    if not value:
        raise Refused("there is no message to be answered")
    return [{name: field for name, field in message.items() if field is not None} for message in value]


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a batch; raises Refused for what is none."""
    body, identity = line.get("body"), line.get("custom_id")
    if not isinstance(identity, str) or not 0 < len(identity) <= 512:
        raise Refused("its custom_id is no text of 1 to 512 characters")
    if line.get("method", "POST") != "POST" or line["url"] not in URLS.values():
        raise Refused(f"it is no POST to one of {', '.join(URLS.values())}")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise Refused("its body names no model")
    asked = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input"}[line["url"]]
    if not body.get(asked):
        raise Refused(f"its body has no {asked}")
    if asked == "messages":
        _messages(body[asked] if isinstance(body[asked], list) else [None])
    return {"custom_id": identity, "method": "POST", "url": line["url"], "body": body}
