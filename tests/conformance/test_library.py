"""The library's files over both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.library.errors import InUse, NotFound
from gateway.library.facts import Facts
from gateway.library.files import Conflict, File, Files, Wanted
from gateway.state.database import Database
from gateway.state.migrate import known, migrate
from gateway.state.postgres import open_postgres
from gateway.state.sqlite import open_sqlite

FACTS = Facts(architecture="qwen2", title="Qwen2.5 0.5B Instruct", parameters=494_000_000, licence="apache-2.0")

Work = Callable[[Files, Database], Awaitable[None]]
With = Callable[[Work], None]


@pytest.fixture(params=["sqlite", "postgres"])
def with_files(request: pytest.FixtureRequest, tmp_path: Path) -> With:
    def run(work: Work) -> None:
        async def inside() -> None:
            database: Database
            if request.param == "sqlite":
                database = await open_sqlite(tmp_path, serve=True)
            else:
                database = await open_postgres(request.getfixturevalue("postgres").database(), alone=True)
            try:
                await migrate(database, known())
                times = iter(range(1, 1000))
                files = Files(database, now_us=lambda: next(times))
                await files.open()
                await work(files, database)
            finally:
                await database.close()

        asyncio.run(inside())

    return run


async def named(files: Files, name: str, **fields: Any) -> File:
    file = await files.add(name, "verifying", how="link", source=f"/models/{name}", tags=("lab",))
    return await files.change(file.id, **{"facts": FACTS, "status": "ready", **fields})


def test_what_is_added_is_found_again(with_files: With) -> None:
    async def work(files: Files, database: Database) -> None:
        file = await named(files, "a.gguf", sha256="ab", size_bytes=7)
        assert await files.get(file.id) == file
        assert (file.version, file.created_us, file.changed_us) == (2, 1, 2)
        assert (await files.same("ab"), await files.same("cd")) == (file, None)
        with pytest.raises(NotFound):
            await files.get("b")
        with pytest.raises(InUse):
            await files.change(file.id, 1, reason="old")

    with_files(work)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("qwen", "ab"),
        ("QWEN instr", "ab"),
        ("q4_k", "a"),
        ("q4_k_m 0", "a"),
        ("5b", "ab"),
        ("MOWE", "b"),
        ("m\u00f6w", "b"),
        ("MODEL", "abc"),
        ("lab", "abc"),
        ("apache", "ab"),
        ("wen", ""),
        ("llama qwen", ""),
        ("' OR 1=1 --", ""),
        ('"* : & |', ""),
        ("\\ ( ! )", ""),
    ],
)
def test_words_are_found_by_their_beginnings(with_files: With, text: str, names: str) -> None:
    async def work(files: Files, database: Database) -> None:
        await named(files, "qwen2.5-0.5b-instruct-Q4_K_M.gguf", facts=replace(FACTS, quantisation="Q4_K_M"))
        await named(files, "qwen-M\u00f6we-Q8_0.gguf", facts=replace(FACTS, quantisation="Q8_0"))
        await named(files, "c.gguf", facts=None)
        found, more = await files.page(Wanted(text=text), 10)
        assert not more
        letters = {"qwen2.5-0.5b-instruct-Q4_K_M.gguf": "a", "qwen-M\u00f6we-Q8_0.gguf": "b", "c.gguf": "c"}
        assert "".join(sorted(letters[file.name] for file in found)) == names

    with_files(work)


def test_filters_pages_and_what_changes(with_files: With) -> None:
    async def work(files: Files, database: Database) -> None:
        made = [await named(files, f"{name}.gguf") for name in "abcde"]
        await files.change(made[1].id, status="quarantined", facts=replace(FACTS, architecture="llama"))
        page, more = await files.page(Wanted(), 2)
        assert ([file.name for file in page], more) == (["e.gguf", "d.gguf"], True)
        page, more = await files.page(Wanted(), 3, page[-1].id)
        assert ([file.name for file in page], more) == (["c.gguf", "b.gguf", "a.gguf"], False)
        assert [file.name for file in (await files.page(Wanted(status="quarantined"), 9))[0]] == ["b.gguf"]
        assert len((await files.page(Wanted(architecture="qwen2", role="model"), 9))[0]) == 4
        assert [file.name for file in (await files.page(Wanted(text="llama"), 9))[0]] == ["b.gguf"]
        await files.delete(made[0].id)
        assert len((await files.page(Wanted(text="lab"), 9))[0]) == 4
        with pytest.raises(NotFound):
            await files.get(made[0].id)
        assert [file.name for file in await files.unfinished()] == ["a.gguf"]
        await files.forget(made[0].id)
        await files.forget(made[2].id)  # That one is not deleted.
        assert await files.unfinished() == []
        assert (await files.get(made[2].id)).name == "c.gguf"

    with_files(work)


def test_one_content_is_ready_once(with_files: With) -> None:
    async def work(files: Files, database: Database) -> None:
        first = await named(files, "a.gguf", sha256="ab")
        with pytest.raises(Conflict):
            await named(files, "b.gguf", sha256="ab")
        await named(files, "b.gguf", sha256="ab", place="elsewhere")
        assert (await files.same("ab", "elsewhere")) != first == await files.same("ab")
        await files.delete(first.id)
        await named(files, "c.gguf", sha256="ab")

    with_files(work)


def test_the_index_is_made_anew_from_the_files(with_files: With) -> None:
    async def work(files: Files, database: Database) -> None:
        file = await named(files, "a.gguf")
        other = await named(files, "b.gguf")
        await database.execute("DELETE FROM library_words WHERE id = $1", file.id)
        await database.execute("DELETE FROM library_files WHERE id = $1", other.id)
        assert (await files.page(Wanted(text="lab"), 9))[0] == []
        await files.open()
        assert (await files.page(Wanted(text="lab"), 9))[0] == [file]
        rows = await database.query("SELECT id FROM library_words")
        assert [row["id"] for row in rows] == [file.id]

    with_files(work)
