"""Keeps what rates have counted over a restart of a gateway that is alone.

Rates follow the machine's steady clock, which goes on from process to process until the machine starts anew. So what is
saved holds for the same boot only; after a crash, or on another machine, rates begin empty.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from gateway.limits.book import Book
from gateway.limits.windows import SavedWindow

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class _Saved(msgspec.Struct, frozen=True):
    boot_id: str
    windows: list[SavedWindow]


def boot_id() -> str:
    """Names the run of this machine; empty where that is not known, and then nothing is saved."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def save(book: Book, path: Path, boot: str) -> None:
    """Write what is counted, when everything has ended."""
    if not boot:
        return
    try:
        path.write_bytes(msgspec.json.encode(_Saved(boot, book.saved())))
        path.chmod(0o600)
    except OSError as error:
        log.warning("rates begin empty after the next start: %s", error)


def recall(book: Book, path: Path, boot: str) -> None:
    """Go on counting from what was saved, which is good for once."""
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        path.unlink()
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError) as error:
        log.warning("rates begin empty: %s", error)
        return
    if boot and saved.boot_id == boot:
        book.recall(saved.windows)
