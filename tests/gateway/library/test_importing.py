from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from filelock import FileLock

from gateway.config import demo_model_path
from gateway.library import drives, taking
from gateway.library.digests import digests
from gateway.library.drives import Drives
from gateway.library.errors import Cancelled, Corrupt, Full, InUse, NotFound, Unusable
from gateway.library.files import File, Files
from gateway.library.importing import Imports
from tests.databases import open_migrated

DEMO = Path(demo_model_path())


class Bench:
    """A library over a new database, with a folder that files come from."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.files = files
        self.root = folder / "library"
        self.sources = folder / "models"
        self.sources.mkdir(exist_ok=True)
        self.model = self.sources / "demo.gguf"
        if not self.model.exists():
            self.model.write_bytes(DEMO.read_bytes())
        self.imports = Imports(files, self.root, sources=[self.sources])

    async def bring(self, source: Path | None = None, way: Any = "auto") -> File:
        file = await self.imports.start(source or self.model, way)
        assert (file.status, file.path) == ("verifying", "")
        return await self.imports.wait(file.id)

    def left(self) -> list[str]:
        """What lies in the library's folder."""
        left = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir())
        return [path for path in left if path != ".place"]


def run(folder: Path, work: Callable[[Bench], Awaitable[None]]) -> None:
    async def inside() -> None:
        database = await open_migrated(folder / "state", serve=True)
        try:
            bench = Bench(folder, Files(database))
            await bench.imports.open()
            await work(bench)
            await bench.imports.close()
        finally:
            await database.close()

    asyncio.run(inside())


@pytest.mark.parametrize(("way", "how"), [("link", "link"), ("hardlink", "hardlink"), ("copy", "copy")])
def test_a_file_comes_in(tmp_path: Path, way: str, how: str) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring(way=way)
        data = bench.model.read_bytes()
        assert (file.status, file.reason, file.how, file.size_bytes) == ("ready", "", how, len(data))
        assert (file.sha256, file.blake3) == (hashlib.sha256(data).hexdigest(), blake3(data).hexdigest())
        assert Path(file.path).read_bytes() == data
        assert Path(file.path).parent == bench.root / file.id
        assert Path(file.path).is_symlink() == (how == "link")
        assert file.facts is not None
        assert (file.facts.architecture, file.facts.quantisation, file.facts.licence) == ("llama", "Q8_0", "apache-2.0")
        assert file.facts.context_tokens == 2048 and file.facts.template
        assert {"chat", "tools"} <= set(file.facts.capabilities)
        assert bench.left() == [f"{file.id}/demo.gguf"]

    run(tmp_path, work)


def test_a_name_may_be_as_long_as_file_systems_take(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        source = bench.sources / f"{'n' * 250}.gguf"
        bench.model.rename(source)
        file = await bench.bring(source, "copy")
        assert (file.status, Path(file.path).name) == ("ready", source.name)

    run(tmp_path, work)


def test_blocks_are_shared_where_that_is_possible_and_else_it_is_linked(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring()
        assert (file.status, file.how in ("reflink", "link")) == ("ready", True)
        forced = await bench.bring(way="reflink")
        if file.how == "link":
            assert (forced.status, "cannot share blocks" in forced.reason) == ("error", True)

    run(tmp_path, work)


def test_the_same_content_is_there_once(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        first = await bench.bring()
        again = await bench.bring(way="copy")
        assert (again.status, again.reason) == ("error", f"the same content is here already: {first.id}")
        assert bench.left() == [f"{first.id}/demo.gguf"]
        await bench.imports.delete(again.id)

    run(tmp_path, work)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "offsets"])
def test_what_is_no_model_is_put_into_quarantine_and_nothing_of_it_kept(tmp_path: Path, damage: str) -> None:
    data = DEMO.read_bytes()
    content = {"empty": b"", "text": b"hello", "half": data[: len(data) // 2], "offsets": b"GGUF" + b"\xff" * 999}[
        damage
    ]

    async def work(bench: Bench) -> None:
        bench.model.write_bytes(content)
        file = await bench.bring(way="copy")
        assert (file.status, file.path, bool(file.reason)) == ("quarantined", "", True)
        assert bench.left() == []
        assert bench.model.read_bytes() == content

    run(tmp_path, work)


def test_only_folders_that_are_named_are_looked_at(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        secret = tmp_path / "secret.gguf"
        secret.write_bytes(b"secret")
        (bench.sources / "way_out.gguf").symlink_to(secret)
        for source in (secret, bench.sources / "way_out.gguf", bench.sources / "none.gguf", bench.sources):
            with pytest.raises(Unusable) as caught:
                await bench.imports.start(source)
            assert str(caught.value) == f"there is no file {source.name} in a folder of library.import_dirs"
        with pytest.raises(Unusable):
            await bench.imports.start(bench.sources / ".." / "models" / "a:b.gguf")
        assert bench.left() == []

    run(tmp_path, work)


def test_a_file_that_was_changed_is_put_away(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring(way="copy")
        await bench.imports.verify(file.id)
        assert (await bench.imports.wait(file.id)).status == "ready"
        path = Path(file.path)
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        await bench.imports.verify(file.id)
        bad = await bench.imports.wait(file.id)
        assert (bad.status, bad.path) == ("quarantined", str(bench.root / "quarantine" / file.id / "demo.gguf"))
        with pytest.raises(InUse):
            await bench.imports.verify(file.id)
        await bench.imports.delete(file.id)
        await bench.imports.close()
        assert bench.left() == []

    run(tmp_path, work)


@pytest.mark.parametrize("sound", [True, False])
def test_what_was_pulled_knows_where_it_came_from_and_is_what_was_promised(tmp_path: Path, sound: bool) -> None:
    async def work(bench: Bench) -> None:
        repo, digest = bench.sources / "models--org--model", hashlib.sha256(DEMO.read_bytes()).hexdigest()
        (repo / "blobs").mkdir(parents=True)
        blob, shown = repo / "blobs" / (digest if sound else "0" * 64), repo / "snapshots" / "c0ffee" / "q" / "x.gguf"
        blob.write_bytes(DEMO.read_bytes())
        shown.parent.mkdir(parents=True)
        shown.symlink_to(blob)
        file = await bench.bring(shown, "link")
        if sound:
            assert (file.status, file.name, file.repo, file.commit_id) == ("ready", "x.gguf", "org/model", "c0ffee")
            assert (file.repo_file, Path(file.path).readlink()) == ("q/x.gguf", blob)
        else:
            assert (file.status, file.reason) == ("quarantined", "its content is not what the hub said that it is")
            assert bench.left() == []

    run(tmp_path, work)


def test_what_a_link_leads_to_is_never_touched(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring(way="link")
        bench.model.write_bytes(b"other")
        await bench.imports.verify(file.id)
        assert (await bench.imports.wait(file.id)).status == "quarantined"
        assert bench.left() == []
        bench.model.unlink()
        bench.model.write_bytes(DEMO.read_bytes())
        file = await bench.bring(way="link")
        await bench.imports.delete(file.id)
        await bench.imports.close()
        assert bench.left() == [] and bench.model.exists()
        with pytest.raises(NotFound):
            await bench.files.get(file.id)

    run(tmp_path, work)


def test_what_is_referred_to_stays(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring()
        bench.imports = Imports(bench.files, bench.root, referred=[Path(file.path)])
        await bench.imports.open()
        with pytest.raises(InUse, match="the configuration names it"):
            await bench.imports.delete(file.id)
        assert Path(file.path).exists()

    run(tmp_path, work)


def test_what_a_dead_process_left_is_ended_and_what_a_living_one_does_is_not(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        ready = await bench.bring()
        await bench.files.change(ready.id, status="verifying")
        place = ready.place
        dead = await bench.files.add("dead.gguf", "verifying", how="copy", source="/x/dead.gguf", place=place)
        (bench.root / dead.id).mkdir()
        (bench.root / dead.id / ".dead.gguf.part").write_bytes(b"part")
        living = await bench.files.add("living.gguf", "verifying", how="copy", source="/x/living.gguf", place=place)
        others = await bench.files.add("others.gguf", "verifying", how="copy", source="/x", place="elsewhere")
        with FileLock(bench.root / f".{living.id}.lock"):
            await bench.imports.open()
        assert (await bench.files.get(ready.id)).reason == "a check of it was interrupted: verify it again"
        assert (await bench.files.get(dead.id)).reason == "the import was interrupted: import it again"
        assert (await bench.files.get(living.id)).status == "verifying"
        assert (await bench.files.get(others.id)).status == "verifying"
        with pytest.raises(InUse, match="another machine"):
            await bench.imports.delete(others.id)
        assert not (bench.root / dead.id).exists()
        await bench.imports.verify(ready.id)
        assert (await bench.imports.wait(ready.id)).status == "ready"

    run(tmp_path, work)


def test_a_full_or_read_only_place_is_said_before_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(bench: Bench) -> None:
        monkeypatch.setattr(drives, "SPACE_LEFT_BYTES", 1 << 60)
        file = await bench.bring(way="copy")
        assert (file.status, "are free" in file.reason) == ("error", True)
        assert (await bench.bring(way="link")).status == "ready"

    run(tmp_path, work)
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(Unusable):
        drives.check_writable(tmp_path / "plain" / "below", 0)
    with pytest.raises(Unusable, match="cannot be written to"):
        drives.check_writable(Path("/proc/1"), 0)


def test_stopping(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.imports.start(bench.model, "copy")
        await bench.imports.cancel(file.id)
        file = await bench.imports.wait(file.id)
        assert (file.status, file.reason) == ("error", "it was stopped")
        assert bench.left() == []
        with pytest.raises(InUse):
            await bench.imports.cancel(file.id)

    run(tmp_path, work)


def test_however_much_is_read_nobody_else_waits_for_a_thread(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        let = threading.Event()

        async def read(file: File, folder: Path, stop: threading.Event) -> None:
            await bench.imports.reading(let.wait)

        for number in range(40):
            await bench.imports.begin(f"{number}.jsonl", "made", "", read, kind="dataset")
        try:
            async with asyncio.timeout(20):
                await asyncio.to_thread(int)
        finally:
            let.set()

    run(tmp_path, work)


def test_one_that_is_read_is_not_deleted_and_one_that_is_deleted_not_read(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        file = await bench.bring(way="copy")
        with FileLock(bench.root / f".{file.id}.lock"), pytest.raises(InUse, match="another process"):
            await bench.imports.delete(file.id)
        for first, second in ((bench.imports.verify, bench.imports.delete), (bench.imports.delete,) * 2):
            one, other = await asyncio.gather(first(file.id), second(file.id), return_exceptions=True)
            assert not isinstance(one, Exception) and isinstance(other, InUse)
            if first == bench.imports.verify:
                assert (await bench.imports.wait(file.id)).status == "ready"
        with pytest.raises(NotFound):
            await bench.imports.wait(file.id)
        assert bench.left() == []

    run(tmp_path, work)


def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(bench: Bench) -> None:
        monkeypatch.setattr("gateway.library.importing.RUNNING_MAX", 1)
        file = await bench.imports.start(bench.model)
        with pytest.raises(Full):
            await bench.imports.start(bench.model)
        assert bench.imports.done_bytes(file.id) is not None
        await bench.imports.wait(file.id)
        assert bench.imports.done_bytes(file.id) is None

    run(tmp_path, work)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def write(size: int) -> None:
        with path.open("ab") as out:
            out.write(b"y")

    with pytest.raises(Corrupt):
        digests(path, stop=threading.Event(), told=write)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        digests(path, tmp_path / "copy", stop=stop)
    with pytest.raises(Unusable):
        digests(tmp_path / "none", stop=stop)
    with pytest.raises(Unusable):
        digests(Path("/dev/zero"), stop=stop)


@pytest.mark.parametrize(("rotational", "turns"), [("1\n", 1), ("0\n", 4), (None, 2)])
def test_how_many_read_from_a_drive_at_once(tmp_path: Path, rotational: str | None, turns: int) -> None:
    device = tmp_path.stat().st_dev
    folder = tmp_path / f"{os.major(device)}:{os.minor(device)}"
    if rotational is not None:
        (folder / "queue").mkdir(parents=True)
        (folder / "queue" / "rotational").write_text(rotational)
    assert Drives(tmp_path).turns_of(device) == turns

    async def scenario() -> None:
        queue, running, most = Drives(tmp_path), 0, 0

        async def one() -> None:
            nonlocal running, most
            async with queue.turn([tmp_path, tmp_path]):
                running += 1
                most = max(most, running)
                for _ in range(5):
                    await asyncio.sleep(0)
                running -= 1

        await asyncio.gather(*(one() for _ in range(10)))
        assert most == turns

    asyncio.run(scenario())


def test_mutated_files_never_come_in_as_something_that_they_are_not(tmp_path: Path) -> None:
    """`tests/faults/ggufs.py` has many more kinds of them."""
    data, draw = DEMO.read_bytes()[: 256 * 1024], random.Random(7)
    source = tmp_path / "mutated.gguf"
    for _ in range(200):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            mutated[draw.randrange(4096 if draw.random() < 0.8 else len(mutated))] = draw.randrange(256)
        source.write_bytes(mutated)
        with pytest.raises(taking.Unsound):  # The tensors are cut off, so that nothing can make it right.
            taking.look(source)
