"""The addresses of a name, over a resolver that answers as it is told."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest

from adapters.addresses import addresses_of
from adapters.errors import Unreachable
from adapters.http1 import Origin
from gateway.routing.addresses import ADDRESSES_MAX, Addresses

Answer = tuple[str, ...] | Exception


class Name:
    """Answers one after the other, and counts the changes that were told."""

    def __init__(self, *answers: Answer, timeout_s: float = 5) -> None:
        self.answers = list(answers)
        self.addresses = Addresses("p", self.resolve, self.changed, timeout_s=timeout_s)
        self.changes: list[tuple[str, ...]] = []
        self.hold: asyncio.Event | None = None
        self.asked = 0

    async def resolve(self) -> tuple[str, ...]:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def changed(self) -> None:
        self.changes.append(self.addresses.known)


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        ([("a",), ("a", "b"), ("a", "b"), ("b",)], [("a",), ("a", "b"), ("b",)]),
        ([Unreachable("no"), ("a",)], [("a",)]),
        ([("a",), Unreachable("no"), ("a",)], [("a",)]),
        ([("a",), ()], [("a",)]),
        ([tuple(f"{i:03}" for i in range(99))], [tuple(f"{i:03}" for i in range(ADDRESSES_MAX))]),
    ],
)
def test_only_changes_are_told_and_the_last_good_ones_stay(
    answers: list[Answer], changes: list[tuple[str, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with caplog.at_level(logging.CRITICAL):
            name = Name(*answers)
            for _ in answers:
                await name.addresses.refresh()
            assert name.changes == changes
            assert name.addresses.known == changes[-1]

    asyncio.run(run())


def test_a_resolver_that_hangs_is_asked_once() -> None:
    async def run() -> None:
        name = Name(("a",), timeout_s=0)
        name.hold = asyncio.Event()
        for _ in range(5):
            await name.addresses.refresh()
        assert (name.asked, name.changes) == (1, [])
        name.hold.set()
        for _ in range(3):
            await asyncio.sleep(0)
        await name.addresses.refresh()
        assert (name.asked, name.changes) == (1, [("a",)])
        name.addresses.close()

    asyncio.run(run())


def test_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::2", 80, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 80, 0, 0)),
    ]

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host == "nobody.test":
            raise socket.gaierror(socket.EAI_NONAME, "no")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert asyncio.run(addresses_of(Origin("http", "house.test", 80))) == ("fd00::1", "fd00::2")
    with pytest.raises(Unreachable):
        asyncio.run(addresses_of(Origin("http", "nobody.test", 80)))
