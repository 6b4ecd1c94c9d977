"""Datasets: requests made of the rows of files, kept as one file in the shape of a batch, and counted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from adapters.disk import sync_folder
from gateway.library.digests import Digests
from gateway.library.drives import check_writable
from gateway.library.errors import Cancelled, LibraryError, NoSpace, NotFound, Unusable
from gateway.library.files import File
from gateway.library.importing import Imports
from gateway.library.messages import Ask, Progress, watch
from gateway.library.names import path_problem
from gateway.library.requests import Dataset, Requests, Wish
from gateway.library.rows import Row, rows_of
from gateway.library.taking import DRAFT

MADE = "made"
# As large as the file of a batch may be.
SIZE_BYTES_MAX = 200_000_000

log = logging.getLogger("gateway.library")


class Datasets:
    """What is made of files, by the library that they come to."""

    def __init__(self, imports: Imports) -> None:
        self.imports = imports
        self._following: dict[tuple[str, Wish], asyncio.Task[None]] = {}

    async def get(self, identity: str) -> File:
        """Raises NotFound."""
        file = await self.imports.files.get(identity)
        if file.how != MADE:
            raise NotFound(f"there is no dataset {identity}")
        return file

    async def close(self) -> None:
        """Make no more of what is being pulled."""
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*self._following.values(), return_exceptions=True)

    def follow(self, ask: Ask, pull: Progress, wish: Wish) -> asyncio.Task[None]:
        """Make a dataset of what a pull brings once that is here, or join whoever does; nothing when it is cancelled or
        fails."""
        key = pull.id, wish
        if key not in self._following:
            task = self._following[key] = asyncio.create_task(self._after(ask, pull, wish))
            task.add_done_callback(lambda _: self._following.pop(key))
        return self._following[key]

    async def _after(self, ask: Ask, pull: Progress, wish: Wish) -> None:
        async with aclosing(watch(ask, pull)) as watched:
            async for progress in watched:
                pull = progress
        if pull.status != "succeeded":
            return
        paths = paths_of(pull)
        try:
            file = await self.make(paths, name_of(paths), f"hf:{pull.reference}", wish)
            await self.imports.wait(file.id)
        except LibraryError as error:
            log.warning("no dataset was made of %s: %s", pull.reference, error)

    async def make(self, sources: Sequence[Path], name: str, source: str, wish: Wish) -> File:
        """Begin to make a dataset of files, in order; `source` is what they are called. What comes of it is told by its
        status. Raises Full, and Unusable where there is no file."""
        if not sources or path_problem(name) is not None:
            raise Unusable("there is no file to make a dataset of")

        async def work(file: File, folder: Path, stop: threading.Event) -> None:
            path, found, dataset = await self.imports.reading(partial(write, sources, folder, name, wish, stop))
            await self.imports.finish(
                file.id,
                path=str(path),
                size_bytes=found.size_bytes,
                sha256=found.sha256,
                blake3=found.blake3,
                dataset=dataset,
            )

        return await self.imports.begin(name, MADE, source, work, kind="dataset")


def write(
    sources: Sequence[Path], folder: Path, name: str, wish: Wish, stop: threading.Event
) -> tuple[Path, Digests, Dataset]:
    """Write the requests of all rows as `name` in `folder`, which is made and belongs to it alone; whole or not at all.
    Blocks. Raises a LibraryError, and then the folder is gone again."""
    from blake3 import blake3

    check_writable(folder, 0)
    requests, sha256, fast, size = Requests(wish), hashlib.sha256(), blake3(), 0
    draft, path = folder / DRAFT, folder / name
    try:
        with draft.open("xb") as out:
            for line in _lines(sources, requests, stop):
                size += len(line)
                if size > SIZE_BYTES_MAX:
                    raise Unusable(f"its requests take more than {SIZE_BYTES_MAX} bytes: limit how many there are")
                out.write(line)
                sha256.update(line)
                fast.update(line)
            out.flush()
            os.fsync(out.fileno())
        dataset = requests.summary()
        draft.chmod(0o444)
        draft.rename(path)
        sync_folder(folder)
        return path, Digests(size, sha256.hexdigest(), fast.hexdigest()), dataset
    except OSError as error:
        raise NoSpace(f"it cannot be written: {error.strerror}") from None
    finally:
        if not path.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _lines(sources: Sequence[Path], requests: Requests, stop: threading.Event) -> Iterator[bytes]:
    for source in sources:
        yield from requests.lines(source.name, _until(stop, rows_of(source)))


def _until(stop: threading.Event, rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        if stop.is_set():
            raise Cancelled("it was stopped")
        yield row


def paths_of(pull: Progress) -> list[Path]:
    """Where the files of a pull are that has brought them: below the folder of its commit."""
    if pull.path is None:
        return []
    folder = Path(pull.path.removesuffix(pull.files[0]))
    return [folder / file for file in pull.files]


def name_of(sources: Sequence[Path]) -> str:
    """What a dataset of these files is called."""
    return f"{sources[0].stem}.jsonl"
