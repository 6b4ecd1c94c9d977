from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from adapters.types import Caller, ChatRequest, Message, Served
from gateway.app.serving import Serving
from gateway.auth import Principal
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.routing.decisions import Decisions
from tests.adapters.provider import chunks, drained, reply
from tests.adapters.upstream import Peer, run, until, upstream

WHO = Principal(tenant="t", key_id="k", name="n")
ANSWER = reply(
    chunks(
        b'{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}',
        b'{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}',
        b"[DONE]",
    )
)
REQUEST = ChatRequest("gpt", (Message("user", "hi"),))


def config(*ports: int, weight: float = 1, verify: bool = True, **route: object) -> Config:
    """One provider for each port, all of them behind the route `gpt`; `verify` makes the first another one."""
    providers = [
        {
            "name": f"p{i}",
            "kind": "vllm",
            "base_url": f"http://127.0.0.1:{port}/v1",
            "passthrough": True,
            "verify": verify or i > 0,
        }
        for i, port in enumerate(ports)
    ]
    targets = [{"provider": f"p{i}", "model": "m", "weight": weight} for i in range(len(ports))]
    routes = [{"name": "gpt", "groups": [targets]} | route] if targets else []
    return msgspec.convert({"providers": providers, "routes": routes}, Config)


async def ask(serving: Serving, name: str = "gpt") -> None:
    await drained(serving.catalog.resolve(WHO, name).adapter.chat(REQUEST, Caller("r", "t")))


def test_a_request_ends_with_what_it_began_with_and_then_its_connection_is_closed() -> None:
    async def main() -> None:
        serving, go_on, closed = Serving((), Decisions()), asyncio.Event(), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await go_on.wait()
            await peer.send(ANSWER)
            assert await peer.gone()
            closed.set()

        async with upstream(script) as old:
            serving.swap(config(old.port))
            request = asyncio.create_task(ask(serving))
            await until(lambda: old.accepted == 1)
            serving.swap(config())
            with pytest.raises(GatewayError):
                serving.catalog.resolve(WHO, "gpt")
            assert not serving.remotes and not serving.routers and not serving.standings
            go_on.set()
            await request
            await closed.wait()
            await serving.close()

    run(main())


def test_an_idle_connection_is_closed_with_its_provider() -> None:
    async def main() -> None:
        serving, closed = Serving((), Decisions()), asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(ANSWER)
            assert await peer.gone()
            closed.set()

        async with upstream(script) as old:
            serving.swap(config(old.port))
            await ask(serving)
            serving.swap(config(old.port, 9))
            assert not closed.is_set()
            serving.swap(config())
            await closed.wait()
            await serving.close()

    run(main())


def test_what_stays_keeps_its_connections_measurements_and_turns() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                await peer.send(ANSWER)

        serving = Serving((), Decisions())
        async with upstream(script) as first, upstream(script) as second:
            serving.swap(config(first.port))
            await ask(serving)
            standing, router, remote = serving.standings["p0/m"], serving.routers[0], serving.remotes["p0"]
            assert (standing.requests, first.accepted) == (1, 1)

            serving.swap(config(first.port))
            assert serving.routers[0] is router

            serving.swap(config(first.port, second.port))
            assert serving.standings["p0/m"] is standing and serving.remotes["p0"] is remote
            await ask(serving)
            await ask(serving)
            assert (first.accepted, second.accepted) == (1, 1)

            serving.swap(config(first.port, verify=False))
            assert serving.standings["p0/m"] is not standing, "a provider described anew is another one"
            await serving.close()

    run(main())


def test_what_cannot_be_made_changes_nothing() -> None:
    async def main() -> None:
        serving = Serving((), Decisions())
        serving.swap(config(9))
        router = serving.routers[0]
        with pytest.raises(ValueError, match="used twice"):
            serving.swap(config(9, 10, aliases=("gpt",)))
        assert serving.routers == (router,)
        assert serving.catalog.resolve(WHO, "gpt").adapter is router
        await serving.close()

    run(main())


def test_addresses_come_and_go_and_those_that_stay_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        found = ["127.0.0.2", "127.0.0.3"]

        def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
            assert host == "house.test"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        serving = Serving((), Decisions())

        def addresses() -> list[str | None]:
            return [one.address for one in serving.standings.values()]

        house = {
            "name": "house",
            "kind": "vllm",
            "base_url": "http://house.test:9/v1",
            "addresses": "each",
            "resolve_every_s": 0.1,
            "passthrough": True,
        }
        target = {"provider": "house", "model": "m", "price": {"input": "1"}}
        settings = {"providers": [house], "routes": [{"name": "gpt", "groups": [[target]]}]}
        serving.swap(msgspec.convert(settings, Config))
        assert addresses() == [None], "until somebody has answered, requests go to the name"
        await until(lambda: addresses() == found)
        first, remote = serving.standings, serving.remotes["house"]
        assert [one.entered_s for one in first.values()] == [None, None]
        assert serving.catalog.resolve(WHO, "gpt").leads_to("house/m")

        found[:] = ["127.0.0.3", "127.0.0.4"]
        await until(lambda: addresses() == found)
        stays, comes = serving.standings.items()
        assert first[stays[0]] is stays[1] and stays[1].entered_s is None
        assert comes[1].entered_s is not None and comes[0].startswith("house/m@")
        assert serving.catalog.resolve(WHO, "gpt").price_at(Served(comes[0], "house", "m", 1)) is not None
        assert serving.remotes["house"] is remote

        serving.swap(config())
        assert not serving.standings
        await serving.close()

    run(main())


def test_what_was_learnt_of_slow_targets_stays_with_its_settings() -> None:
    async def main() -> None:
        serving, hedge = Serving((), Decisions()), {"percentile": 90}
        serving.swap(config(9, hedge=hedge))
        first = serving.routers[0]
        assert first.hedging is not None and first.mirror is None
        serving.swap(config(9, weight=2, hedge=hedge, mirror={"provider": "p0", "model": "shadow"}))
        second = serving.routers[0]
        assert second is not first and second.hedging is first.hedging and second.mirror is not None
        serving.swap(config(9, hedge={"percentile": 99}))
        assert serving.routers[0].hedging is not first.hedging
        serving.swap(config(9))
        assert serving.routers[0].hedging is None
        await serving.close()

    run(main())
