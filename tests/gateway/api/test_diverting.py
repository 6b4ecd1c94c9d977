"""Text of a model here, written to its client's connection past the task of its request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from adapters.types import Caller, ChatRequest, Event, TextDelta
from tests.adapters.test_relay import whole
from tests.fakes import HELLO, Scripted
from tests.gateway.api.passing_door import body_of, opened, post
from tests.gateway.api.wire import run, until

TEXTS = [f"{number} " + "x" * 10_000 for number in range(2000)]


class Pushing(Scripted):
    """Offers its texts the short way while its reader waits, and counts what became of them."""

    taken = declined = 0

    def chat(self, request: ChatRequest, caller: Caller) -> AsyncIterator[Event]:
        self._take: Callable[[Event], bool] | None = None
        self._coming = self._events()
        return self

    def divert(self, take: Callable[[Event], bool]) -> None:
        self._take = take

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._coming)

    async def _events(self) -> AsyncIterator[Event]:
        yield HELLO[0]
        for text in TEXTS:
            event = TextDelta(0, text)
            if self._take is not None and self._take(event):
                self.taken += 1
                await asyncio.sleep(0)
            else:
                self.declined += 1
                yield event
        yield HELLO[-2]
        yield HELLO[-1]


def texts_of(stream: bytes) -> list[str]:
    events = [json.loads(event[6:]) for event in stream.split(b"\n\n") if event.startswith(b"data: {")]
    return [text for event in events if (text := event["choices"][0]["delta"].get("content"))]


@pytest.mark.parametrize(("lane", "diverted"), [(True, True), (False, False)], ids=["lane", "asgi"])
def test_a_slow_client_gets_all_of_a_stream_in_order(lane: bool, diverted: bool) -> None:
    async def main() -> None:
        near = Pushing()
        async with opened(whole(b"{}"), lane=lane, near=near) as door, door.served.client() as client:
            await client.send(post(body_of(model="near", stream=True)))
            await until(lambda: near.declined > 0)
            reply = await client.reply()
            assert reply.body.endswith(b"data: [DONE]\n\n")
            assert texts_of(reply.body) == TEXTS
            assert (near.taken > 0) is diverted
            assert near.taken + near.declined == len(TEXTS)
            assert (await client.ask(post(body_of(model="near", stream=False)))).status == 200

    run(main())
