"""How the gateway writes its logs: one format for everything, and an access log that stays off the hot path."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from typing import TextIO

import msgspec

from gateway.config import LogConfig

FLUSH_INTERVAL_S = 0.1
PENDING_MAX = 10_000

Fields = dict[str, str | int | float]
# When requests ended, as Unix seconds, and what there is to say of them.
Requests = Sequence[tuple[float, Fields]]
CONTROLS = bytes([*range(32), 127])


def configure(config: LogConfig, stream: TextIO) -> None:
    """Send every logger of the process to `stream` in the chosen format; call it once, before anything is logged."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    # uvicorn tells its life at info level in its own words, and HTTP clients each request; the banner says it better.
    # aiosqlite tells each statement with its values, which are nobody's to read.
    for name in ("uvicorn", "uvicorn.error", "asyncio", "httpx", "httpx2", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """`time level logger: message`, with control characters escaped so that no value can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{timestamp(record.created)} {record.levelname.lower()} {record.name}: {escape(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        fields: Fields = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


class AccessLog:
    """Collects one set of fields per request and writes them in batches, a few times a second."""

    def __init__(self, config: LogConfig, stream: TextIO) -> None:
        self._stream = stream
        self.enabled = config.level in ("debug", "info")
        self._lines = json_lines if config.format == "json" else text_lines
        self._pending: list[tuple[float, Fields]] = []
        self._flush_due = False

    def add(self, fields: Fields) -> None:
        """Note a request; written within `FLUSH_INTERVAL_S`, at once when too many wait."""
        if not self.enabled:
            return
        self._pending.append((time.time(), fields))
        if len(self._pending) >= PENDING_MAX:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_later(FLUSH_INTERVAL_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        self._flush_due = False
        if self._pending:
            pending, self._pending = self._pending, []
            self._stream.write(self._lines(pending))
            self._stream.flush()


def json_lines(requests: Requests) -> str:
    """A JSON object for each request."""
    lines = [
        msgspec.json.encode({"time": timestamp(at), "level": "info", "logger": "access", **fields})
        for at, fields in requests
    ]
    return b"".join([b"%b\n" % line for line in lines]).decode()


def text_lines(requests: Requests) -> str:
    """A line for each request. They are looked at together, and only if there is anything to escape one by one."""
    lines = [
        f"{timestamp(at)} info access: {_form(tuple(fields)) % tuple(fields.values())}\n" for at, fields in requests
    ]
    text = "".join(lines)
    if text.isascii() and len(text.encode().translate(None, CONTROLS)) == len(text) - len(lines):
        return text
    return "".join([f"{escape(line[:-1])}\n" for line in lines])


@functools.lru_cache(maxsize=64)
def _form(names: tuple[str, ...]) -> str:
    """Most lines have the same names."""
    return " ".join([f"{name.replace('%', '%%')}=%s" for name in names])


def timestamp(at: float) -> str:
    """Unix seconds as UTC with milliseconds."""
    second = int(at)
    return _second(second) + _thousandth(int((at - second) * 1000))


@functools.lru_cache(maxsize=4)
def _second(at: int) -> str:
    """The part that all lines of a second share."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


@functools.lru_cache(maxsize=1000)
def _thousandth(ms: int) -> str:
    return f".{ms:03d}Z"


def escape(text: str) -> str:
    """`text` on one line of printable characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
