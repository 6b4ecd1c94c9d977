"""What a worker writes before it dies, and what of it the log tells."""

from __future__ import annotations

import asyncio

import pytest

from adapters.llama_cpp.link import STDERR_LINE_BYTES_MAX, STDERR_LINES_MAX, LastWords


def heard(data: bytes) -> list[str]:
    async def listen() -> list[str]:
        stream, words = asyncio.StreamReader(), LastWords()
        stream.feed_data(data)
        stream.feed_eof()
        await words.drain(stream)
        return list(words.lines)

    return asyncio.run(listen())


def test_the_last_lines_are_kept_escaped_and_bounded() -> None:
    assert heard(b"one\n\n  two \x1b[31m\nthree") == ["one", "two \\x1b[31m", "three"]
    assert heard(b"x" * 10_000) == ["x" * STDERR_LINE_BYTES_MAX]
    assert len(heard(b"line\n" * 1000)) == STDERR_LINES_MAX


def test_what_is_said_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    heard(b"no room\nno room\nother\nno room\n")
    assert caplog.messages == ["a worker says: no room", "a worker says: other"]
