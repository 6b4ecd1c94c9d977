"""A Hugging Face hub or a mirror of one: what a repository holds at a commit, and bytes of its files.

`huggingface_hub` asks the API. Bytes are fetched by us: its own download was measured to accept a corrupt file of the
right size, and to begin from byte 0 after a kill. Everything here blocks, and runs in threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

import httpx
import msgspec

from gateway.library.errors import Corrupt, Gated, HubUnavailable, InvalidReference, Misled, NotFound, Offline
from gateway.library.names import Found, Kind, Reference, RemoteFile, check_paths
from gateway.routing.breaker import Breaker
from gateway.secret import Secret

if TYPE_CHECKING:
    from huggingface_hub import HfApi

API_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 30.0
REDIRECTS_MAX = 5
CONNECTIONS_PER_HOST = 4
FILES_MAX = 10_000
HOSTS = ("*.huggingface.co", "*.hf.co")


class Resolution(msgspec.Struct, frozen=True):
    """What a name stood for when it was looked up: the commit, and all files there."""

    reference: Reference
    kind: Kind
    commit: str
    files: tuple[RemoteFile, ...]


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`hosts` are where the endpoint may send us for bytes, `*.` standing for any name before; it may do so itself."""

    endpoint: str = "https://huggingface.co"
    hosts: tuple[str, ...] = HOSTS
    token: Secret | None = None
    offline: bool = False


class Hosts:
    """Manners towards each host: a bound on connections, a rest when it asks for one or keeps failing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._places: dict[str, threading.BoundedSemaphore] = {}
        self._breakers: dict[str, Breaker] = {}

    @contextmanager
    def visit(self, host: str) -> Iterator[None]:
        """Raises HubUnavailable while the host rests. A `HubUnavailable` from inside counts against the host."""
        with self._lock:
            places = self._places.setdefault(host, threading.BoundedSemaphore(CONNECTIONS_PER_HOST))
            breaker = self._breakers.setdefault(host, Breaker())
        with places:
            with self._lock:
                now_s = self._clock()
                if not breaker.try_enter(now_s):
                    raise HubUnavailable(f"{host} needs a rest", max(breaker.wait_s(now_s), 0.1))
            try:
                yield
            except HubUnavailable as error:
                with self._lock:
                    breaker.failed(self._clock(), error.retry_after_s)
                raise
            except BaseException:
                with self._lock:
                    breaker.left()
                raise
            with self._lock:
                breaker.succeeded(self._clock())


class Hub:
    """One hub. Its token goes to the endpoint's own host and nowhere else."""

    def __init__(
        self, settings: HubSettings, *, transport: httpx.BaseTransport | None = None, hosts: Hosts | None = None
    ) -> None:
        self.settings = settings
        self._endpoint = settings.endpoint.rstrip("/")
        self._origin = urlsplit(self._endpoint)
        self._hosts = hosts or Hosts()
        timeout = httpx.Timeout(IDLE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.Client(timeout=timeout, follow_redirects=False, transport=transport)

    def close(self) -> None:
        self._client.close()

    def resolve(self, reference: Reference, kind: Kind = "model") -> Resolution:
        """Look a name up; raises NotFound, Gated, HubUnavailable, Offline or InvalidReference."""
        if self.settings.offline:
            raise Offline(f"{reference.repo} cannot be looked up: the library is offline")
        with self._hosts.visit(self._origin.netloc), _said_by_us(reference.repo, self._origin.netloc):
            return self._resolve(self._api(), reference, kind)

    def _resolve(self, api: HfApi, reference: Reference, kind: Kind) -> Resolution:
        ask = api.model_info if kind == "model" else api.dataset_info
        info = ask(reference.repo, revision=reference.revision, files_metadata=True, timeout=API_TIMEOUT_S)
        commit = info.sha or ""
        entries: Sequence[Any] = info.siblings or ()
        names = [entry.rfilename for entry in entries]
        if any(entry.size is None for entry in entries):
            # Mirrors may list names only.
            tree = api.list_repo_tree(reference.repo, repo_type=kind, revision=commit, recursive=True)
            entries = [entry for entry in tree if hasattr(entry, "blob_id")]
            names = [entry.path for entry in entries]
        if len(names) > FILES_MAX:
            raise InvalidReference(f"{reference.repo} holds more than {FILES_MAX} files")
        files = tuple(
            RemoteFile(name, int(entry.size), entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for name, entry in zip(names, entries, strict=True)
        )
        check_paths(files)
        if len(commit) != 40 or not _is_hexadecimal(commit):
            raise Corrupt(f"the hub names no commit for {reference}")
        return Resolution(reference, kind, commit, files)

    def search(self, text: str, limit: int) -> list[Found]:
        """Repositories by words, the most downloaded first; raises as `resolve` does."""
        if self.settings.offline:
            raise Offline("the hub cannot be searched: the library is offline")
        with self._hosts.visit(self._origin.netloc), _said_by_us(text, self._origin.netloc):
            models = self._api().list_models(search=text, filter="gguf", sort="downloads", limit=limit)
            return [
                Found(
                    model.id,
                    model.downloads or 0,
                    model.likes or 0,
                    bool(model.gated),
                    None if model.last_modified is None else model.last_modified.isoformat(),
                )
                for model in models
            ]

    def part(self, resolution: Resolution, file: RemoteFile, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start` on; raises as `stream` does."""
        data = b""
        pieces = self.stream(resolution, file, start, count)
        try:
            for piece in pieces:
                data += piece
                if len(data) >= count:
                    break
        finally:
            pieces.close()
        return data[:count]

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        token = self.settings.token
        return HfApi(endpoint=self._endpoint, token=token.reveal() if token else False, library_name="gateway")

    def stream(
        self, resolution: Resolution, file: RemoteFile, start: int, count: int | None = None
    ) -> Generator[bytes]:
        """The bytes of a file from `start` on, at least `count` of them (None: all). Raises HubUnavailable when they
        cannot be had now or break off, Misled when the hub's answers do not fit together."""
        if self.settings.offline:
            raise Offline(f"{file.path} cannot be fetched: the library is offline")
        repo = resolution.reference.repo
        folder = "datasets/" if resolution.kind == "dataset" else ""
        url = f"{self._endpoint}/{folder}{repo}/resolve/{resolution.commit}/{quote(file.path)}"
        for _ in range(REDIRECTS_MAX + 1):
            parts = urlsplit(url)
            with (
                self._hosts.visit(parts.netloc),
                _translated(parts.netloc),
                self._client.stream("GET", url, headers=self._headers(url, start, count)) as response,
            ):
                if not response.is_redirect:
                    _check_status(response, file, repo, start, count)
                    yield from response.iter_raw()
                    return
                url = self._followed(url, response.headers.get("location", ""))
        raise Misled(f"the hub sends us around in circles for {file.path}")

    def _headers(self, url: str, start: int, count: int | None) -> dict[str, str]:
        headers = {"accept-encoding": "identity", "user-agent": "inference-gateway"}
        if start or count is not None:
            headers["range"] = f"bytes={start}-{'' if count is None else start + count - 1}"
        parts, token = urlsplit(url), self.settings.token
        if token is not None and (parts.scheme, parts.netloc) == (self._origin.scheme, self._origin.netloc):
            headers["authorization"] = f"Bearer {token.reveal()}"
        return headers

    def _followed(self, url: str, location: str) -> str:
        """Where a redirect leads; raises Misled when that is none of the hub's hosts, or less safe."""
        target = urljoin(url, location)
        parts = urlsplit(target)
        host = parts.hostname or ""
        own = parts.netloc == self._origin.netloc
        known = any(host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self.settings.hosts)
        if not (own or known) or parts.username is not None:
            raise Misled(f"the hub redirects to {host or 'nowhere'}, which is none of its hosts")
        if parts.scheme != "https" and parts.scheme != self._origin.scheme:
            raise Misled("the hub redirects to an address without encryption")
        return target


def check_facts(file: RemoteFile, repo: str) -> None:
    """Raises Corrupt unless a file can be recognised when it comes. Digests become file names, too."""
    length = 64 if file.sha256 is not None else 40
    if file.size_bytes < 0 or len(file.digest) != length or not _is_hexadecimal(file.digest):
        raise Corrupt(f"{repo}: the hub does not say how large {file.path} is and what its digest is")


def _is_hexadecimal(text: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in text)


def _check_status(response: httpx.Response, file: RemoteFile, repo: str, start: int, count: int | None = None) -> None:
    status = response.status_code
    if status in (401, 403):
        raise Gated(f"{repo} is not open to this token: ask its owner for access, and set library.token")
    if status in (404, 410):
        raise NotFound(f"{repo} has no file {file.path} any more")
    if status == 429 or status >= 500:
        raise HubUnavailable(f"the hub answers {status}", _retry_after_s(response))
    if status not in (200, 206):
        raise Misled(f"the hub answers {status} for {file.path}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Misled(f"the hub sends {file.path} encoded, which nobody asked for")
    if start and status == 200:
        raise HubUnavailable("the hub begins from the start again")
    end = file.size_bytes if count is None or status == 200 else min(start + count, file.size_bytes)
    expected = f"bytes {start}-{end - 1}/{file.size_bytes}"
    if status == 206 and response.headers.get("content-range", "") != expected:
        raise Misled(f"the hub sends other bytes of {file.path} than it was asked for")
    length = response.headers.get("content-length")
    if length is not None and length != str(end - start):
        raise Misled(f"the hub promised {end - start} bytes of {file.path} and sends {length[:20]}")


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 7 else None


@contextmanager
def _translated(host: str) -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except httpx.TransportError as error:
        raise HubUnavailable(f"{host}: {type(error).__name__}") from None


@contextmanager
def _said_by_us(repo: str, host: str) -> Iterator[None]:
    """huggingface_hub's errors as ours."""
    import httpx2
    from huggingface_hub import errors as theirs

    try:
        yield
    except theirs.GatedRepoError:
        raise Gated(f"{repo} is gated: ask its owner for access, and set library.token") from None
    except (theirs.RepositoryNotFoundError, theirs.RevisionNotFoundError, theirs.EntryNotFoundError):
        raise NotFound(f"the hub has no {repo} at that revision, or hides it from this token") from None
    except theirs.HFValidationError:
        raise InvalidReference(f"{repo} is no name of a repository") from None
    except theirs.HfHubHTTPError as error:
        status = error.response.status_code
        retry_after = error.response.headers.get("retry-after", "")
        if status in (401, 403):
            raise Gated(f"{repo} is not open to this token") from None
        if status in (404, 410):
            raise NotFound(f"the hub has no {repo}") from None
        raise HubUnavailable(
            f"the hub answers {status}", float(retry_after) if retry_after.isdecimal() else None
        ) from None
    except (OSError, httpx2.HTTPError) as error:
        raise HubUnavailable(f"the hub {host} cannot be reached: {type(error).__name__}") from None
