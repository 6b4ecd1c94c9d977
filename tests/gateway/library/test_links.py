from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.library.drives import How, bring
from gateway.library.errors import InUse, NotFound, Unusable
from gateway.library.files import File, Files
from gateway.library.importing import Imports
from gateway.library.links import Link, Links, Repaired
from tests.databases import open_migrated

Work = Callable[["Bench"], Awaitable[None]]


class Bench:
    """A ready file, and a folder of another application."""

    def __init__(self, folder: Path, files: Files, links: Links, file: File) -> None:
        self.folder = folder
        self.files = files
        self.links = links
        self.file = file

    async def make(self, name: str = "x.gguf", how: How = "link") -> Link:
        return await self.links.make(self.file.id, self.folder / name, how)

    async def status(self, link: Link) -> str:
        (found,) = [one for one in (await self.links.page(100))[0] if one.id == link.id]
        return found.status


def run(tmp_path: Path, work: Work) -> None:
    folder, model = tmp_path / "app", tmp_path / "model.gguf"
    folder.mkdir()
    model.write_bytes(b"weights")

    async def inside() -> None:
        database = await open_migrated(tmp_path / "state", serve=True)
        try:
            files = Files(database)
            await files.open()
            file = await files.add("model.gguf", "verifying", how="copy", source=str(model))
            file = await files.change(file.id, status="ready", path=str(model), size_bytes=7)
            imports = Imports(files, tmp_path / "library")
            await work(Bench(folder, files, Links(database, imports, folders=[folder]), file))
            await imports.close()
        finally:
            await database.close()

    asyncio.run(inside())


@pytest.mark.parametrize("how", ["link", "hardlink", "copy"])
def test_a_link_is_made_found_repaired_and_taken_back(tmp_path: Path, how: How) -> None:
    async def work(bench: Bench) -> None:
        link, path = await bench.make(how=how), bench.folder / "x.gguf"
        assert (link.status, link.path, path.read_bytes()) == ("ok", str(path), b"weights")
        assert path.is_symlink() == (how == "link")
        with pytest.raises(InUse):
            await bench.make()
        with pytest.raises(InUse, match="it is linked from"):
            await bench.files.delete(bench.file.id)
        path.unlink()
        assert await bench.links.repair() == Repaired(ok=1, repaired=1)
        assert path.read_bytes() == b"weights"
        await bench.links.remove(link.id)
        assert list(bench.folder.iterdir()) == []
        await bench.files.delete(bench.file.id)
        with pytest.raises(NotFound):
            await bench.links.remove(link.id)

    run(tmp_path, work)


@pytest.mark.parametrize("how", ["hardlink", "copy"])
def test_copies_have_no_thread_that_others_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How) -> None:
    threads: list[str] = []

    def noted(source: Path, target: Path, way: How) -> None:
        threads.append(threading.current_thread().name.partition("_")[0])
        bring(source, target, way)

    async def work(bench: Bench) -> None:
        link = await bench.make(how=how)
        Path(link.path).unlink()
        assert await bench.links.repair() == Repaired(ok=1, repaired=1)

    monkeypatch.setattr("gateway.library.links.bring", noted)
    run(tmp_path, work)
    assert threads == ["library" if how == "copy" else "asyncio"] * 2


@pytest.mark.parametrize("how", ["link", "hardlink", "copy"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, how: How) -> None:
    async def work(bench: Bench) -> None:
        link, path = await bench.make(how=how), bench.folder / "x.gguf"
        path.unlink()
        path.write_bytes(b"somebody's own")
        assert await bench.links.repair() == Repaired(foreign=1)
        assert await bench.status(link) == "foreign"
        await bench.links.remove(link.id)
        assert path.read_bytes() == b"somebody's own"
        assert (await bench.links.page(10))[0] == []

    run(tmp_path, work)


def test_a_link_whose_file_is_gone_is_broken_until_it_is_back(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        link, model = await bench.make(), Path(bench.file.path)
        model.unlink()
        assert await bench.links.repair() == Repaired(broken=1)
        assert await bench.status(link) == "broken"
        model.write_bytes(b"weights")
        assert await bench.links.repair() == Repaired(ok=1)
        model.unlink()
        await bench.links.remove(link.id)
        assert list(bench.folder.iterdir()) == []

    run(tmp_path, work)


def test_nothing_is_made_elsewhere_or_in_the_place_of_something(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        (bench.folder / "there").write_bytes(b"")
        (bench.folder / "out").symlink_to(tmp_path)
        with pytest.raises(InUse):
            await bench.make("there")
        for name in ("../x.gguf", "none/x.gguf", "out/x.gguf", "..", "x" * 300):
            with pytest.raises(Unusable):
                await bench.make(name)
        with pytest.raises(NotFound):
            await bench.links.make("none", bench.folder / "x.gguf", "link")
        assert (await bench.links.page(10))[0] == []
        await bench.files.change(bench.file.id, status="quarantined")
        with pytest.raises(InUse, match="it is quarantined"):
            await bench.make()

    run(tmp_path, work)


def test_a_folder_that_is_closed_to_us_keeps_nobody_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(bench: Bench) -> None:
        closed, _ = await bench.make("closed"), await bench.make("open")

        def exists(path: Path) -> bool:
            if path.name == "closed":
                raise PermissionError(errno.EACCES, "Permission denied")
            return os.path.lexists(path)

        monkeypatch.setattr(Path, "is_symlink", exists)
        assert await bench.links.repair() == Repaired(ok=1, broken=1)
        with pytest.raises(Unusable, match="cannot be removed: Permission denied"):
            await bench.links.remove(closed.id)

    run(tmp_path, work)


def test_no_link_leads_to_a_file_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(bench: Bench) -> None:
        allowed = bench.links._allowed

        def late(path: Path) -> Path:
            asyncio.run_coroutine_threadsafe(bench.files.delete(bench.file.id), loop).result()
            return allowed(path)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(bench.links, "_allowed", late)
        with pytest.raises(NotFound):
            await bench.make()
        assert (await bench.links.page(10))[0] == [] and not any(bench.folder.iterdir())

    run(tmp_path, work)


def test_pages(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        made = [await bench.make(f"{n}.gguf") for n in range(3)]
        first, more = await bench.links.page(2)
        rest, no_more = await bench.links.page(2, first[-1].id, bench.file.id)
        assert ([one.id for one in (*first, *rest)], more, no_more) == ([one.id for one in made], True, False)

    run(tmp_path, work)
