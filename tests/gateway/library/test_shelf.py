"""What the library knows of pulls, of those that were killed and of what lies in the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gateway.config import demo_model_path
from gateway.library.errors import InUse
from gateway.library.files import File, Files, Wanted
from gateway.library.hub import Hosts, HubSettings
from gateway.library.hub import Hub as Client
from gateway.library.importing import Imports
from gateway.library.names import parse
from gateway.library.pulls import Pull, Pulls
from gateway.library.shelf import Shelf
from gateway.library.store import LockFile, Store
from tests.databases import open_migrated
from tests.hub import COMMIT, Hub

DEMO = Path(demo_model_path()).read_bytes()
NAME = "org/model:Q8_0"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({"demo-Q8_0.gguf": DEMO}) as running:
        yield running


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.library.shelf.TELL_EVERY_S", 0.01)


class Place:
    """A library and its pulls, as one process has them."""

    def __init__(self, hub: Hub, folder: Path, files: Files, names: tuple[str, ...]) -> None:
        self.files, self.folder = files, folder
        self.store, self.pins = Store(folder / "hub"), LockFile(folder / "models.lock")
        self._names = names
        self.imports = Imports(files, folder / "library", shelf=self._shelf)
        self._client = Client(HubSettings(endpoint=hub.endpoint), hosts=Hosts())

    def _shelf(self, place: str) -> Shelf:
        return Shelf(self.files, self.store, self.pins, place, self._names)

    async def open(self) -> None:
        await self.imports.open()
        self.pulls = Pulls(self._client, self.store, self.pins, shelf=self.imports.shelf)

    async def reopened(self) -> None:
        """As the next start finds it."""
        await self._shelf(await self.place()).open()

    async def place(self) -> str:
        return (self.folder / "library/.place").read_text()

    async def pull(self) -> Pull:
        pull = self.pulls.start(parse(NAME))
        await pull.ended.wait()
        return pull

    async def known(self) -> list[File]:
        return (await self.files.page(Wanted(), 10))[0]

    async def one(self) -> File:
        (file,) = await self.known()
        return file

    async def until(self, status: str) -> File:
        while not (known := await self.known()) or known[0].status != status:
            await asyncio.sleep(0.01)
        return known[0]


def run(hub: Hub, folder: Path, work: Callable[[Place], Awaitable[None]], names: tuple[str, ...] = ()) -> None:
    async def inside() -> None:
        database = await open_migrated(folder / "state", serve=True)
        try:
            place = Place(hub, folder, Files(database), names)
            await place.open()
            async with asyncio.timeout(60):
                await work(place)
            await place.pulls.close()
            await place.imports.close()
        finally:
            await database.close()

    asyncio.run(inside())


def test_a_pull_is_seen_while_it_comes_and_ready_when_it_is_here(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_piece = 1_000_000
    hub.paced.clear()

    async def work(place: Place) -> None:
        pull = place.pulls.start(parse(NAME))
        file = await place.until("downloading")
        assert (file.name, file.how, file.source, file.path) == ("demo-Q8_0.gguf", "pull", f"hf:{NAME}", "")
        assert (file.size_bytes, file.sha256, file.repo) == (len(DEMO), hub.sha256("demo-Q8_0.gguf"), "org/model")
        while not 0 < (await place.one()).done_bytes <= 1_000_000:
            await asyncio.sleep(0.01)
        hub.paced.set()
        await pull.ended.wait()
        file = await place.one()
        assert (file.status, Path(file.path).read_bytes() == DEMO, file.done_bytes) == ("ready", True, len(DEMO))
        assert file.facts is not None and file.facts.quantisation == "Q8_0"
        assert (await place.files.page(Wanted(text="org q8_0"), 10))[0] == [file]

    run(hub, tmp_path, work)


def test_what_goes_wrong_is_told_and_what_is_stopped_is_available(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        hub.redirect_to = "http://elsewhere.invalid/"
        await place.pull()
        assert "none of its hosts" in (await place.until("error")).reason
        (failed,) = place.pulls.list()
        await place.pulls.cancel(place.pulls.get(failed.id) or pytest.fail())
        assert ((await place.one()).status, (await place.one()).reason) == ("available", "")
        hub.redirect_to = None
        hub.bytes_per_piece = 1_000_000
        hub.paced.clear()
        pull = place.pulls.start(parse(NAME))
        await place.until("downloading")
        while not pull.done_bytes:
            await asyncio.sleep(0.01)
        place.pulls.pause(pull)
        hub.paced.set()
        file = await place.until("available")
        assert file.done_bytes > 0 and not file.reason
        await place.pulls.cancel(pull)
        assert (await place.one()).done_bytes == 0

    run(hub, tmp_path, work)


def test_a_pull_ends_also_where_nobody_can_be_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(place: Place) -> None:
        async def broken(pull: Pull) -> None:
            raise AssertionError("a bug")

        monkeypatch.setattr(place.imports.shelf, "_tell", broken)
        pull = await place.pull()
        assert (pull.status, place.pulls.resume(pull)) == ("succeeded", False)

    run(hub, tmp_path, work)


def test_a_start_finds_what_others_left(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.pull()
        file = await place.one()
        await place.files.change(file.id, status="downloading", path="")
        await place.reopened()
        assert (await place.one()).status == "ready"
        Path(file.path).unlink()
        await place.reopened()
        assert ((gone := await place.one()).status, gone.path) == ("available", "")
        await place.files.change(file.id, status="downloading")
        (remote,) = place.pins.read()[NAME].files
        with place.store.lock("org/model", remote, lambda: False):
            await place.reopened()
            assert (await place.one()).status == "downloading", "somebody is at work on it"
        await place.reopened()
        assert (await place.one()).status == "available"

    run(hub, tmp_path, work)


def test_one_content_is_known_once(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(DEMO)

    async def work(place: Place) -> None:
        mine = await place.imports.wait((await place.imports.start(tmp_path / "mine.gguf")).id)
        await place.pull()
        file = await place.one()
        assert (file.id, file.status, file.repo, file.commit_id) == (mine.id, "ready", "org/model", COMMIT)

    run(hub, tmp_path, work)


def test_what_was_pulled_is_deleted_with_its_bytes(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.pull()
        await place.imports.delete((await place.one()).id)
        await place.imports.close()
        assert await place.known() == [] and place.pins.read() == {}
        assert not [path for path in (tmp_path / "hub/models--org--model").rglob("*") if path.name not in kept(path)]

    def kept(path: Path) -> set[str]:
        return {path.name} if path.is_dir() or path.parent.name == "refs" else set()

    run(hub, tmp_path, work)


def test_what_was_deleted_is_gone_also_when_the_process_died_of_it(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.pull()
        file = await place.one()
        await place.files.delete(file.id)
        pins = (place.folder / "models.lock").read_bytes()
        for written, goes in ((b"not JSON", False), (pins, True)):
            (place.folder / "models.lock").write_bytes(written)
            again = Imports(place.files, place.folder / "library", shelf=place._shelf)
            await again.open()
            assert await place.known() == [] and Path(file.path).exists() is not goes
            await again.close()

    run(hub, tmp_path, work)


def test_what_the_configuration_pulls_is_not_deleted(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.pull()
        with pytest.raises(InUse, match="the configuration names it"):
            await place.imports.delete((await place.one()).id)

    run(hub, tmp_path, work, names=(f"hf:{NAME}",))


def test_what_was_pulled_and_is_damaged_is_put_away_and_pulled_again(hub: Hub, tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        await place.pull()
        file = await place.one()
        blob = Path(file.path).resolve()
        blob.write_bytes(DEMO[:-1] + bytes([DEMO[-1] ^ 1]))
        await place.imports.verify(file.id)
        file = await place.imports.wait(file.id)
        assert (file.status, Path(file.path).parent.parent.name) == ("quarantined", "quarantine")
        assert not blob.exists()
        await place.pull()
        assert blob.read_bytes() == DEMO

    run(hub, tmp_path, work)
