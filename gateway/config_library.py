"""The settings of the library: where models are pulled from and to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from gateway.config_auth import is_loopback
from gateway.config_limits import Section, words
from gateway.config_models import LocalPath
from gateway.secret import Secret

Host = Annotated[
    str,
    Meta(pattern=r"^(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*\Z", extra=words("a host such as example.com or *.example.com")),
]
RepositoryPattern = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[A-Za-z0-9*._-]+/[A-Za-z0-9*._-]+\Z",
        extra=words("owner/repo, where * stands for anything"),
    ),
]


class LibraryConfig(Section, frozen=True, kw_only=True):
    """A hub, and the cache folder (`dir` None: the one that the hub's own tools use).

    `hosts` are where a hub may send us for the bytes of files beside Hugging Face's own. The token stays with the hub's
    own host. Imported files lie in `files_dir` (None: in the data directory); over HTTP they may come from
    `import_dirs` and be linked into `link_dirs`, and be pulled from the repositories in `allow`. What nobody needs is
    removed every `collect_hours` (None: never), what is in quarantine after `quarantine_days`.
    """

    dir: LocalPath | None = None
    endpoint: Annotated[str, Meta(min_length=1, max_length=500)] = "https://huggingface.co"
    hosts: tuple[Host, ...] = ()
    token: Secret | None = None
    token_file: LocalPath | None = None
    offline: bool = False
    files_dir: LocalPath | None = None
    import_dirs: Annotated[tuple[LocalPath, ...], Meta(max_length=100)] = ()
    link_dirs: Annotated[tuple[LocalPath, ...], Meta(max_length=100)] = ()
    allow: tuple[RepositoryPattern, ...] = ()
    collect_hours: Annotated[int, Meta(ge=1, le=8760)] | None = 24
    quarantine_days: Annotated[int, Meta(ge=1, le=3650)] = 30


def library_conflicts(library: LibraryConfig) -> Iterator[tuple[str, str]]:
    """What no single type can say, as (path, problem)."""
    if library.token is not None and library.token_file is not None:
        yield "library.token_file", "library.token is set already"
    try:
        parts = urlsplit(library.endpoint)
        host = parts.hostname or ""
    except ValueError:
        yield "library.endpoint", "not a URL"
        return
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        yield "library.endpoint", "expected https://; http:// is for a loopback address only"
    elif not host or parts.username is not None or parts.query or parts.fragment:
        yield "library.endpoint", "expected a URL with a host, and neither a user, nor a query, nor a fragment"
