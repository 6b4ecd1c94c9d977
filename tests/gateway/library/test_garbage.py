"""What goes because nobody needs it, and all that looks like it and stays."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from filelock import FileLock
from msgspec.structs import replace

from gateway.library.files import Files
from gateway.library.garbage import DAY_S, Collector, Grounds
from gateway.library.names import RemoteFile
from gateway.library.store import LockFile, Pinned, Store
from tests.databases import open_migrated

OURS, THEIRS, SHOWN = "a" * 64, "b" * 64, "c" * 64
NOW_S = time.time()


class Place:
    """A cache and a library in which everything is two days old, unless it is said to be new."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.files = files
        self.cache, self.library, self.sessions = folder / "hub", folder / "library", folder / "sessions"
        self.repo = self.cache / "models--org--model"
        self.pins = LockFile(folder / "models.lock")
        pinned = (RemoteFile("x.gguf", 1, OURS), RemoteFile("y.gguf", 1, SHOWN))
        self.pins.write("org/model", Pinned("org/model", "model", "0" * 40, pinned))
        grounds = Grounds(
            store=Store(self.cache),
            pins=self.pins,
            library=self.library,
            sessions=self.sessions,
            models=frozenset(("kept",)),
            quarantine_s=30 * DAY_S,
        )
        self.collector = Collector(files, grounds, now_s=lambda: NOW_S)

    def put(self, path: Path, content: bytes = b"12345", days: float = 2) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.age(path, days)
        return path

    def age(self, path: Path, days: float = 2) -> None:
        then_s = NOW_S - days * DAY_S
        os.utime(path, (then_s, then_s), follow_symlinks=False)

    def blob(self, name: str, days: float = 2) -> Path:
        return self.put(self.repo / "blobs" / name, days=days)

    async def goes(self, **how: bool) -> list[tuple[str, str]]:
        return [(one.sort, Path(one.path).name) for one in await self.collector.collect(**how)]


@pytest.fixture
def at_place(tmp_path: Path) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    def run(work: Callable[[Place], Awaitable[None]]) -> None:
        async def inside() -> None:
            database = await open_migrated(tmp_path / "state", serve=True)
            try:
                files = Files(database, now_us=lambda: int((NOW_S - 40 * DAY_S) * 1e6))
                await files.open()
                await work(Place(tmp_path, files))
            finally:
                await database.close()

        asyncio.run(inside())

    return run


With = Callable[[Callable[[Place], Awaitable[None]]], None]


def test_of_a_shared_cache_goes_what_is_ours_and_all_only_if_asked(at_place: With) -> None:
    async def work(place: Place) -> None:
        ours = [place.blob(f"{OURS}.incomplete"), place.blob(OURS)]
        theirs = [place.blob(f"{THEIRS}.0123abcd.incomplete"), place.blob(THEIRS)]
        stays = [place.blob(SHOWN), place.blob("d" * 64, days=0.5)]
        link = place.repo / "snapshots" / "0" / "y.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(stays[0])
        draft = link.with_name(".123.456")
        draft.symlink_to(stays[0])
        place.age(draft)
        found = [("blob", OURS), ("part", f"{OURS}.incomplete"), ("draft", ".123.456")]
        assert await place.goes(dry_run=True) == found and all(path.exists() for path in ours)
        assert await place.goes() == found
        assert [path.exists() for path in (*ours, draft, *theirs, *stays, link)] == [False] * 3 + [True] * 5
        assert await place.goes(everything=True) == [("blob", THEIRS), ("part", theirs[0].name)]
        assert await place.goes(everything=True) == []
        assert not list(place.cache.rglob("*.lock"))

    at_place(work)


def test_what_somebody_holds_stays(at_place: With) -> None:
    async def work(place: Place) -> None:
        part = place.blob(f"{OURS}.incomplete")
        guard = place.put(place.cache / ".locks" / place.repo.name / f"{OURS}.lock", b"")
        with FileLock(guard):
            assert await place.goes() == []
        assert await place.goes(dry_run=True) == [("part", part.name), ("lock", guard.name)]
        assert guard.exists()
        assert await place.goes() == [("part", part.name)], "the lock goes with it"
        assert not guard.exists()

    at_place(work)


def test_repositories_without_anything_go(at_place: With) -> None:
    async def work(place: Place) -> None:
        for name in ("models--a--empty", "models--b--file"):
            place.put(place.cache / name / "refs/main", b"0" * 40)
            (place.cache / name / "snapshots/0").mkdir(parents=True)
        place.put(place.cache / "models--b--file/snapshots/0/x.json")
        for name in ("models--a--empty", "models--b--file"):
            place.age(place.cache / name)
        assert await place.goes() == [("folder", "models--a--empty")]
        assert (place.cache / "models--b--file/refs/main").exists()

    at_place(work)


def test_in_the_library_goes_what_nobody_knows_and_old_quarantine(at_place: With) -> None:
    async def work(place: Place) -> None:
        old = await place.files.add("old.gguf", "quarantined", how="copy", source="/old.gguf")
        strange, own = str(uuid.uuid4()), await place.files.add("x.gguf", "ready", how="copy", source="/x.gguf")
        whole = str(uuid.uuid4())
        for folder in (place.library / "quarantine" / old.id, *(place.library / one for one in (whole, own.id))):
            place.put(folder / "x.gguf")
            place.age(folder)
        place.put(place.library / strange / ".part")
        place.age(place.library / strange)
        place.put(place.library / f".{strange}.lock")
        place.put(place.library / ".place")
        found = [("quarantine", old.id), ("import", strange)]
        assert await place.goes() == found, "the lock goes with it"
        assert (await place.files.get(old.id)).path == ""
        assert {path.name for path in place.library.iterdir()} == {own.id, whole, "quarantine", ".place"}
        assert await place.goes(everything=True) == [("import", whole)], "perhaps another database knows it"

    at_place(work)


def test_what_came_anew_keeps_its_path_when_its_bad_copy_goes(at_place: With) -> None:
    async def work(place: Place) -> None:
        file = await place.files.add("x.gguf", "ready", how="pull", source="hf:org/model", path="/here")
        place.put(place.library / "quarantine" / file.id / "x.gguf")
        place.age(place.library / "quarantine" / file.id)
        assert await place.goes() == [("quarantine", file.id)]
        assert (await place.files.get(file.id)).path == "/here"

    at_place(work)


def test_young_quarantine_stays(at_place: With) -> None:
    async def work(place: Place) -> None:
        file = await place.files.add("old.gguf", "quarantined", how="copy", source="/old.gguf")
        place.put(place.library / "quarantine" / file.id / "x.gguf")
        place.age(place.library / "quarantine" / file.id)
        place.collector._grounds = replace(place.collector._grounds, quarantine_s=50 * DAY_S)
        assert await place.goes() == []

    at_place(work)


def test_conversations_of_models_that_are_gone_go(at_place: With) -> None:
    async def work(place: Place) -> None:
        for name in ("kept", "gone", "loaded", "young"):
            place.put(place.sessions / name / "lock", b"")
            place.put(place.sessions / name / "sess_1.kv", days=0.5 if name == "young" else 2)
        with (place.sessions / "loaded/lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert await place.goes() == [("sessions", "gone")]
        assert sorted(path.name for path in place.sessions.iterdir()) == ["kept", "loaded", "young"]

    at_place(work)
