"""The slots of a replica that is killed while its requests run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.config_limits import ScopeLimits
from gateway.limits.orphans import BEAT_S, DEAD_US
from tests.faults.clients import Answer, Client
from tests.faults.fleet import Gateway, create_keys
from tests.stores import Postgres, Valkey

SLOTS = 4
ENDLESS = "answers:\n  - {text: one two three four, gap_s: 3600}\n"
BRIEF = "answers:\n  - {text: one}\n"
# The other one's own life sign may be a whole beat after it is dead, and a little is left to the machine.
FREE_S_MAX = DEAD_US / 1e6 + 2 * BEAT_S + 5


def test_the_slots_of_a_killed_replica_are_free_again(tmp_path: Path, valkey: Valkey, postgres: Postgres) -> None:
    state = f'state: {{database: "{postgres.database()}", redis: "{valkey.url}", replicas: 2}}\n'
    killed, other = (Gateway(tmp_path / name, state) for name in ("killed", "other"))
    for gateway, script in ((killed, ENDLESS), (other, BRIEF)):
        (gateway.log.parent / "script.yaml").write_text(script)
    ((_, key),) = create_keys(other.config, [ScopeLimits(concurrent_requests=SLOTS)])

    async def run() -> bool:
        client, answer = Client(killed.port), Answer(code="rate_limit_exceeded")
        while answer.code == "rate_limit_exceeded":  # A look at the other one took the slot.
            answer = await client.complete(key, 4, stream=True)
        client.leave()
        return answer.finished

    async def scenario() -> float:
        for gateway in (killed, other):
            gateway.start()
        for gateway in (killed, other):
            await gateway.ready()
        client = Client(other.port)

        async def refused() -> bool:
            return (await client.complete(key, 1)).code == "rate_limit_exceeded"

        running = [asyncio.create_task(run()) for _ in range(SLOTS)]
        async with asyncio.timeout(20):
            while not await refused():  # noqa: ASYNC110 - the condition is another process's.
                await asyncio.sleep(0.1)
        killed.kill()
        since_s = time.monotonic()
        async with asyncio.timeout(FREE_S_MAX):
            while await refused():  # noqa: ASYNC110 - the condition is another process's.
                await asyncio.sleep(0.25)
        client.leave()
        assert not any(await asyncio.gather(*running))
        return time.monotonic() - since_s

    try:
        print(f"free after {asyncio.run(scenario()):.1f} s")
    finally:
        for gateway in (killed, other):
            gateway.kill()
