"""Pulls from a hub that does everything a hub may do, and everything it may not."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.library.drives import check_writable
from gateway.library.errors import (
    Cancelled,
    Corrupt,
    Gated,
    HubUnavailable,
    InvalidReference,
    LibraryError,
    Misled,
    NoSpace,
    NotFound,
    Offline,
)
from gateway.library.hub import Hosts, HubSettings, Resolution
from gateway.library.hub import Hub as Client
from gateway.library.messages import Progress, answer, watch
from gateway.library.names import Kind, Reference, RemoteFile, parse
from gateway.library.pulls import Pull, Pulls
from gateway.library.store import LockFile, Store
from gateway.library.transfer import Transfer
from gateway.secret import Secret
from tests.hub import COMMIT, TOKEN, Hub

MODEL = random.Random(5).randbytes(3_000_000)
FILES = {"README.md": b"# model\n", "model-Q4_0.gguf": MODEL, "mmproj-F16.gguf": b"projector" * 1000}
NAME = parse("org/model:Q4_0")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(FILES)) as running:
        yield running


class Place:
    """A library over a folder, as one process has it."""

    def __init__(self, hub: Hub, root: Path, token: str | None = None, offline: bool = False) -> None:
        settings = HubSettings(endpoint=hub.endpoint, token=Secret(token) if token else None, offline=offline)
        self.client = Client(settings, hosts=Hosts())
        self.store = Store(root / "hub")
        self.pulls = Pulls(self.client, self.store, LockFile(root / "models.lock"))

    async def pull(self, name: str = "org/model:Q4_0") -> Pull:
        pull = self.pulls.start(parse(name))
        await pull.ended.wait()
        return pull


def with_place(hub: Hub, root: Path, test: Callable[[Place], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        place = Place(hub, root, **options)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(60):
                await test(place)
        finally:
            await place.pulls.close()

    asyncio.run(run())


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "hub").rglob("*.incomplete")]


def test_what_comes_lies_where_other_tools_look(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        pull = await place.pull()
        assert pull.error is None
        folder = tmp_path / "hub/models--org--model"
        assert (folder / f"snapshots/{COMMIT}/model-Q4_0.gguf").read_bytes() == MODEL
        assert (folder / f"snapshots/{COMMIT}/model-Q4_0.gguf").resolve() == folder / "blobs" / hub.sha256(
            "model-Q4_0.gguf"
        )
        assert (folder / f"snapshots/{COMMIT}/mmproj-F16.gguf").exists()
        assert not (folder / f"snapshots/{COMMIT}/README.md").exists()
        assert (folder / "refs/main").read_text() == COMMIT
        progress = pull.progress()
        assert (progress.status, progress.done_bytes, progress.eta_s) == ("succeeded", progress.total_bytes, 0.0)
        assert progress.path == str(folder / f"snapshots/{COMMIT}/model-Q4_0.gguf")

    with_place(hub, tmp_path, test)
    from huggingface_hub import try_to_load_from_cache

    assert try_to_load_from_cache("org/model", "model-Q4_0.gguf", cache_dir=tmp_path / "hub") is not None


def test_mirrors_that_list_names_only(hub: Hub, tmp_path: Path) -> None:
    hub.names_only = True

    async def test(place: Place) -> None:
        assert (await place.pull()).status == "succeeded"

    with_place(hub, tmp_path, test)


def test_a_second_pull_fetches_nothing_and_means_the_same_commit(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        await place.pull()
        served = hub.served_bytes
        hub.requests.clear()
        assert (await place.pull()).status == "succeeded"
        assert (hub.served_bytes, hub.requests) == (served, [])

    with_place(hub, tmp_path, test)


def test_what_a_name_stood_for_stays_also_where_there_is_less_room(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        rooms = iter((10 * len(MODEL), 1))
        pins = LockFile(tmp_path / "models.lock")
        pulls = Pulls(place.client, place.store, pins, room_bytes=lambda: next(rooms, 1))
        for _ in range(2):
            pull = pulls.start(parse("org/model"))
            await pull.ended.wait()
            assert [file.path for file in pull.files] == ["model-Q4_0.gguf", "mmproj-F16.gguf"]
            assert pull.status == "succeeded"

    with_place(hub, tmp_path, test)


def test_cuts_cost_no_byte_twice(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.library.transfer.delay_s", lambda failures, draw: 0.0)
    dice = random.Random(1)
    hub.cuts = [dice.randrange(1, 100_000) for _ in range(40)]

    async def test(place: Place) -> None:
        # Rests are over as soon as somebody looks.
        seconds = itertools.count(0.0, 1000.0)
        place.client._hosts = Hosts(clock=lambda: next(seconds))
        pull = await place.pull()
        assert pull.error is None
        assert not hub.cuts
        assert hub.served_bytes - sum(map(len, (MODEL, FILES["mmproj-F16.gguf"]))) <= 40 * (64 << 10)

    with_place(hub, tmp_path, test)
    assert leftovers(tmp_path) == []


def test_a_process_that_was_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    """What a killed process leaves is a part of a file and a lock that nobody holds."""
    part = Store(tmp_path / "hub").partial("org/model", RemoteFile("", 0, hub.sha256("model-Q4_0.gguf")))
    part.parent.mkdir(parents=True)
    part.write_bytes(MODEL[:1_500_000])

    async def test(place: Place) -> None:
        assert (await place.pull()).status == "succeeded"
        assert hub.served_bytes == 1_500_000 + len(FILES["mmproj-F16.gguf"])

    with_place(hub, tmp_path, test)


def test_what_has_come_outlives_a_hub_that_leads_astray(hub: Hub, tmp_path: Path) -> None:
    part = Store(tmp_path / "hub").partial("org/model", RemoteFile("", 0, hub.sha256("model-Q4_0.gguf")))
    part.parent.mkdir(parents=True)
    part.write_bytes(MODEL[:1_500_000])

    async def test(place: Place) -> None:
        hub.redirect_to = "http://elsewhere.invalid/model-Q4_0.gguf"
        assert isinstance((await place.pull()).error, Misled)
        hub.redirect_to = None
        assert (await place.pull()).status == "succeeded"
        assert hub.served_bytes == 1_500_000 + len(FILES["mmproj-F16.gguf"])

    with_place(hub, tmp_path, test)


def test_a_damaged_part_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    part = Store(tmp_path / "hub").partial("org/model", RemoteFile("", 0, hub.sha256("model-Q4_0.gguf")))
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1_000_000))

    async def test(place: Place) -> None:
        assert (await place.pull()).status == "succeeded"

    with_place(hub, tmp_path, test)


@pytest.mark.parametrize(
    ("lies", "failure"),
    [
        ({"sha256": "0" * 64}, Corrupt),
        ({"size": len(MODEL) - 1}, Corrupt),
        ({"size": len(MODEL) + 1}, Corrupt),
        ({"size": 1 << 60}, NoSpace),
        ({"sha256": "../../../../tmp/x"}, Corrupt),
        ({"path": "../model-Q4_0.gguf"}, InvalidReference),
        ({"path": "/tmp/model-Q4_0.gguf"}, InvalidReference),
    ],
)
def test_lies(hub: Hub, tmp_path: Path, lies: dict[str, int | str], failure: type[LibraryError]) -> None:
    hub.lies = lies
    hub.files = {"model-Q4_0.gguf": MODEL}

    async def test(place: Place) -> None:
        pull = await place.pull()
        assert isinstance(pull.error, failure), pull.error
        assert pull.progress().status == "failed"

    with_place(hub, tmp_path, test)
    assert leftovers(tmp_path) == []
    assert not list((tmp_path / "hub").rglob("*.gguf"))
    assert {path.name for path in tmp_path.iterdir()} <= {"hub", "models.lock", ".models.lock"}


def test_the_token_stays_with_its_host(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    with Hub(dict(FILES)) as elsewhere:
        hub.redirect_to = f"{elsewhere.endpoint}/cdn/{COMMIT}/model-Q4_0.gguf"

        async def test(place: Place) -> None:
            pull = await place.pull()
            assert isinstance(pull.error, Corrupt)
            assert "none of its hosts" in str(pull.error)

        with_place(hub, tmp_path, test, token=TOKEN)
        assert elsewhere.requests == []

        async def trusted(place: Place) -> None:
            place.client.settings = HubSettings(endpoint=hub.endpoint, token=Secret(TOKEN), hosts=("127.0.0.1",))
            await place.pull("org/model/model-Q4_0.gguf")
            assert elsewhere.requests
            assert not [headers for _, headers in elsewhere.requests if "authorization" in headers]

        with_place(hub, tmp_path, trusted, token=TOKEN)
    asked = [headers.get("authorization") for path, headers in hub.requests if "/resolve/" in path]
    assert set(asked) == {f"Bearer {TOKEN}"}


def test_gated_without_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True

    async def test(place: Place) -> None:
        assert isinstance((await place.pull()).error, Gated)

    with_place(hub, tmp_path, test)


def test_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        assert isinstance((await place.pull("org/other:Q4_0")).error, NotFound)
        assert isinstance((await place.pull("org/model:Q8_0")).error, NotFound)

    with_place(hub, tmp_path, test)


def test_offline(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        assert isinstance((await place.pull()).error, Offline)
        assert hub.requests == []

    with_place(hub, tmp_path, test, offline=True)


def test_a_busy_hub_is_given_the_time_it_asks_for(hub: Hub, tmp_path: Path) -> None:
    hub.failures = [(429, {"retry-after": "1"})]

    async def test(place: Place) -> None:
        assert (await place.pull()).status == "succeeded"

    with_place(hub, tmp_path, test)


def test_a_hub_that_is_gone_for_good_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.library.transfer.delay_s", lambda failures, draw: 0.0)
    hub.failures = [(503, {})] * 100

    async def test(place: Place) -> None:
        # Rests are over as soon as somebody looks.
        seconds = itertools.count(0.0, 1000.0)
        place.client._hosts = Hosts(clock=lambda: next(seconds))
        assert isinstance((await place.pull()).error, HubUnavailable)

    with_place(hub, tmp_path, test)


def test_fifty_who_ask_share_one_pull_and_two_processes_one_transfer(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        other = Place(hub, tmp_path)
        pulls = {id(place.pulls.start(NAME)) for _ in range(50)}
        assert len(pulls) == 1
        first, second = place.pulls.start(NAME), other.pulls.start(NAME)
        await asyncio.gather(first.ended.wait(), second.ended.wait())
        assert (first.status, second.status) == ("succeeded", "succeeded")
        assert hub.served_bytes == len(MODEL) + len(FILES["mmproj-F16.gguf"])
        other.client.close()

    with_place(hub, tmp_path, test)


async def until(pulls: Pulls, pull: Pull, holds: Callable[[Progress], bool]) -> None:
    async for progress in watch(partial(answer, lambda: pulls), pull.progress()):
        if holds(progress):
            return


def test_pause_and_resume(hub: Hub, tmp_path: Path) -> None:
    hub.paced.clear()

    async def test(place: Place) -> None:
        pull = place.pulls.start(NAME)
        await until(place.pulls, pull, lambda progress: progress.done_bytes > 0)
        assert place.pulls.pause(pull)
        assert pull.progress().status == "paused"
        hub.paced.set()
        await asyncio.wait(list(place.pulls._tasks.values()))
        assert place.pulls.start(NAME) is pull
        assert place.pulls.resume(pull)
        await pull.ended.wait()
        assert pull.progress().status == "succeeded"
        starts = [headers["range"] for path, headers in hub.requests if "/cdn/" in path and "range" in headers]
        assert len(starts) == 1
        assert starts != ["bytes=0-"]

    with_place(hub, tmp_path, test)


def test_a_cancelled_pull_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.paced.clear()

    async def test(place: Place) -> None:
        pull = place.pulls.start(NAME)
        await until(place.pulls, pull, lambda progress: progress.done_bytes > 0)
        assert await place.pulls.cancel(pull)
        assert pull.progress().status == "cancelled"
        assert not await place.pulls.cancel(pull)
        hub.paced.set()
        await asyncio.gather(*place.pulls._tasks.values())

    with_place(hub, tmp_path, test)
    assert leftovers(tmp_path) == []


def test_a_pull_that_is_cancelled_just_before_it_fetches_stays_cancelled(hub: Hub, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        loop, pull = asyncio.get_running_loop(), place.pulls.start(NAME)

        class Stop(threading.Event):
            """Whoever looks at it in a thread for the first time sees what was true just before it was set."""

            looked = False

            def is_set(self) -> bool:
                before = super().is_set()
                if threading.current_thread() is not threading.main_thread() and not self.looked:
                    self.looked = True
                    asyncio.run_coroutine_threadsafe(place.pulls.cancel(pull), loop)
                    self.wait()
                return before

        pull.stop = Stop()
        await pull.ended.wait()
        assert pull.status == "cancelled"

    with_place(hub, tmp_path, test)
    assert leftovers(tmp_path) == []


class Silent(Client):
    """A hub that says nothing until it is let."""

    def __init__(self) -> None:
        super().__init__(HubSettings())
        self.let = threading.Event()

    def resolve(self, reference: Reference, kind: Kind = "model") -> Resolution:
        self.let.wait()
        raise NotFound("there is nothing")


def test_however_much_is_pulled_nobody_else_waits_for_a_thread(tmp_path: Path) -> None:
    async def run() -> None:
        hub = Silent()
        pulls = Pulls(hub, Store(tmp_path / "hub"), LockFile(tmp_path / "models.lock"))
        started = [pulls.start(parse(f"org/model{number}")) for number in range(40)]
        await asyncio.sleep(0)  # All of them begin.
        try:
            async with asyncio.timeout(20):
                assert await asyncio.to_thread(lambda: [pull.status for pull in started]) == ["queued"] * 40
        finally:
            hub.let.set()
            await pulls.close()

    asyncio.run(run())


def test_the_rate_is_that_of_what_is_fetched(tmp_path: Path) -> None:
    now_s = 0.0
    pull = Pull(NAME, "model", False, lambda: now_s)
    file = RemoteFile("x", 100_000_000, "0" * 64)
    transfer = Transfer(lambda one, start: iter(()), file, tmp_path / "part", tmp_path / "whole", pull.stop)
    pull.files, pull.status = (file,), "running"
    pull.begin_file(transfer)
    transfer.done_bytes, transfer.checking = 50_000_000, True
    assert (pull.progress().status, pull.progress().bytes_per_s) == ("verifying", 0.0)
    now_s, transfer.checking = 10.0, False
    assert pull.progress().eta_s is None
    now_s, transfer.fetched_bytes, transfer.done_bytes = 11.0, 10_000_000, 60_000_000
    progress = pull.progress()
    assert (progress.status, progress.bytes_per_s, progress.eta_s) == ("running", 10_000_000.0, 4.0)


def test_a_full_disk_is_told_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        check_writable(tmp_path, 1 << 60)


def test_a_stopped_transfer_keeps_what_has_come(tmp_path: Path) -> None:
    stop = threading.Event()

    def source(file: RemoteFile, start: int) -> Iterator[bytes]:
        yield b"a" * 10
        stop.set()
        yield b"b" * 10

    transfer = Transfer(source, RemoteFile("x", 100, "0" * 64), tmp_path / "part", tmp_path / "whole", stop)
    with pytest.raises(Cancelled):
        transfer.run()
    assert (tmp_path / "part").read_bytes() == b"a" * 10
