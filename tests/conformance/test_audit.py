"""The audit log on PostgreSQL: several replicas write one chain."""

from __future__ import annotations

import asyncio

from gateway.audit import Audit, Event, Filter, verify
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from tests.stores import Postgres


def test_replicas_write_one_chain(postgres: Postgres) -> None:
    async def scenario() -> None:
        url = postgres.database()
        databases = [await open_postgres(url, alone=False) for _ in range(3)]
        try:
            await migrate(databases[0], known())
            replicas = [Audit(database, tick_s=0.001) for database in databases]
            for audit in replicas:
                audit.start()
            for n in range(300):
                replicas[n % 3].add(Event(action="key.create", actor=f"r{n % 3}", subject=f"{n:03d}", tenant="t"))
                if n % 7 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*(audit.close() for audit in replicas))
            chain = await verify(databases[1])
            assert (chain.count, chain.problem) == (300, None)
            for number in range(3):
                wanted = Filter(actor=f"r{number}", action="key.", tenant="t", outcome="ok")
                found, _ = await replicas[0].page(wanted, 1000)
                assert [one.subject for one in reversed(found)] == [f"{n:03d}" for n in range(number, 300, 3)]
            await databases[0].execute("UPDATE audit SET outcome = 'no' WHERE number = 150")
            assert (await verify(databases[0])).count == 149
        finally:
            for database in databases:
                await database.close()

    asyncio.run(scenario())
