"""The hub's standard cache layout on disk, which other tools share: blobs by digest, snapshots by commit, refs by name.

models--owner--repo/blobs/<digest>                     the content, once
models--owner--repo/blobs/<digest>.incomplete          what has come of it so far
models--owner--repo/snapshots/<commit>/<path>          a link to the blob
models--owner--repo/refs/<revision>                    the commit it stood for
.locks/models--owner--repo/<digest>.lock               held by whoever fetches it, in whatever process
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from gateway.library.errors import Cancelled, Unusable
from gateway.library.hub import Resolution
from gateway.library.names import Kind, Reference, RemoteFile

LOCK_POLL_S = 0.2

_NOT_REPO = re.compile("[:@]")


class Pinned(msgspec.Struct, frozen=True):
    """What a name stood for, as it is written down before a byte is fetched."""

    reference: str
    kind: Kind
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def repo(self) -> str:
        return _NOT_REPO.split("/".join(self.reference.split("/", 2)[:2]))[0]


def pin_name(reference: Reference, kind: Kind) -> str:
    """What an entry of `models.lock` is called."""
    return str(reference) if kind == "model" else f"datasets/{reference}"


class Store:
    """A cache folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, repo: str, kind: Kind = "model") -> Path:
        return self.root / "--".join([f"{kind}s", *repo.split("/")])

    def blob(self, repo: str, file: RemoteFile, kind: Kind = "model") -> Path:
        return self.folder(repo, kind) / "blobs" / file.digest

    def partial(self, repo: str, file: RemoteFile, kind: Kind = "model") -> Path:
        return self.folder(repo, kind) / "blobs" / f"{file.digest}.incomplete"

    def path(self, repo: str, commit: str, path: str, kind: Kind = "model") -> Path:
        """Where a file of a commit is found."""
        return self.folder(repo, kind) / "snapshots" / commit / path

    @contextmanager
    def lock(self, repo: str, file: RemoteFile, stopped: Callable[[], bool], kind: Kind = "model") -> Iterator[None]:
        """Be the only one to fetch a file, among all processes that share the folder; raises Cancelled."""
        lock = self._lock(repo, file, kind)
        while True:
            try:
                lock.acquire(timeout=LOCK_POLL_S)
                break
            except Timeout:
                if stopped():
                    raise Cancelled(f"the pull of {file.path} was stopped") from None
        try:
            yield
        finally:
            lock.release()

    def lock_path(self, folder: Path, digest: str) -> Path:
        """What whoever fetches a blob into a repository's folder locks."""
        return self.root / ".locks" / folder.name / f"{digest}.lock"

    def _lock(self, repo: str, file: RemoteFile, kind: Kind) -> FileLock:
        path = self.lock_path(self.folder(repo, kind), file.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False)

    def is_busy(self, repo: str, file: RemoteFile, kind: Kind = "model") -> bool:
        """Whether somebody fetches it."""
        lock = self._lock(repo, file, kind)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def place(self, resolution: Resolution, file: RemoteFile) -> Path:
        """Make a blob that is here visible under its name."""
        repo, kind = resolution.reference.repo, resolution.kind
        path = self.path(repo, resolution.commit, file.path, kind)
        blob = self.blob(repo, file, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{os.getpid()}.{time.monotonic_ns()}")
        draft.symlink_to(os.path.relpath(blob, path.parent))
        draft.replace(path)
        return path

    def remember(self, resolution: Resolution) -> None:
        """Write down which commit the revision stood for, as other tools do."""
        reference = resolution.reference
        if reference.revision == resolution.commit:
            return
        path = self.folder(reference.repo, resolution.kind) / "refs" / reference.revision
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(resolution.commit)
        draft.replace(path)

    def discard(self, repo: str, file: RemoteFile, kind: Kind = "model") -> None:
        """Remove what has come of a file so far."""
        self.partial(repo, file, kind).unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file of a snapshot, and its content unless another one shows that too."""
        folder = path.parents[len(path.relative_to(self.root).parts) - 2]
        blob = path.resolve()
        path.unlink(missing_ok=True)
        if blob.parent == folder / "blobs" and blob.name not in shown(folder):
            blob.unlink(missing_ok=True)


def shown(folder: Path) -> set[str]:
    """The blobs of a repository's folder that some snapshot shows."""
    return {link.readlink().name for link in (folder / "snapshots").rglob("*") if link.is_symlink()}


def origin(path: Path) -> tuple[str, str, str] | None:
    """The repository, commit and file that a path in a cache folder is; None for any other path."""
    parts = path.parts
    for at, part in enumerate(parts):
        if part == "snapshots" and at and len(parts) > at + 2 and parts[at - 1].startswith("models--"):
            repo = "/".join(parts[at - 1].split("--")[1:])
            return repo, parts[at + 1], "/".join(parts[at + 2 :])
    return None


class LockFile:
    """`models.lock`: for each name, the commit and files it was resolved to, so that a restart means the same ones."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Pinned]:
        """Raises Unusable."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Pinned])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise Unusable(f"{self._path.name} cannot be read: {error}") from None

    def write(self, name: str, pinned: Pinned) -> None:
        """Add or replace an entry; whoever reads meanwhile sees the file before or after."""
        self._change(lambda entries: entries | {name: pinned})

    def remove(self, name: str) -> None:
        """Take an entry out."""
        self._change(lambda entries: {one: pinned for one, pinned in entries.items() if one != name})

    def _change(self, changed: Callable[[dict[str, Pinned]], dict[str, Pinned]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f".{self._path.name}"), thread_local=False):
            entries = changed(self.read())
            draft = self._path.with_name(f"{self._path.name}.draft")
            with draft.open("wb") as out:
                out.write(msgspec.json.format(msgspec.json.encode(entries, order="sorted"), indent=2) + b"\n")
                out.flush()
                os.fsync(out.fileno())
            draft.replace(self._path)
