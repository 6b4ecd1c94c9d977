"""Conversations through the real server that outlast restarts, crashes and broken files, until they are deleted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.e2e.sessions import (
    DEMO,
    QUESTIONS,
    SYSTEM,
    Answer,
    Talk,
    cached,
    config,
    prompt_tokens,
    reply,
    shown,
    tenant,
)
from tests.models.random_shapes import deepseek2, gemma2, jamba, mamba

WAIT_S = 20.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def files(server: Server) -> list[Path]:
    """What sessions have left on the disk."""
    found = (server.data_dir / "state" / "sessions").rglob("*")
    return [path for path in found if path.suffix == ".kv"]


def written(server: Server) -> set[int]:
    """Which files there are, as the system knows them: one that takes another's name is a new one."""
    return {path.stat().st_ino for path in files(server) if path.suffix == ".kv"}


def ready(server: Server) -> None:
    with server.client() as client:
        until(lambda: client.get("/health/ready").status_code == 200, "the model is back")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("sessions"), config=config(DEMO)) as server:
        yield server


@pytest.fixture(scope="module")
def uninterrupted(server: Server) -> list[str]:
    """What the model answers when nothing happens between two turns."""
    with server.client() as client:
        return Talk(client, "uninterrupted").replies()


def crash(server: Server) -> None:
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSEGV)
    until(lambda: server.workers() not in ([worker], []), "there is another worker")


def stop(server: Server) -> None:
    assert server.stop() == 0
    server.__enter__()


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(WAIT_S)
    server.__enter__()


@pytest.mark.parametrize("interruption", [crash, stop, kill])
def test_the_next_turn_finds_its_history(
    tmp_path: Path, uninterrupted: list[str], interruption: Callable[[Server], None]
) -> None:
    with Server(tmp_path, config=config(DEMO)) as server, server.client() as client:
        talk = Talk(client, "a/b talk")
        before = [talk.say(QUESTIONS[0])]
        until(lambda: bool(written(server)), "the first turn is on the disk")
        first = written(server)
        before.append(talk.say(QUESTIONS[1]))
        assert cached(before[1]) >= prompt_tokens(before[0])
        until(lambda: written(server).isdisjoint(first), "the second has taken its place")
        interruption(server)
        ready(server)
        kept = shown(client, "a/b talk")
        assert (kept["tier"], kept["owner"], kept["model"]) == ("disk", "admin", "demo") and kept["size_bytes"] > 0
        after = talk.say(QUESTIONS[2])
        assert cached(after) >= prompt_tokens(before[1])
        assert [reply(answer) for answer in (*before, after)] == uninterrupted
        assert server.metric("gateway_session_lookups_total", model="demo", tier="disk") == 1


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage, truncate])
def test_a_broken_file_costs_time_and_nothing_else(
    tmp_path: Path, uninterrupted: list[str], harm: Callable[[Path], None]
) -> None:
    with Server(tmp_path, config=config(DEMO)) as server, server.client() as client:
        talk = Talk(client, "talk")
        said = talk.replies(QUESTIONS[:2])
        assert server.stop() == 0
        for path in files(server):
            harm(path)
        server.__enter__()
        after = talk.say(QUESTIONS[2])
        assert [*said, reply(after)] == uninterrupted
        assert cached(after) == 0
        assert server.metric("gateway_session_events_total", model="demo", event="corrupt") >= 1


def test_sessions_are_encrypted_where_there_is_a_key(tmp_path: Path, uninterrupted: list[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the first secret of this test\n")
    sealed = config(DEMO, top=f"sessions: {{encryption_key_file: {secret}}}")
    with Server(tmp_path, config=sealed) as server, server.client() as client:
        talk = Talk(client, "talk")
        said = [reply(talk.say(QUESTIONS[0]))]
        stop(server)
        second = talk.say(QUESTIONS[1])
        assert cached(second) > 0
        assert server.stop() == 0
        secret.write_text("another secret of this test\n")
        server.__enter__()
        third = talk.say(QUESTIONS[2])
        assert [*said, reply(second), reply(third)] == uninterrupted
        assert cached(third) == 0
        assert server.metric("gateway_session_events_total", model="demo", event="mismatched") >= 1
        log = server.log.read_text()
        assert "secret of this test" not in log


def test_deletion_leaves_nothing_behind(tmp_path: Path) -> None:
    with Server(tmp_path, config=config(DEMO)) as server, server.client() as client:
        Talk(client, "kept").say(QUESTIONS[0])
        until(lambda: bool(written(server)), "the first is on the disk")
        before = set(files(server))
        Talk(client, "secret", system="Another beginning. " + SYSTEM).say(QUESTIONS[0])
        until(lambda: set(files(server)) > before, "the second is on the disk")
        stop(server)
        assert client.delete("/v1/sessions/secret").status_code == 200
        until(lambda: len(files(server)) == len(before), "its file is gone")
        again = Talk(client, "secret", system="Another beginning. " + SYSTEM).say(QUESTIONS[0])
        assert cached(again) == 0
        assert cached(Talk(client, "kept").say(QUESTIONS[0])) > 0


def test_a_public_prefix_is_shared_by_all(tmp_path: Path) -> None:
    shared = f"public_prefixes: [{json.dumps(SYSTEM)}]"
    with (
        Server(tmp_path, config=config(DEMO, model=shared)) as server,
        tenant(server, "one") as one,
        tenant(server, "two") as two,
    ):
        for client in (one, two):
            answer = Talk(client, None).say(QUESTIONS[0])
            rest = Talk(client, None, system="x").say(QUESTIONS[0])
            assert cached(answer) > 0.8 * (prompt_tokens(answer) - prompt_tokens(rest))
        personal = SYSTEM + " My name is Rumpelstiltskin."
        Talk(one, None, system=personal).say(QUESTIONS[1])
        assert cached(Talk(two, None, system=personal).say(QUESTIONS[1])) <= cached(answer)


@pytest.mark.parametrize("shape", [mamba, jamba, gemma2, deepseek2])
def test_models_that_cannot_go_back_are_kept_as_well(tmp_path: Path, shape: Callable[..., Path]) -> None:
    """Recurrent, hybrid and sliding-window models continue a killed conversation from where they can."""
    models = config(shape(tmp_path / "shape.gguf", exact=True))
    said: list[list[Answer]] = []
    for folder, killed in (("killed", True), ("undisturbed", False)):
        with Server(tmp_path / folder, config=models) as server, server.client() as client:
            talk = Talk(client, "talk", model="shape", system="Be brief.")
            answers = [talk.say(QUESTIONS[0])]
            if killed:
                until(lambda server=server: bool(written(server)), "it is on the disk")  # type: ignore[misc]
                kill(server)
                ready(server)
            said.append([*answers, talk.say(QUESTIONS[1])])
            assert cached(said[-1][1]) > 0
    killed_talk, undisturbed = said
    # They may go on from different places, but these weights depend little on the order of sums.
    assert [reply(answer) for answer in killed_talk] == [reply(answer) for answer in undisturbed]
