"""The outbox: order, durability, bounds, and a process or a disk that fails at every byte."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.state.outbox import Outbox, OutboxError, OutboxFull, _framed, _records


def contents(directory: Path) -> list[bytes]:
    outbox = Outbox(directory)
    try:
        return [record for segment in outbox.segments() for record in segment.records]
    finally:
        outbox.close()


def test_records_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, segment_bytes_max=100)
    records = [b"%d " % i * (i % 7) for i in range(100)]
    for start in range(0, 100, 3):
        outbox.append(records[start : start + 3])
    assert outbox.size_bytes == sum(8 + len(record) for record in records)
    found = list(outbox.segments())
    assert len(found) > 5
    assert [record for segment in found for record in segment.records] == records
    outbox.append([b"later"])
    for segment in found:
        outbox.remove(segment)
    outbox.close()
    assert contents(tmp_path) == [b"later"]


def test_a_prepared_segment_is_the_next_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, segment_bytes_max=1000)
    wanted = [outbox.wants_spare]
    outbox.append([b"x" * 300])
    wanted.append(outbox.wants_spare)
    outbox.prepare()
    assert [*wanted, outbox.wants_spare] == [False, True, False]
    assert (tmp_path / "spare").read_bytes() == bytes(1000)
    outbox.append([b"y" * 700])
    prepared = (tmp_path / "spare").stat().st_ino
    outbox.append([b"z"])
    (_, second) = sorted(tmp_path.iterdir())
    assert (second.stat().st_ino, second.stat().st_size) == (prepared, 1000)
    outbox.append([b"later"])
    # Whoever reads them sees no zeros, also where the process dies now.
    assert list(_records(second.read_bytes())) == [b"z", b"later"]
    outbox.close()
    assert contents(tmp_path) == [b"x" * 300, b"y" * 700, b"z", b"later"]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "open"])
def test_what_cannot_be_prepared_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    outbox = Outbox(tmp_path, segment_bytes_max=1000)
    outbox.append([b"x" * 300])

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        outbox.prepare()
    assert outbox.wants_spare and not (tmp_path / "spare").exists()
    outbox.append([b"y" * 700])
    outbox.append([b"z"])
    outbox.close()
    assert contents(tmp_path) == [b"x" * 300, b"y" * 700, b"z"]


def test_a_prepared_segment_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, segment_bytes_max=1000)
    outbox.append([b"x" * 990])
    outbox.append([b"x" * 300])
    outbox.prepare()
    (tmp_path / "spare").unlink()
    outbox.append([b"y" * 700])
    outbox.append([b"z"])
    outbox.close()
    (tmp_path / "spare").write_bytes(bytes(1000))  # What a process leaves behind that dies.
    assert contents(tmp_path) == [b"x" * 990, b"x" * 300, b"y" * 700, b"z"]
    assert not (tmp_path / "spare").exists()


def test_empty_again_it_holds_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    assert (outbox.size_bytes, list(outbox.segments())) == (0, [])
    outbox.append([b"a"])
    for segment in outbox.segments():
        outbox.remove(segment)
    assert (outbox.size_bytes, list(outbox.segments()), list(tmp_path.iterdir())) == (0, [], [])
    outbox.append([b"b"])
    outbox.close()
    assert contents(tmp_path) == [b"b"]


def test_cut_at_every_byte_it_keeps_what_was_whole_and_goes_on(tmp_path: Path) -> None:
    records = [b"first", b"", b"\x00" * 9, b"last one"]
    outbox = Outbox(tmp_path / "whole")
    outbox.append(records)
    outbox.close()
    (file,) = (tmp_path / "whole").iterdir()
    data = file.read_bytes()
    ends = [sum(8 + len(record) for record in records[:i]) for i in range(len(records) + 1)]
    for cut in range(len(data) + 1):
        for tail in (b"", b"\x00" * 20, b"\xff" * 20):
            directory = tmp_path / f"{cut} {tail[:1].hex()}"
            directory.mkdir()
            (directory / file.name).write_bytes(data[:cut] + tail)
            # Where the tail happens to be what was cut off, more is whole.
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(data[cut:], tail, strict=False))
            same = cut + len(list(alike))
            whole = max(i for i, end in enumerate(ends) if end <= same)
            outbox = Outbox(directory)
            outbox.append([b"after the crash"])
            found = list(outbox.segments())
            outbox.close()
            assert [record for segment in found for record in segment.records] == [*records[:whole], b"after the crash"]
            assert found[0].torn_bytes == cut - ends[whole] + len(tail)


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    data = _framed(b"one") + _framed(b"two")
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            assert list(_records(bytes(damaged))) == ([] if at < 11 else [b"one"])


@given(st.binary())
def test_noise_is_no_record_and_no_error(noise: bytes) -> None:
    for record in _records(noise):
        assert _framed(record) in noise


def test_killed_in_the_middle_of_writing_nothing_that_was_promised_is_lost(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gateway.state.outbox import Outbox\n"
        "outbox = Outbox(Path(sys.argv[1]), segment_bytes_max=2000)\n"
        "for i in range(10**9):\n"
        "    outbox.append([b'%d' % i] * 3)\n"
        "    print(i, flush=True)"
    )
    for turn in range(3):
        directory = tmp_path / str(turn)
        process = subprocess.Popen([sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(50 * (turn + 1)):
            process.stdout.readline()
        process.kill()
        lines = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        promised = int(lines[-1]) if lines else 50 * (turn + 1) - 1
        found = contents(directory)
        assert found[: 3 * (promised + 1)] == [b"%d" % i for i in range(promised + 1) for _ in range(3)]


def test_it_is_bounded(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, bytes_max=50)
    outbox.append([b"x" * 30])
    with pytest.raises(OutboxFull, match="holds 38 of 50 bytes"):
        outbox.append([b"y" * 10])
    outbox.append([b"z" * 4])
    outbox.close()
    outbox = Outbox(tmp_path, bytes_max=50)
    with pytest.raises(OutboxFull):
        outbox.append([b""])
    with pytest.raises(ValueError, match="at most"):
        outbox.append([b"x" * (2 << 20)])
    outbox.close()
    assert contents(tmp_path) == [b"x" * 30, b"z" * 4]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fails_is_said_and_leaves_the_rest_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    outbox = Outbox(tmp_path)
    outbox.append([b"before"])
    real = getattr(os, call)

    def fail(descriptor: int, data: memoryview | None = None, at: int = 0) -> None:
        if data is not None:
            real(descriptor, data[:5], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for _ in range(3):
            with pytest.raises(OutboxError, match="No space left"):
                outbox.append([b"lost"])
    assert len(list(tmp_path.iterdir())) == 1, "attempts leave nothing behind"
    outbox.append([b"after"])
    found = [record for segment in outbox.segments() for record in segment.records]
    assert [record for record in found if record != b"lost"] == [b"before", b"after"]
    assert outbox.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    outbox.close()


def test_a_folder_that_was_not_synced_leaves_nothing_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    outbox.append([b"first"])
    (first,) = outbox.segments()
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):  # noqa: PTH116
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutboxError):
        outbox.remove(first)
    assert (outbox.size_bytes, list(outbox.segments())) == (0, [])
    # Nothing is called safe in a file whose name was not synced, the second time neither.
    for _ in range(2):
        with pytest.raises(OutboxError):
            outbox.append([b"not safe"])
    monkeypatch.undo()
    outbox.append([b"safe"])
    assert [segment.records for segment in outbox.segments() if segment.records] == [(b"safe",)]
    outbox.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    with pytest.raises(OutboxError, match="another gateway uses"):
        Outbox(tmp_path)
    outbox.close()
    Outbox(tmp_path).close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match="cannot be used"):
        Outbox(tmp_path / "file")
