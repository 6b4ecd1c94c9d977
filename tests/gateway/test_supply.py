"""Bringing the files of a configured model here: where they lie then, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from adapters.llama_cpp.resident import FetchFailed, Withdrawn
from gateway.app.supply import ETA_S_GUESS, LazyPulls, Supply
from gateway.config import Config, LibraryConfig
from gateway.library.names import parse
from tests.hub import Hub

FILES = {"m-Q4_0.gguf": b"four" * 1000, "m-Q8_0.gguf": b"eight" * 1000, "mmproj-F16.gguf": b"eyes", "draft.gguf": b"d"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(FILES)) as running:
        yield running


def with_library(hub: Hub, folder: Path, test: Callable[[LazyPulls], Awaitable[None]], **settings: object) -> None:
    library = LibraryConfig(endpoint=hub.endpoint, dir=str(folder / "hub"), **settings)  # type: ignore[arg-type]

    async def run() -> None:
        shelf = LazyPulls(Config(data_dir=str(folder), library=library))
        try:
            async with asyncio.timeout(30):
                await test(shelf)
        finally:
            await shelf.close()

    asyncio.run(run())


def test_the_model_and_its_projector_are_located(hub: Hub, tmp_path: Path) -> None:
    located: list[tuple[str, str | None]] = []

    async def test(library: LazyPulls) -> None:
        supply = Supply(parse("org/model:Q4_0"), library, lambda path, mmproj: located.append((path, mmproj)))
        assert supply.progress() == (0.0, ETA_S_GUESS)
        await supply.fetch()
        assert supply.progress() == (1.0, 0.0)
        assert len(library().list()) == 1

    with_library(hub, tmp_path, test)
    ((path, mmproj),) = located
    assert Path(path).read_bytes() == FILES["m-Q4_0.gguf"]
    assert mmproj is not None and Path(mmproj).read_bytes() == b"eyes"


def test_a_failure_says_why_and_the_next_try_goes_on(hub: Hub, tmp_path: Path) -> None:
    async def test(library: LazyPulls) -> None:
        located: list[str] = []
        supply = Supply(parse("org/model"), library, lambda path, mmproj: located.append(path))
        hub.gated = True
        with pytest.raises(FetchFailed, match="not open to this token"):
            await supply.fetch()
        hub.gated = False
        await supply.fetch()
        assert Path(located[0]).name == "m-Q8_0.gguf"
        assert len(library().list()) == 1, "it is the same pull that went on"

    with_library(hub, tmp_path, test)


def test_whoever_cancels_a_pull_decides_against_the_model(hub: Hub, tmp_path: Path) -> None:
    async def test(library: LazyPulls) -> None:
        hub.bytes_per_piece = 1000
        hub.paced.clear()
        supply = Supply(parse("org/model:Q4_0"), library, lambda path, mmproj: None)
        fetching = asyncio.create_task(supply.fetch())
        while not (pulls := library().list()) or pulls[0].status != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pull = library().get(pulls[0].id)
        assert pull is not None
        cancelling = asyncio.create_task(library().cancel(pull))
        await asyncio.sleep(0)
        hub.paced.set()
        assert await cancelling
        with pytest.raises(Withdrawn):
            await fetching
        await supply.fetch()

    with_library(hub, tmp_path, test)


def test_a_token_that_cannot_be_read_is_a_failure_like_others(hub: Hub, tmp_path: Path) -> None:
    async def test(library: LazyPulls) -> None:
        with pytest.raises(FetchFailed, match="token_file cannot be read"):
            await Supply(parse("org/model"), library, lambda path, mmproj: None).fetch()

    with_library(hub, tmp_path, test, token_file=str(tmp_path / "missing"))
