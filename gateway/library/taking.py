"""Takes a local file into the library: looked at before anybody else does, read once, and whole or not at all."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from adapters.disk import sync_folder
from adapters.llama_cpp import gguf
from gateway.library.digests import Digests, digests
from gateway.library.drives import How, bring, check_writable, reflink
from gateway.library.errors import Corrupt, Unusable
from gateway.library.facts import Facts, facts

# "auto": share blocks where the file system can, else link; nothing is written twice without being asked for.
Way = Literal["auto", "link", "hardlink", "reflink", "copy"]
# What a file in a folder of its own is called until it is whole: a name of it may have no room for anything more.
DRAFT = ".part"


class Unsound(Exception):
    """The file is no model that may be loaded; the message says what is wrong with it."""


class Taken(NamedTuple):
    """A file that is in the library now."""

    path: Path
    how: How
    facts: Facts
    digests: Digests


class Look(NamedTuple):
    """A source before anything is done with it."""

    path: Path
    size_bytes: int
    facts: Facts


def look(source: Path) -> Look:
    """What lies at `source`, links followed; raises Unusable where nothing can be read, Unsound for no model."""
    try:
        path = source.resolve(strict=True)
        size_bytes = path.stat().st_size
        header = gguf.read(path)
    except gguf.GGUFError as error:
        raise Unsound(str(error)) from None
    except (OSError, RuntimeError) as error:
        raise Unusable(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return Look(path, size_bytes, facts(header))


def take(seen: Look, folder: Path, name: str, way: Way, stop: threading.Event, told: Callable[[int], None]) -> Taken:
    """Have what was seen as `name` in `folder`, which is made and belongs to it alone. Raises a LibraryError or
    Unsound, and then the folder is gone again."""
    check_writable(folder, seen.size_bytes if way == "copy" else 0)
    target, draft = folder / name, folder / DRAFT
    try:
        how, read = _bring(seen, draft, way, stop, told)
        draft.rename(target)
        # What was read may have been another file than was looked at.
        again = look(target)
        if read.size_bytes != again.size_bytes:
            raise Corrupt("somebody wrote to it while it was read")
        if how in ("copy", "reflink"):
            target.chmod(0o444)
        sync_folder(folder)
        return Taken(target, how, again.facts, read)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _bring(
    seen: Look, draft: Path, way: Way, stop: threading.Event, told: Callable[[int], None]
) -> tuple[How, Digests]:
    if way == "copy":
        return "copy", digests(seen.path, draft, stop=stop, told=told)
    how: How = way if way != "auto" else "reflink"
    try:
        if way == "auto" and not reflink(seen.path, draft):
            how = "link"
    except OSError as error:
        raise Unusable(f"its blocks cannot be shared: {error.strerror}") from None
    if way != "auto" or how == "link":
        bring(seen.path, draft, how)
    return how, digests(draft, stop=stop, told=told)
