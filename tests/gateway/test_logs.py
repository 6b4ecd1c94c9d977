from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from gateway import logs
from gateway.config import LogConfig
from gateway.logs import AccessLog, JsonFormatter, TextFormatter


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("gateway.x", logging.WARNING, "", 0, message, args, None)


def test_text_is_one_line_that_no_value_can_forge() -> None:
    line = TextFormatter().format(record("model %s", "a\n2026 error\x1b[31m"))
    assert line.endswith("Z warning gateway.x: model a\\n2026 error\\x1b[31m")


def test_json_is_one_object() -> None:
    fields = json.loads(JsonFormatter().format(record("a\nb %s", "é")))
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "gateway.x", "a\nb é")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_exceptions_come_with_their_traceback(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("why")
    except ValueError as exc:
        entry = record("failed")
        entry.exc_info = (ValueError, exc, exc.__traceback__)
    assert "Traceback" in formatter.format(entry)
    assert "ValueError: why" in formatter.format(entry)


def test_timestamps_are_utc_with_milliseconds() -> None:
    assert logs.timestamp(0.0515) == "1970-01-01T00:00:00.051Z"


def access(config: LogConfig, stream: io.StringIO, requests: int) -> None:
    async def main() -> None:
        log = AccessLog(config, stream)
        for i in range(requests):
            log.add({"path": f"/a\n{i}", "status": 200})
        log.flush()

    asyncio.run(main())


def test_access_lines_in_both_formats() -> None:
    text, lines = io.StringIO(), io.StringIO()
    access(LogConfig(), text, 2)
    assert text.getvalue().splitlines()[1].endswith("info access: path=/a\\n1 status=200")
    assert len(text.getvalue().splitlines()) == 2
    access(LogConfig(format="json"), lines, 2)
    assert json.loads(lines.getvalue().splitlines()[1])["path"] == "/a\n1"


def test_access_lines_are_information_and_never_pile_up() -> None:
    stream = io.StringIO()
    access(LogConfig(level="warning"), stream, 2)
    assert stream.getvalue() == ""

    async def main() -> None:
        log = AccessLog(LogConfig(), stream)
        for _ in range(logs.PENDING_MAX):
            log.add({"status": 200})
        assert stream.getvalue().count("\n") == logs.PENDING_MAX

    asyncio.run(main())


def test_configure_sets_one_handler_for_all() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        logs.configure(LogConfig(level="debug"), stream)
        logging.getLogger("gateway.any").debug("hello")
        logging.getLogger("uvicorn.error").info("chatter")
        logging.getLogger("aiosqlite").debug("executing a statement with all that is in it")
        assert stream.getvalue().endswith("debug gateway.any: hello\n")
        assert stream.getvalue().count("\n") == 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize(
    ("said", "shown"),
    [("a b", "a b"), ("\x1b[2J", "\\x1b[2J"), ("\x7f", "\\x7f"), ("\u202e", "\\u202e"), ("\u00e9", "\u00e9")],
)
def test_one_strange_line_is_escaped_and_the_others_stay_as_they_are(said: str, shown: str) -> None:
    lines = logs.text_lines([(0.0, {"path": "/x"}), (0.0, {"path": said}), (0.0, {"path": "/y%s", "status": 200})])
    assert [line.split(" access: ")[1] for line in lines.splitlines()] == [
        "path=/x",
        f"path={shown}",
        "path=/y%s status=200",
    ]
