"""Brings one file here: from where an earlier attempt stopped, checked while it streams, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from adapters.disk import sync_folder, write_all
from gateway.library.drives import check_writable
from gateway.library.errors import Cancelled, Corrupt, HubUnavailable, Misled, NoSpace
from gateway.library.names import RemoteFile
from gateway.routing.backoff import delay_s

ATTEMPTS_MAX = 8
RETRY_AFTER_S_MAX = 300.0
READ_BYTES = 1 << 20


class Source(Protocol):
    """Where bytes come from: those of a file from `start` on; may raise `HubUnavailable` at any point."""

    def __call__(self, file: RemoteFile, start: int) -> Iterator[bytes]: ...


class Transfer:
    """One file on its way into `partial` and then `target`. `run` blocks; `stop` may be set from any thread.

    `done_bytes` are on disk; `fetched_bytes` came over the network, again and again where an attempt was lost. While
    it is `checking`, what is on disk is read or waited for, and nothing is fetched.
    """

    def __init__(
        self,
        source: Source,
        file: RemoteFile,
        partial: Path,
        target: Path,
        stop: threading.Event,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._file = file
        self._partial = partial
        self._target = target
        self._stop = stop
        self._draw = draw
        self.done_bytes = 0
        self.fetched_bytes = 0
        self.checking = False

    def run(self) -> None:
        """Raises Cancelled, Corrupt, NoSpace, Unusable where nothing can be written, or HubUnavailable when it fails
        again and again. Only what is Corrupt itself, and no answer that has Misled us, leaves nothing to go on from."""
        if self._target.exists():
            self.done_bytes = self._file.size_bytes
            return
        check_writable(self._partial.parent, self._file.size_bytes - _size(self._partial))
        resumed = _size(self._partial) > 0
        try:
            whole = self._attempts()
            if not whole and resumed:
                # What was here before may have been damaged by a crash of the machine: once more from the start.
                self._partial.unlink()
                whole = self._attempts()
        except Misled:
            if not _size(self._partial):
                self._partial.unlink(missing_ok=True)
            raise
        except Corrupt:
            self._partial.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise NoSpace(f"{self._file.path} cannot be written: {error.strerror}") from None
        if not whole:
            self._partial.unlink()
            raise Corrupt(f"{self._file.path} is not what the hub said it is: its digest differs")
        self._partial.replace(self._target)
        sync_folder(self._target.parent)

    def _attempts(self) -> bool:
        """Fetch until all bytes are here; whether they have the digest that was promised."""
        failures = 0
        with self._partial.open("ab+", buffering=0) as out:
            self.checking = True
            digest = self._known(out.fileno())
            self.checking = False
            while self.done_bytes < self._file.size_bytes:
                before = self.done_bytes
                try:
                    self._fetch(out.fileno(), digest)
                except HubUnavailable as error:
                    failures = 1 if self.done_bytes > before else failures + 1
                    self._rest(error, failures)
            self.checking = True
            os.fsync(out.fileno())
        return digest.hexdigest() == self._file.digest

    def _known(self, descriptor: int) -> hashlib._Hash:
        """The digest of what is here already."""
        digest = new_digest(self._file)
        size = os.fstat(descriptor).st_size
        if size > self._file.size_bytes:
            os.ftruncate(descriptor, 0)
            size = 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        self.done_bytes = size
        while piece := os.read(descriptor, READ_BYTES):
            self._check_stop()
            digest.update(piece)
        return digest

    def _fetch(self, descriptor: int, digest: hashlib._Hash) -> None:
        pieces = self._source(self._file, self.done_bytes)
        try:
            for piece in pieces:
                self._check_stop()
                if self.done_bytes + len(piece) > self._file.size_bytes:
                    raise Corrupt(f"the hub sends more of {self._file.path} than there is")
                write_all(descriptor, piece)
                digest.update(piece)
                self.done_bytes += len(piece)
                self.fetched_bytes += len(piece)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if self.done_bytes < self._file.size_bytes:
            raise HubUnavailable("the connection ended early")

    def _rest(self, error: HubUnavailable, failures: int) -> None:
        """Wait before the next attempt, as long as the hub asks for; raises `error` when it is no use."""
        asked_s = error.retry_after_s or 0.0
        wait_s = delay_s(failures, self._draw())
        if failures >= ATTEMPTS_MAX or asked_s > RETRY_AFTER_S_MAX or wait_s is None:
            raise error
        self._stop.wait(max(wait_s, asked_s))
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Cancelled(f"the pull of {self._file.path} was stopped")


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """What `file.digest` is a digest with: SHA-256 of the content, or git's SHA-1 of a blob."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
