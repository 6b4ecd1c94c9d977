"""Drives and files on them: how many may be busy with one, what room is left, and ways to have a file in two places."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

from gateway.library.errors import NoSpace, Unusable

# "link" is a symbolic link, "hardlink" another name of the same file, "reflink" a copy whose blocks are shared until
# one of the two is written to.
How = Literal["link", "hardlink", "reflink", "copy"]

# What is left free of a file system.
SPACE_LEFT_BYTES = 256 << 20
DEVICES = Path("/sys/dev/block")
# A head that has to move between two files is slower than one file after the other.
TURNS_ROTATIONAL = 1
TURNS_SOLID = 4
# Memory, networks, layers of containers: nobody knows.
TURNS_UNKNOWN = 2

_FICLONE = 0x40049409
# What a file system answers that cannot share blocks, or not between these two places.
_NOT_SHARED = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS))


class Drives:
    """Whose turn it is on each drive. `devices` is where the kernel describes them."""

    def __init__(self, devices: Path = DEVICES) -> None:
        self._devices = devices
        self._turns: dict[int, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def turn(self, paths: Iterable[Path]) -> AsyncIterator[None]:
        """Have a turn on the drives of all these folders or files, which are there."""
        devices = sorted({path.stat().st_dev for path in paths})
        async with AsyncExitStack() as stack:
            for device in devices:  # In one order, so that no two wait for each other.
                turns = self._turns.setdefault(device, asyncio.Semaphore(self.turns_of(device)))
                await stack.enter_async_context(turns)
            yield

    def turns_of(self, device: int) -> int:
        """How many may read or write at once."""
        folder = self._devices / f"{os.major(device)}:{os.minor(device)}"
        # A partition has no queue of its own, but the drive that it is a part of has.
        for queue in (folder / "queue", folder / ".." / "queue"):
            try:
                return TURNS_ROTATIONAL if (queue / "rotational").read_text().strip() == "1" else TURNS_SOLID
            except OSError:
                continue
        return TURNS_UNKNOWN


def check_writable(folder: Path, size_bytes: int) -> None:
    """Make the folder; raises Unusable where nothing can be written, NoSpace when so much would not leave any room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(folder)
    except OSError as error:
        raise Unusable(f"{folder} cannot be written to: {error.strerror}") from None
    if status.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        raise Unusable(f"{folder} cannot be written to: it is read-only")
    free = status.f_bavail * status.f_frsize
    if size_bytes and size_bytes + SPACE_LEFT_BYTES > free:
        raise NoSpace(f"{size_bytes} bytes are to come, and only {free} are free")
    if status.f_files and not status.f_favail:
        raise NoSpace("the file system can hold no more files")


def reflink(source: Path, target: Path) -> bool:
    """Make `target` share the blocks of `source`; False, and no target, where the file system cannot."""
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            target.unlink()
            if error.errno not in _NOT_SHARED:
                raise
            return False
    return True


def bring(source: Path, target: Path, how: How) -> None:
    """Have `source` at `target` too, which is not there yet; raises Unusable where that way is not possible."""
    try:
        match how:
            case "link":
                target.symlink_to(source)
            case "hardlink":
                target.hardlink_to(source.resolve())
            case "reflink":
                if not reflink(source, target):
                    raise Unusable("the file system cannot share blocks between these two places: take copy or link")
            case "copy":
                draft = target.with_name(f".{target.name}.part")
                try:
                    shutil.copyfile(source, draft)
                    draft.rename(target)
                finally:
                    draft.unlink(missing_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"there is no room at {target.parent}") from None
        raise Unusable(f"{target} cannot be made: {error.strerror}") from None
