"""What is done regularly is done at its interval, spread in time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.regularly import Regularly


@pytest.mark.parametrize(
    ("draw", "first_s", "expected"),
    [(0.5, None, [1.0, "!", 10.0, "!", 10.0, "!", 10.0]), (0.0, 0.0, ["!", 9.0, "!", 9.0, "!", 9.0])],
)
def test_when_it_is_done(
    draw: float, first_s: float | None, expected: list[float | str], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float | str] = []

    async def run() -> None:
        over = asyncio.Event()

        async def act() -> None:
            seen.append("!")
            raise ValueError("a bug")

        async def pause(seconds: float) -> None:
            seen.append(seconds)
            if len(seen) >= len(expected):
                over.set()
                await asyncio.Event().wait()

        regularly = Regularly(act, 10, first_s=first_s, draw=lambda: draw, pause=pause)
        regularly.start()
        await over.wait()
        await regularly.close()

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(run())
    assert seen == expected
