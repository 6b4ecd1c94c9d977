from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from gateway.state.redis_link import Answer, Link
from gateway.state.shared import SharedStateUnavailable

WIRE = b"+OK\r\n:-7\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$-1\r\n*2\r\n:1\r\n*1\r\n$1\r\nx\r\n-ERR no\r\n"
ANSWERS = [b"OK", -7, b"a\r\nb", b"", None, [1, [b"x"]], "ERR no"]


class Transport:
    """Remembers what is written."""

    def __init__(self) -> None:
        self.written = b""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data


def link(transport: Transport) -> Link:
    connection = SimpleNamespace(_writer=SimpleNamespace(transport=transport))
    return Link(cast("AbstractConnection", connection), 1.0)


@pytest.mark.parametrize("length", [1, 2, 3, 7, len(WIRE)])
def test_answers_are_read_wherever_they_are_cut(length: int) -> None:
    async def scenario() -> None:
        transport, answers = Transport(), list[Answer]()
        one = link(transport)
        for number in range(len(ANSWERS)):
            one.send(("GET", number), answers.append)
        for start in range(0, len(WIRE), length):
            one.data_received(WIRE[start : start + length])
        assert [str(answer) if isinstance(answer, ResponseError) else answer for answer in answers] == ANSWERS
        assert transport.written == b"".join(
            b"*2\r\n$3\r\nGET\r\n$1\r\n%d\r\n" % number for number in range(len(ANSWERS))
        )
        assert not one.ended

    asyncio.run(scenario())


@pytest.mark.parametrize("wire", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"\0\r\n"])
def test_a_server_that_is_none_ends_the_connection(wire: bytes) -> None:
    async def scenario() -> None:
        one, answers = link(Transport()), list[Any]()
        one.send(("GET", "a"), answers.append)
        one.data_received(wire)
        assert one.ended
        one.send(("GET", "b"), answers.append)
        assert [type(answer) for answer in answers] == [SharedStateUnavailable], "the first is told by who serves it"

    asyncio.run(scenario())
