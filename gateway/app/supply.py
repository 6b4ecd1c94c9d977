"""Brings the files of a configured model here before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adapters.llama_cpp.resident import FetchFailed, Withdrawn
from gateway.config import Config
from gateway.hubs import open_pulls
from gateway.library.errors import LibraryError
from gateway.library.machine import WEIGHTS_SHARE
from gateway.library.messages import Asked, Told, answer
from gateway.library.names import Reference, select

if TYPE_CHECKING:
    from gateway.library.pulls import Pull, Pulls
    from gateway.library.shelf import Shelf

# What is said before anybody can know how long a pull takes.
ETA_S_GUESS = 60.0


class LazyPulls:
    """The pulls of this process, made when somebody first asks for them."""

    def __init__(self, config: Config, shelf: Shelf | None = None) -> None:
        self._config = config
        self._shelf = shelf
        self._pulls: Pulls | None = None

    def __call__(self) -> Pulls:
        """Raises Unusable when the hub's token cannot be read."""
        if self._pulls is None:
            chosen = self._config.pool.memory_bytes
            self._pulls = open_pulls(
                self._config, self._shelf, None if chosen is None else lambda: int(chosen * WEIGHTS_SHARE)
            )
        return self._pulls

    async def ask(self, asked: Asked) -> Told:
        """What `pulling` says about them."""
        return await answer(self, asked)

    async def close(self) -> None:
        """Stop all pulls; what has come stays for the next time."""
        if self._pulls is not None:
            await self._pulls.close()


class Supply:
    """The pull of one model. `locate` is told where the model lies, and its projector for images if there is one."""

    def __init__(
        self, reference: Reference, pulls: Callable[[], Pulls], locate: Callable[[str, str | None], None]
    ) -> None:
        self._reference = reference
        self._pulls = pulls
        self._locate = locate
        self._pull: Pull | None = None

    async def fetch(self) -> None:
        """Go on with the pull, or begin it; raises FetchFailed, and Withdrawn when an operator has cancelled it."""
        try:
            pulls, pull = self._pulls(), self._pull
            if pull is None or not (pull.status == "paused" or pulls.resume(pull)):
                pull = self._pull = pulls.start(self._reference)
        except LibraryError as error:
            raise FetchFailed(str(error)) from None
        await pull.ended.wait()
        if pull.status == "cancelled":
            self._pull = None
            raise Withdrawn("the pull was cancelled")
        if pull.status == "failed":
            raise FetchFailed(str(pull.error))
        chosen = select(self._reference, pull.files)
        paths = dict(zip(pull.files, map(str, pull.paths), strict=True))
        self._locate(paths[chosen.model.files[0]], paths.get(chosen.projector) if chosen.projector else None)

    def progress(self) -> tuple[float, float]:
        if self._pull is None or not self._pull.total_bytes:
            return 0.0, ETA_S_GUESS
        seen = self._pull.progress()
        return seen.done_bytes / seen.total_bytes, ETA_S_GUESS if seen.eta_s is None else seen.eta_s
