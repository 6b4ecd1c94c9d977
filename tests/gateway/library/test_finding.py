from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.llama_cpp import gguf
from gateway.config import demo_model_path
from gateway.library.errors import Corrupt, Gated, InUse, NotFound, Offline
from gateway.library.files import File, Files
from gateway.library.finding import Finding
from gateway.library.fitting import fit, memory_bytes_per_s
from gateway.library.hub import Hub, HubSettings
from gateway.library.ranged import BLOCK_BYTES, RangedFile
from tests.databases import open_migrated
from tests.hub import COMMIT
from tests.hub import Hub as FakeHub

DEMO = Path(demo_model_path()).read_bytes()
GIB = 1 << 30


class Bench:
    def __init__(self, hub: FakeHub, files: Files, **settings: bool) -> None:
        self.hub = hub
        self.files = files
        self.now_s = 0.0
        client = Hub(HubSettings(endpoint=hub.endpoint, **settings))  # type: ignore[arg-type]
        self.finding = Finding(
            lambda: client, files, room_bytes=lambda: 4 * GIB, bytes_per_s=lambda: 1e10, clock=lambda: self.now_s
        )

    async def local(self, name: str, content: bytes = DEMO) -> File:
        file = await self.files.add(name, "verifying", how="copy", source=f"/x/{name}")
        return await self.files.change(file.id, status="ready", sha256=hashlib.sha256(content).hexdigest())


def run(tmp_path: Path, work: Callable[[Bench], Awaitable[None]], **settings: bool) -> None:
    async def inside(hub: FakeHub) -> None:
        database = await open_migrated(tmp_path, serve=True)
        try:
            files = Files(database)
            await files.open()
            bench = Bench(hub, files, **settings)
            await work(bench)
            bench.finding.close()
        finally:
            await database.close()

    with FakeHub({"demo-Q8_0.gguf": DEMO, "demo-F32.gguf": DEMO + bytes(BLOCK_BYTES), "README.md": b"x"}) as hub:
        asyncio.run(inside(hub))


def test_repositories_are_found(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        (found,) = await bench.finding.search("model", 5)
        assert (found.repo, found.downloads, found.likes, found.gated) == ("org/model", 12, 3, False)
        assert await bench.finding.search("nothing like it", 5) == []

    run(tmp_path, work)


def test_offers_take_a_header_and_no_weights(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        offers = await bench.finding.offers("org/model")
        assert (offers.repo, offers.commit) == ("org/model", COMMIT)
        assert [(one.quantisation, one.size_bytes) for one in offers.offers] == [
            ("Q8_0", len(DEMO)),
            ("F32", len(DEMO) + BLOCK_BYTES),
        ]
        assert offers.facts is not None and offers.facts.architecture == "llama"
        for one in offers.offers:
            assert one.fit is not None and one.fit.fits and one.fit.sessions > 1
            assert one.fit.session_tokens == 2048
        assert bench.hub.served_bytes <= BLOCK_BYTES
        asked = len(bench.hub.requests)
        assert await bench.finding.offers("org/model") == offers
        assert len(bench.hub.requests) == asked
        bench.now_s += 90_000
        await bench.finding.offers("org/model")
        assert len(bench.hub.requests) > asked

    run(tmp_path, work)


def test_a_hub_without_ranges_is_read_from_its_front(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.hub.ranges = False
        assert (await bench.finding.offers("org/model")).facts is not None

    run(tmp_path, work)


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        with pytest.raises(NotFound):
            await bench.finding.offers("org/none")
        bench.hub.files["demo-Q8_0.gguf"] = b"no model" * 1000
        bench.hub.files.pop("demo-F32.gguf")
        offers = await bench.finding.offers("org/model")
        assert (offers.facts, offers.offers[0].fit) == (None, None)
        bench.hub.gated = True
        bench.now_s += 90_000
        with pytest.raises(Gated):
            await bench.finding.offers("org/model")

    run(tmp_path, work)


def test_a_file_is_found_by_its_name_and_verified_by_its_digest(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        bench.hub.listed[0]["id"] = "org/model"
        same, other = await bench.local("model-Q8_0.gguf"), await bench.local("demo-Q8_0.gguf", b"other")
        file, matches = await bench.finding.look_up(same.id)
        assert [(match.file, match.verified) for match in matches] == [("demo-Q8_0.gguf", True)]
        assert (file.repo, file.commit_id, file.repo_file) == ("org/model", COMMIT, "demo-Q8_0.gguf")
        assert (await bench.files.get(same.id)).repo == "org/model"
        file, matches = await bench.finding.look_up(other.id)
        assert (file.repo, matches) == (None, [])
        file, matches = await bench.finding.look_up(other.id, "org/model")
        assert [(match.file, match.verified) for match in matches] == [("demo-Q8_0.gguf", False)]
        assert file.repo is None
        unread = await bench.files.add("x.gguf", "error", how="copy", source="/x")
        with pytest.raises(InUse):
            await bench.finding.look_up(unread.id)

    run(tmp_path, work)


def test_nobody_is_asked_when_that_is_not_wanted(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        with pytest.raises(Offline):
            await bench.finding.search("model", 5)
        with pytest.raises(Offline):
            await bench.finding.offers("org/model")
        assert bench.hub.requests == []

    run(tmp_path, work, offline=True)


def test_a_header_that_never_ends_is_given_up() -> None:
    asked: list[int] = []

    def fetch(start: int, count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    ranged = RangedFile(1 << 40, fetch)
    while ranged.seek(0, 1) < 64 << 20:
        ranged.read(1 << 20)
    with pytest.raises(Corrupt):
        ranged.read(1)
    assert sum(asked) == 64 << 20 and len(asked) == 7
    with pytest.raises(Corrupt):
        RangedFile(100, lambda start, count: b"").read(10)


def test_what_fits() -> None:
    header = replace(gguf.read(Path(demo_model_path())), context_length=1 << 17)
    roomy = fit(header, header.size_bytes, 8 * GIB, 1e10)
    assert (roomy.fits, roomy.session_tokens, roomy.sessions > 3) == (True, 16 * 1024, True)
    assert roomy.tokens_per_s == pytest.approx(1e10 / header.size_bytes, rel=0.05)
    tight = fit(header, header.size_bytes, roomy.needed_bytes, None)
    assert (tight.fits, tight.sessions, tight.tokens_per_s) == (False, 0, None)
    enough = fit(header, header.size_bytes, int(roomy.needed_bytes / 0.9) + 1, None)
    assert (enough.fits, enough.sessions) == (True, 1)
    large = fit(header, 100 * GIB, 8 * GIB, None)
    assert not large.fits and large.needed_bytes > 100 * GIB
    experts = replace(header, metadata={**header.metadata, "llama.expert_count": 8, "llama.expert_used_count": 2})
    assert fit(experts, header.size_bytes, GIB, 1e10).tokens_per_s == roomy.tokens_per_s  # It has no such tensors.
    assert memory_bytes_per_s() > 0
