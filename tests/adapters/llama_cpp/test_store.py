"""Files of conversations: what is written comes back, or nothing does."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Callable
from io import BufferedReader, BufferedWriter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adapters.errors import ModelLoading
from adapters.llama_cpp import sealed
from adapters.llama_cpp.asleep import Asleep
from adapters.llama_cpp.buffers import Buffers
from adapters.llama_cpp.kept import Blob, Checkpoint, Scan
from adapters.llama_cpp.messages import EngineSettings
from adapters.llama_cpp.records import CHUNK_BYTES, Damaged, Foreign, Lock, Record
from adapters.llama_cpp.store import Files, Store

ID = "sess_" + "0123456789ab" * 2
KEYS = [None, bytes(range(32))]
COMPATIBLE = bytes(32)


def blob(size: int = 5000, seed: int = 0) -> Blob:
    random = np.random.default_rng(seed)
    state, cut = random.integers(0, 256, size, np.uint8), random.integers(0, 256, 300, np.uint8)
    return Blob(state, (Checkpoint(40, cut),))


def record(blob: Blob, id: str = ID) -> Record:
    sizes = tuple((one.position, len(one.state)) for one in blob.checkpoints)
    tokens = np.arange(50, dtype="<i4").tobytes()
    return Record("a tenant", "", "my key", id, tokens, 1, 2, False, len(blob.state), sizes)


def equal(left: Blob, right: Blob) -> bool:
    return np.array_equal(left.state, right.state) and all(
        one.position == other.position and np.array_equal(one.state, other.state)
        for one, other in zip(left.checkpoints, right.checkpoints, strict=True)
    )


class Bench:
    """A store whose thread is waited for."""

    def __init__(
        self, folder: Path, *, key: bytes | None = None, compatible: bytes = COMPATIBLE, files: Files | None = None
    ) -> None:
        self.folder = folder
        self.store = Store(folder, lambda: compatible, key, Buffers(0), files)
        self.store.start()
        self.scans: list[Scan] = []
        self.store.open(self.scans.append)
        self.settle()

    def settle(self) -> None:
        assert self.store.close(10)
        self.store.settle()

    def save(self, blob: Blob, id: str = ID) -> int:
        sizes: list[int] = []
        self.store.save(record(blob, id), blob, sizes.append)
        self.settle()
        return sizes[0]

    def load(self, id: str = ID) -> Blob | None:
        blobs: list[Blob | None] = []
        self.store.load(id, blobs.append)
        self.settle()
        return blobs[0]

    def end(self) -> None:
        """As the death of its process would."""
        self.store.release()

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "lock")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("size", [1, 5000, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_what_is_written_comes_back_after_a_restart(tmp_path: Path, key: bytes | None, size: int) -> None:
    before = Bench(tmp_path, key=key)
    written = before.save(blob(size))
    assert written == (tmp_path / f"{ID}.kv").stat().st_size
    before.end()
    after = Bench(tmp_path, key=key)
    assert after.scans == [Scan([(record(blob(size)), written)])]
    loaded = after.load()
    assert loaded is not None and equal(loaded, blob(size))


class Late(deque[Callable[[], None]]):
    """The thread is held up before anybody sees what it has done."""

    def append(self, done: Callable[[], None]) -> None:
        time.sleep(0.1)
        super().append(done)


def test_who_waits_for_what_there_is_finds_it(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    before.save(blob())
    before.end()
    store = Store(tmp_path, lambda: COMPATIBLE, None, Buffers(0))
    store._due = Late()
    scans: list[Scan] = []
    store.start()
    store.open(scans.append)
    assert store.opened.wait(10)
    store.settle()
    assert [len(scan.found) for scan in scans] == [1]


def test_only_the_owner_may_read_and_with_a_key_nobody_else_can(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "new", key=KEYS[1])
    bench.save(blob())
    path = bench.folder / f"{ID}.kv"
    assert path.stat().st_mode & 0o777 == 0o600 and bench.folder.stat().st_mode & 0o777 == 0o700
    raw = path.read_bytes()
    assert b"a tenant" not in raw and b"my key" not in raw and blob().state.tobytes()[:50] not in raw
    bench.end()
    plain = Bench(tmp_path / "plain")
    plain.save(blob())
    assert b"a tenant" in (plain.folder / f"{ID}.kv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_any_flipped_byte_is_noticed(tmp_path: Path, key: bytes | None) -> None:
    lock = Lock(COMPATIBLE, key)
    path = tmp_path / "file"
    with path.open("wb") as file:
        sealed.write(file, record(blob(200)), blob(200), lock)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with path.open("rb") as file, pytest.raises((Damaged, Foreign)):
            sealed.read(file, lock, Buffers(0).take)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_any_other_length_is_noticed_at_the_scan(tmp_path: Path, key: bytes | None) -> None:
    lock = Lock(COMPATIBLE, key)
    path = tmp_path / "file"
    with path.open("wb") as file:
        sealed.write(file, record(blob(200)), blob(200), lock)
    whole = path.read_bytes()
    for damaged in (*(whole[:size] for size in range(len(whole))), whole + b"\0"):
        path.write_bytes(damaged)
        with path.open("rb") as file, pytest.raises((Damaged, Foreign)):
            sealed.read_record(file, lock)


def test_chunks_cannot_be_swapped(tmp_path: Path) -> None:
    lock = Lock(COMPATIBLE, KEYS[1])
    path = tmp_path / "file"
    with path.open("wb") as file:
        size = sealed.write(file, record(blob(2 * CHUNK_BYTES)), blob(2 * CHUNK_BYTES), lock)
    raw = bytearray(path.read_bytes())
    step = CHUNK_BYTES + 16
    start = size - 2 * step - 300 - 16
    raw[start : start + 2 * step] = raw[start + step : start + 2 * step] + raw[start : start + step]
    path.write_bytes(raw)
    with path.open("rb") as file, pytest.raises(Damaged):
        sealed.read(file, lock, Buffers(0).take)


def test_files_of_another_key_or_model_and_leftovers_are_removed_and_counted(tmp_path: Path) -> None:
    Bench(tmp_path, key=KEYS[1]).end()
    first = Bench(tmp_path, key=KEYS[1])
    first.save(blob())
    first.end()
    second = Bench(tmp_path, compatible=bytes([1] * 32), key=KEYS[1])
    assert second.scans == [Scan([], 0, 1)] and second.names == []
    second.save(blob())
    (tmp_path / f"{ID}.part").write_bytes(b"interrupted")
    (tmp_path / "sess_garbage.kv").write_bytes(b"garbage" * 100)
    (tmp_path / f"sess_{'f' * 24}.kv").write_bytes((tmp_path / f"{ID}.kv").read_bytes())
    second.end()
    third = Bench(tmp_path, compatible=bytes([1] * 32), key=bytes(32))
    assert third.scans == [Scan([], 2, 2)] and third.names == []


def test_what_is_no_file_or_cannot_be_removed_leaves_the_others_alone(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.save(blob())
    first.end()
    (tmp_path / f"sess_{'0' * 24}.kv").mkdir()
    os.mkfifo(tmp_path / f"sess_{'1' * 24}.kv")
    (tmp_path / f"sess_{'2' * 24}.kv").symlink_to(tmp_path / f"{ID}.kv")
    second = Bench(tmp_path)
    (scan,) = second.scans
    assert [found.id for found, _ in scan.found] == [ID] and scan.corrupt == 3
    loaded = second.load()
    assert loaded is not None and equal(loaded, blob())


def test_a_copied_name_does_not_count(tmp_path: Path) -> None:
    first = Bench(tmp_path)
    first.save(blob())
    (tmp_path / f"sess_{'f' * 24}.kv").write_bytes((tmp_path / f"{ID}.kv").read_bytes())
    first.end()
    assert len(Bench(tmp_path).scans[0].found) == 1


def test_a_file_that_was_damaged_since_is_not_given(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.save(blob())
    path = tmp_path / f"{ID}.kv"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert bench.load() is None


def test_what_is_about_to_change_is_read_after_the_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.save(blob(seed=1))
    blobs: list[Blob | None] = []
    bench.store.save(record(blob(seed=2)), blob(seed=2), lambda _: None)
    bench.store.load(ID, blobs.append)
    bench.store.erase(ID, lambda _: None)
    bench.store.load(ID, blobs.append)
    bench.settle()
    assert blobs[0] is not None and equal(blobs[0], blob(seed=2)) and blobs[1] is None


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.save(blob())
    other = "sess_" + "f" * 24
    sizes: list[int] = []
    bench.store.copy(ID, msgspec.structs.replace(record(blob(), other), state_bytes=0, checkpoints=()), sizes.append)
    erased: list[bool] = []
    bench.store.erase(ID, erased.append)
    bench.settle()
    loaded = bench.load(other)
    assert loaded is not None and equal(loaded, blob()) and sizes[0] > 5000 and erased == [True]
    assert bench.names == [f"{other}.kv"]
    bench.store.copy(ID, record(blob(), other), sizes.append)
    bench.settle()
    assert sizes[1] == 0 and bench.names == [f"{other}.kv"]


class Failing(Files):
    """Fails in the call that is named, with the error that is given."""

    def __init__(self, call: str, code: int) -> None:
        self.call, self.error = call, OSError(code, os.strerror(code))

    def _maybe(self, call: str) -> None:
        if call == self.call:
            raise self.error

    def create(self, path: Path) -> BufferedWriter:
        self._maybe("create")
        return super().create(path)

    def open(self, path: Path) -> BufferedReader:
        self._maybe("open")
        return super().open(path)

    def sync(self, file: BufferedWriter) -> None:
        self._maybe("sync")
        super().sync(file)

    def replace(self, old: Path, new: Path) -> None:
        self._maybe("replace")
        super().replace(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._maybe("sync_folder")
        super().sync_folder(folder)


@pytest.mark.parametrize("call", ["create", "sync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_earlier_turn(tmp_path: Path, call: str, code: int) -> None:
    files = Failing("", code)
    bench = Bench(tmp_path, files=files)
    bench.save(blob(seed=1))
    files.call = call
    assert bench.save(blob(seed=2)) == 0
    files.call = ""
    assert bench.names == [f"{ID}.kv"]
    loaded = bench.load()
    assert loaded is not None and equal(loaded, blob(seed=1))


def test_a_failed_read_gives_nothing_and_a_failed_erasure_is_told(tmp_path: Path) -> None:
    files = Failing("sync_folder", errno.EIO)
    bench = Bench(tmp_path, files=files)
    erased: list[bool] = []
    bench.store.erase(ID, erased.append)
    bench.settle()
    assert erased == [False]
    files.call = ""
    bench.save(blob())
    files.call = "open"
    assert bench.load() is None


def test_a_folder_that_cannot_be_had_keeps_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench = Bench(tmp_path / "file" / "below")
    assert bench.scans == [Scan([])]
    assert bench.save(blob()) == 0 and bench.load() is None


@pytest.mark.parametrize("key", KEYS)
def test_without_a_worker_files_are_listed_and_erased(tmp_path: Path, key: bytes | None) -> None:
    bench = Bench(tmp_path, key=key, compatible=bytes(range(32)))
    bench.store.save(record(blob()), blob(), lambda size: None)
    bench.settle()
    (tmp_path / f"{ID[:-1]}0.kv").write_bytes(b"damaged")
    asleep = Asleep(EngineSettings(session_dir=str(tmp_path), session_key=key))

    async def scenario() -> None:
        (info,) = await asleep.listed("a tenant")
        assert (info.id, info.key, info.tokens, info.tier, info.checkpoints) == (ID, "my key", 50, "disk", 1)
        assert info.size_bytes == (tmp_path / f"{ID}.kv").stat().st_size
        assert await asleep.listed(None) == [info]
        assert await asleep.listed("another tenant") == []
        with pytest.raises(ModelLoading):
            await asleep.erase("a tenant", "my key")
        bench.store.release()
        assert await asleep.erase("another tenant", ID) is None
        gone = await asleep.erase("a tenant", "my key")
        assert gone is not None and (gone.id, gone.tokens) == (ID, 0)
        assert await asleep.listed(None) == []
        assert await Asleep(EngineSettings(session_dir=str(tmp_path / "none"))).erase("a tenant", ID) is None

    asyncio.run(scenario())
