"""The process that has the engines of several processes that answer, and their way to it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import uvloop

from adapters.llama_cpp import LlamaCpp
from adapters.llama_cpp.pool import Occupied
from adapters.shared.guest import Link, SharedPool
from adapters.shared.host import Host
from gateway.app.library import open_distant_shelf
from gateway.app.models import open_adapters
from gateway.app.pooling import open_pool
from gateway.app.workers import Station
from gateway.config import Config
from gateway.library.messages import Ask, answer_bytes, elsewhere
from gateway.telemetry import Telemetry

# So long a process that answers waits until it knows the models; without them it begins all the same.
ENGINE_START_S = 30.0
PULLS = "pulls"


def serve_engines(config: Config, unused: Iterable[socket.socket], path: Path, lifeline: int) -> int:
    """Have the models, and answer whoever asks at `path`, until SIGTERM or the end of the parent. The sockets `unused`
    are not for this process."""
    for one in unused:
        one.close()

    async def run() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        stop_with(lifeline, ended.set)
        async with AsyncExitStack() as stack:
            adapters = open_adapters(config)
            pool, pulls = open_pool(config, adapters, await open_distant_shelf(config, stack), stack)
            models = [adapter for adapter in adapters if isinstance(adapter, LlamaCpp)]
            host = Host(models, path, pool, {PULLS: partial(answer_bytes, pulls)})
            await host.start()
            stack.push_async_callback(host.close)
            loading = asyncio.create_task(pool.start())
            stack.callback(loading.cancel)
            await ended.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


async def open_link(station: Station | None, telemetry: Telemetry, stack: AsyncExitStack) -> Link | None:
    """The way to the engines, and to what the other processes count; None for a process that is alone."""
    if station is None:
        return None
    link = Link(station.socket)
    stack.push_async_callback(link.close)
    await link.start(ENGINE_START_S)
    link.share_metrics(station.number, telemetry.render)
    telemetry.apart = station.number, lambda: link.metrics
    return link


def shared_pool(link: Link) -> tuple[Occupied, Ask]:
    """The pool and the pulls of the engine process."""
    return SharedPool(link), elsewhere(partial(link.call, PULLS))


def stop_with(lifeline: int, stop: Callable[[], None]) -> None:
    """Call `stop` when the process at the other end of a pipe is gone."""
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(lifeline)
        stop()

    loop.add_reader(lifeline, gone)
