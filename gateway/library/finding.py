"""What a hub offers: repositories by words, their quantisations with sizes and fits, and where a local file came from.

Answers of the hub are kept for a day, since it is asked the same again and again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

import msgspec

from adapters.llama_cpp import gguf
from adapters.llama_cpp.memory import memory_bytes
from gateway.library.errors import InUse, LibraryError
from gateway.library.facts import Facts, facts
from gateway.library.files import File, Files
from gateway.library.fitting import Fit, fit, memory_bytes_per_s
from gateway.library.names import Found, Reference, RemoteFile, label, parse, variants
from gateway.library.ranged import RangedFile
from gateway.library.words import words_of

if TYPE_CHECKING:
    from gateway.library.hub import Hub, Resolution

KEPT_S = 86_400.0
KEPT_MAX = 256
REPOS_LOOKED_AT = 5
ASKING_MAX = 4

T = TypeVar("T")


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One quantisation of a repository. `fit` None: nobody can tell."""

    quantisation: str
    files: tuple[str, ...]
    size_bytes: int
    fit: Fit | None


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository holds at a commit. `facts` are those of the smallest quantisation."""

    repo: str
    commit: str
    facts: Facts | None
    offers: tuple[Offer, ...]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a hub that may be a local one. `verified`: its SHA-256 is the same; otherwise only its name is."""

    repo: str
    commit: str
    file: str
    size_bytes: int
    verified: bool


class Finding:
    """Asks one hub, opened when it is first asked. `room_bytes` is the memory there is, `bytes_per_s` its speed."""

    def __init__(
        self,
        open_hub: Callable[[], Hub],
        files: Files,
        *,
        room_bytes: Callable[[], int] = memory_bytes,
        bytes_per_s: Callable[[], float] = memory_bytes_per_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_hub = open_hub
        self._opened: Hub | None = None
        self._files = files
        self._room_bytes = room_bytes
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[float, object]] = OrderedDict()
        self._threads = ThreadPoolExecutor(ASKING_MAX, "finding")

    def close(self) -> None:
        """End what connections there are."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._opened is not None:
            self._opened.close()

    async def search(self, text: str, limit: int) -> list[Found]:
        """Repositories with GGUF files, the most downloaded first."""
        return await self._asking(lambda: self._search(text, limit))

    async def offers(self, name: str) -> Offers:
        """The quantisations of `owner/repo` (and `@revision`), the smallest first."""
        return await self._asking(lambda: self._offers(parse(name)))

    async def look_up(self, identity: str, repo: str | None = None) -> tuple[File, list[Match]]:
        """Where a hub has a file of the library, in `repo` or in what its name leads to; the file remembers a place
        that is verified."""
        file = await self._files.get(identity)
        if file.sha256 is None:
            raise InUse(f"its digest is not known: it is {file.status}")
        matches = await self._asking(lambda: self._matches(file, repo))
        best = next((match for match in matches if match.verified), None)
        if best is not None:
            file = await self._files.change(identity, repo=best.repo, commit_id=best.commit, repo_file=best.file)
        return file, matches

    async def _asking(self, ask: Callable[[], T]) -> T:
        """A hub may say nothing for a while: it has no thread that everything else here waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    # In threads

    @property
    def _hub(self) -> Hub:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_hub()
            return self._opened

    def _search(self, text: str, limit: int) -> list[Found]:
        return self._known(("search", text, str(limit)), lambda: self._hub.search(text, limit))

    def _resolved(self, reference: Reference) -> Resolution:
        return self._known(("resolve", str(reference)), lambda: self._hub.resolve(reference))

    def _offers(self, reference: Reference) -> Offers:
        resolution = self._resolved(reference)
        known = variants(resolution.files)
        header = None if not known else self._header(resolution, known[0].files[0])
        room, speed = self._room_bytes(), self._known(("speed",), self._bytes_per_s)
        return Offers(
            repo=reference.repo,
            commit=resolution.commit,
            facts=None if header is None else facts(header),
            offers=tuple(
                Offer(
                    quantisation=one.quantisation,
                    files=tuple(file.path for file in one.files),
                    size_bytes=one.size_bytes,
                    fit=None if header is None else fit(header, one.size_bytes, room, speed),
                )
                for one in known
            ),
        )

    def _header(self, resolution: Resolution, file: RemoteFile) -> gguf.GGUF | None:
        """The header of a remote file; None where it is no sound one, or cannot be read in parts."""

        def read() -> gguf.GGUF | None:
            ranged = RangedFile(file.size_bytes, lambda start, count: self._hub.part(resolution, file, start, count))
            try:
                return gguf.parse(cast(BinaryIO, ranged))
            except gguf.GGUFError:
                return None

        return self._known(("header", resolution.commit, file.path), read)

    def _matches(self, file: File, repo: str | None) -> list[Match]:
        found = [] if repo is not None else self._candidates(Path(file.name).stem)
        repos = [Reference(one.repo) for one in found] if repo is None else [parse(repo)]
        matches: list[Match] = []
        for reference in repos:
            try:
                resolution = self._resolved(reference)
            except LibraryError:
                if repo is not None:
                    raise
                continue  # One that is gated or gone says nothing about the others.
            for one in resolution.files:
                same, named = one.sha256 == file.sha256, one.path.rsplit("/", 1)[-1] == file.name
                if same or named:
                    matches.append(
                        Match(
                            repo=reference.repo,
                            commit=resolution.commit,
                            file=one.path,
                            size_bytes=one.size_bytes,
                            verified=same,
                        )
                    )
        return sorted(matches, key=lambda match: not match.verified)

    def _candidates(self, stem: str) -> list[Found]:
        """Repositories that a file's name leads to: by all of it but its quantisation, then by fewer words of it."""
        quantisation = label(stem)
        plain = (
            stem[: -len(quantisation)].rstrip("-._") if quantisation and stem.upper().endswith(quantisation) else stem
        )
        words = words_of(plain.replace("_", " "), parts=False)
        for text in dict.fromkeys((plain, " ".join(words), " ".join(words[:2]))):
            found = self._search(text, REPOS_LOOKED_AT) if text.strip() else []
            if found:
                return found
        return []

    def _known(self, key: tuple[str, ...], ask: Callable[[], T]) -> T:
        """What was answered within a day, or else now. Two who ask at once may both."""
        now_s = self._clock()
        with self._lock:
            at_s, value = self._kept.get(key, (-KEPT_S, None))
        if now_s - at_s < KEPT_S:
            return cast(T, value)
        answer = ask()
        with self._lock:
            self._kept[key] = now_s, answer
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return answer
