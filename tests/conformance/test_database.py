"""One suite over every implementation of `Database`, and over the migrations on each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.state.database import Conflict, Database, DatabaseUnavailable, NoSuchTable, Statements
from gateway.state.migrate import Migration, known, migrate, pending
from gateway.state.postgres import open_postgres
from gateway.state.sqlite import open_sqlite

TABLE = """CREATE TABLE t (
    id BIGINT PRIMARY KEY, text TEXT UNIQUE, flag BOOLEAN, raw BYTEA, ratio DOUBLE PRECISION, CHECK (id <> 13))"""
INSERT = "INSERT INTO t (id, text) VALUES ($1, $2)"

Opened = Callable[[], Awaitable[Database]]
Work = Callable[[Database], Awaitable[None]]
With = Callable[[Work], None]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens the same database each time it is called, as another process would."""
    if request.param == "sqlite":
        return lambda: open_sqlite(tmp_path / "data", serve=False)
    url = request.getfixturevalue("postgres").database()
    return lambda: open_postgres(url, connections_max=5)


@pytest.fixture
def with_database(opened: Opened) -> With:
    def run(work: Work) -> None:
        async def inside() -> None:
            database = await opened()
            try:
                await database.execute(TABLE)
                await work(database)
            finally:
                await database.close()

        asyncio.run(inside())

    return run


def test_values_come_back_by_column_name(with_database: With) -> None:
    async def work(database: Database) -> None:
        values = (2**60, "ü'; DROP TABLE t", True, b"\x00\xff", 0.5)
        sql = "INSERT INTO t (id, text, flag, raw, ratio) VALUES ($1, $2, $3, $4, $5)"
        assert await database.execute(sql, *values) == 1
        rows = await database.query("SELECT id, text, flag, raw, ratio FROM t WHERE text = $1 AND flag", values[1])
        assert rows == [{"id": 2**60, "text": values[1], "flag": True, "raw": b"\x00\xff", "ratio": 0.5}]
        assert await database.execute("UPDATE t SET ratio = $2 WHERE id = $1 AND ratio = $3", 2**60, 1.5, 0.5) == 1
        assert await database.execute("DELETE FROM t WHERE id = $1", 7) == 0
        assert await database.query("SELECT id FROM t WHERE id = $1", 7) == []
        await database.execute(sql, 1, None, None, None, None)
        assert await database.query("SELECT text, flag, raw, ratio FROM t WHERE id = 1") == [
            {"text": None, "flag": None, "raw": None, "ratio": None}
        ]

    with_database(work)


def test_sums_are_exact_integers(with_database: With) -> None:
    async def work(database: Database) -> None:
        for number in (2**61, 2**61 + 1):
            await database.execute(INSERT, number, None)
        rows = await database.query("SELECT sum(id) AS total, count(*) AS n, max(id) AS top FROM t")
        assert rows == [{"total": 2**62 + 1, "n": 2, "top": 2**61 + 1}]
        assert all(type(value) is int for value in rows[0].values())

    with_database(work)


@pytest.mark.parametrize("count", [0, 1, 9, 10, 237])
def test_many_rows_are_all_added_or_none(with_database: With, count: int) -> None:
    async def work(database: Database) -> None:
        rows = [(number, f"text {number}") for number in range(1000, 1000 + count)]
        await database.insert("t", ("id", "text"), iter(rows))
        assert await database.query("SELECT id, text FROM t ORDER BY id") == [{"id": id, "text": t} for id, t in rows]

        async def again(inside: Statements) -> None:
            await inside.insert("t", ("id", "text"), [(5, "new"), (6, "new too"), *rows[-1:]])

        if rows:
            with pytest.raises(Conflict):
                await database.run(again)
        with pytest.raises(Conflict):
            async with database.transaction() as inside:
                await inside.insert("t", ("id",), [(7,), (13,)])
        assert len(await database.query("SELECT id FROM t")) == count

    with_database(work)


def test_rows_are_inserted_once_or_updated(with_database: With) -> None:
    async def work(database: Database) -> None:
        once = "INSERT INTO t (id, text) VALUES ($1, $2), ($3, $4) ON CONFLICT (id) DO NOTHING RETURNING id"
        async with database.transaction() as inside:
            assert await inside.query(once, 1, "a", 2, "b") == [{"id": 1}, {"id": 2}]
            assert await inside.query(once, 2, "x", 3, "c") == [{"id": 3}]
            add = "INSERT INTO t (id, ratio) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET ratio = excluded.ratio"
            assert await inside.execute(add, 1, 4.5) == 1
        assert await database.query("SELECT text, ratio FROM t WHERE id = 1") == [{"text": "a", "ratio": 4.5}]

    with_database(work)


def test_a_parameter_may_be_used_twice_and_ten_are_kept_apart(with_database: With) -> None:
    async def work(database: Database) -> None:
        names = ", ".join(f"CAST(${i} AS BIGINT) AS c{i}" for i in (1, 10, 2, 3, 4, 5, 6, 7, 8, 9))
        rows = await database.query(f"SELECT {names}, CAST($1 AS BIGINT) AS again", *range(1, 11))
        assert (rows[0]["c1"], rows[0]["again"], rows[0]["c10"], rows[0]["c2"]) == (1, 1, 10, 2)

    with_database(work)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_transaction_is_all_or_nothing(with_database: With, concurrent: bool) -> None:
    async def work(database: Database) -> None:
        async with database.transaction(concurrent=concurrent) as inside:
            await inside.execute(INSERT, 1, "a")
            assert await inside.query("INSERT INTO t (id) VALUES (2) RETURNING id") == [{"id": 2}]
            assert await database.query("SELECT id FROM t") == [], "nobody sees it before the commit"
        assert len(await database.query("SELECT id FROM t")) == 2
        with pytest.raises(ZeroDivisionError):
            async with database.transaction(concurrent=concurrent) as inside:
                await inside.execute(INSERT, 3, "c")
                raise ZeroDivisionError
        for bad in ((INSERT, 5, "d"), (INSERT, 13, "x"), (INSERT, 4, "y")):
            with pytest.raises(Conflict):
                async with database.transaction(concurrent=concurrent) as inside:
                    await inside.execute(INSERT, 4, "d")
                    await inside.execute(*bad)
        assert [row["id"] for row in await database.query("SELECT id FROM t ORDER BY id")] == [1, 2]

    with_database(work)


def test_work_that_is_run_is_all_or_nothing_and_gives_its_result(with_database: With) -> None:
    async def work(database: Database) -> None:
        async def good(inside: Statements) -> int:
            await inside.execute(INSERT, 1, "a")
            return len(await inside.query("SELECT id FROM t"))

        async def bad(inside: Statements) -> None:
            await inside.execute(INSERT, 2, "b")
            raise ZeroDivisionError

        async def conflicting(inside: Statements) -> None:
            await inside.execute(INSERT, 3, "c")
            await inside.execute(INSERT, 1, "a")

        assert await database.run(good) == 1
        with pytest.raises(ZeroDivisionError):
            await database.run(bad)
        with pytest.raises(Conflict):
            await database.run(conflicting)
        assert await database.query("SELECT id FROM t") == [{"id": 1}]

    with_database(work)


def test_transactions_take_turns_also_across_processes(with_database: With, opened: Opened) -> None:
    async def work(database: Database) -> None:
        await database.execute(INSERT, 0, "0")
        other = await opened()

        async def increment(where: Database) -> None:
            async with where.transaction() as inside:
                rows = await inside.query("SELECT text FROM t WHERE id = 0")
                await inside.execute("UPDATE t SET text = $1 WHERE id = 0", str(int(str(rows[0]["text"])) + 1))

        try:
            await asyncio.gather(*(increment(where) for where in (database, other) for _ in range(20)))
        finally:
            await other.close()
        assert await database.query("SELECT text FROM t") == [{"text": "40"}]

    with_database(work)


def test_concurrent_transactions_lose_no_update(with_database: With) -> None:
    async def work(database: Database) -> None:
        await database.execute("INSERT INTO t (id, ratio) VALUES (0, 0)")

        async def increment() -> None:
            async with database.transaction(concurrent=True) as inside:
                await inside.execute("UPDATE t SET ratio = ratio + 1 WHERE id = 0")

        await asyncio.gather(*(increment() for _ in range(50)))
        assert await database.query("SELECT ratio FROM t") == [{"ratio": 50.0}]

    with_database(work)


def test_a_transaction_cancelled_anywhere_leaves_the_database_usable(with_database: With) -> None:
    async def work(database: Database) -> None:
        async def write(number: int) -> None:
            async with database.transaction() as inside:
                await inside.execute(INSERT, number, f"{number} a")
                await inside.execute(INSERT, -number, f"{number} b")

        # Cancelled once and again after a varying number of turns of the loop, so at every await of the transaction.
        for number in range(20, 60):
            task = asyncio.create_task(write(number))
            for _ in range(number % 20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with database.transaction() as inside:
                await inside.execute("UPDATE t SET ratio = 1")
        counts = await database.query("SELECT count(*) AS n FROM t GROUP BY abs(id)")
        assert {row["n"] for row in counts} <= {2}

    with_database(work)


def test_more_callers_than_connections_wait_for_each_other(with_database: With) -> None:
    async def work(database: Database) -> None:
        await asyncio.gather(*(database.execute(INSERT, number, str(number)) for number in range(20, 120)))
        found = await asyncio.gather(*(database.query("SELECT count(*) AS n FROM t") for _ in range(50)))
        assert {rows[0]["n"] for rows in found} == {100}

    with_database(work)


def test_a_missing_table_says_so(with_database: With) -> None:
    async def work(database: Database) -> None:
        for call in (database.query, database.execute):
            with pytest.raises(NoSuchTable, match="nowhere"):
                await call("SELECT id FROM nowhere")

    with_database(work)


def test_a_closed_database_is_unavailable(opened: Opened) -> None:
    async def run() -> None:
        database = await opened()
        await database.close()
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await database.query("SELECT 1")
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await database.execute("SELECT 1")
        with pytest.raises(DatabaseUnavailable, match="closed"):
            async with database.transaction():
                pass

    asyncio.run(run())


def test_processes_that_start_together_apply_each_migration_once(opened: Opened) -> None:
    one = Migration(1, "0001_one.sql", "CREATE TABLE one (id BIGINT PRIMARY KEY);\nINSERT INTO one VALUES (1);\n")
    two = Migration(2, "0002_two.sql", "CREATE TABLE two (id BIGINT PRIMARY KEY);\n")

    async def run() -> None:
        databases = [await opened() for _ in range(4)]
        try:
            assert await pending(databases[0], [one, two]) == [one.name, two.name]
            applied = await asyncio.gather(*(migrate(database, [one, two]) for database in databases))
            assert sorted(name for names in applied for name in names) == [one.name, two.name]
            assert await databases[1].query("SELECT id FROM one") == [{"id": 1}]
            broken = Migration(3, "0003_broken.sql", "CREATE TABLE three (id BIGINT);\nCREATE TABLE one (id BIGINT);\n")
            with pytest.raises(Exception, match=r"one.* already exists"):
                await migrate(databases[2], [one, two, broken])
            with pytest.raises(NoSuchTable):
                await databases[3].query("SELECT id FROM three")
        finally:
            for database in databases:
                await database.close()

    asyncio.run(run())


def test_the_migrations_of_this_code(opened: Opened) -> None:
    async def run() -> None:
        database = await opened()
        try:
            assert await migrate(database, known()) == [migration.name for migration in known()]
            assert await pending(database, known()) == []
        finally:
            await database.close()

    asyncio.run(run())
