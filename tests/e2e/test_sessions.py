"""Kept conversations through the real server: apart by tenant, managed over HTTP and in the terminal, explained."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server
from tests.e2e.sessions import (
    DEMO,
    QUESTIONS,
    Talk,
    cached,
    config,
    mann_whitney_less,
    prompt_tokens,
    reply,
    shown,
    tenant,
)


def common(left: str, right: str) -> int:
    """The length of the beginning they share."""
    return next((at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), len(left))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("sessions"), config=config(DEMO)) as server:
        yield server


def test_a_tenant_never_uses_what_another_computed(server: Server) -> None:
    """Whatever is asked in whatever order, no more is cached than the tenant's own prompts have in common."""
    rng = random.Random(7)
    words = [f"Paragraph {number} tells of the fox, the hen and the river." for number in range(6)]
    with tenant(server, "t0") as t0, tenant(server, "t1") as t1, tenant(server, "t2") as t2:
        clients = [t0, t1, t2]
        asked: list[list[str]] = [[], [], []]
        for _ in range(45):
            who = rng.randrange(3)
            prompt = " ".join(rng.sample(words, rng.randint(1, 3)))
            key = rng.choice([None, "shared name", "another"])
            body = {"model": "demo", "prompt": prompt, "max_tokens": 2, "prompt_cache_key": key}
            answer = clients[who].post("/v1/completions", json={k: v for k, v in body.items() if v}).json()
            own = max((common(prompt, other) for other in asked[who]), default=0)
            # A token is at least one character, and the answer may have been continued as well as the prompt.
            assert cached(answer) <= own, (who, prompt, asked[who])
            asked[who].append(prompt + answer["choices"][0]["text"])
        keys = [{one["key"] for one in client.get("/v1/sessions?limit=100").json()["data"]} for client in clients]
        assert all(found <= {None, "shared name", "another"} for found in keys)


def test_a_foreign_prefix_is_not_faster_than_an_unknown_one(server: Server) -> None:
    """Mann-Whitney over alternating probes; the tenant's own prefix shows that the test can tell."""
    rng = random.Random(3)

    def prefix() -> str:
        return " ".join(str(rng.randrange(1000)) for _ in range(150))

    def probe(client: httpx.Client, prompt: str) -> float:
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200
        return float(answer.headers["openai-processing-ms"])

    foreign: list[float] = []
    unknown: list[float] = []
    own: list[float] = []
    with tenant(server, "owner") as owner, tenant(server, "prober") as prober:
        for turn in range(24):
            known, new = prefix(), prefix()
            probe(owner, known)
            measured = [(foreign, known), (unknown, new)]
            for times, prompt in measured if turn % 2 else reversed(measured):
                times.append(probe(prober, prompt + " and then"))
            own.append(probe(owner, known + " and then"))
    assert mann_whitney_less(own, unknown) < 0.001, "what is cached is faster, so that the test can fail"
    assert mann_whitney_less(foreign, unknown) > 0.001


def test_sessions_over_http(server: Server) -> None:
    with tenant(server, "alice") as alice, tenant(server, "bob") as bob, server.client() as admin:
        talk = Talk(alice, "trip/2 💬")
        first = talk.say(QUESTIONS[0])
        kept = shown(alice, "trip/2 💬")
        assert kept["owner"] == "alice" and kept["tokens"] >= prompt_tokens(first)
        assert kept["created_at"] <= kept["last_used_at"] <= time.time() + 1
        path = f"/v1/sessions/{quote('trip/2 💬', safe='')}"
        assert alice.get(f"/v1/sessions/{kept['id']}").json()["key"] == "trip/2 💬"
        for verb in ("", "/pin", "/unpin", "/reset", "/fork"):
            answer = bob.request("POST" if verb else "GET", path + verb)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert bob.delete(path).status_code == 404 and bob.get("/v1/sessions").json()["data"] == []
        assert [one["key"] for one in alice.get("/v1/sessions").json()["data"]] == ["trip/2 💬"]
        assert "alice" in {one["owner"] for one in admin.get("/v1/sessions?tenant=*&limit=100").json()["data"]}
        assert alice.post(f"{path}/pin").json()["pinned"] is True
        assert alice.post(f"{path}/unpin").json()["pinned"] is False
        assert cached(talk.say(QUESTIONS[1])) >= prompt_tokens(first)
        assert alice.post(f"{path}/reset").status_code == 200
        assert cached(talk.say(QUESTIONS[2])) == 0, "what is reset is forgotten"


def test_a_fork_goes_its_own_way(server: Server) -> None:
    with tenant(server, "forker") as client:
        talk = Talk(client, "trunk")
        first = talk.say(QUESTIONS[0])
        fork = client.post("/v1/sessions/trunk/fork", json={"new_id": "branch"}).json()
        assert (fork["key"], fork["owner"], fork["tokens"]) == ("branch", "forker", shown(client, "trunk")["tokens"])
        taken = client.post("/v1/sessions/trunk/fork", json={"new_id": "branch"})
        assert (taken.status_code, taken.json()["error"]["param"]) == (400, "new_id")
        branch = Talk(client, "branch")
        branch.messages = list(talk.messages)
        second = branch.say(QUESTIONS[1])
        assert cached(second) >= prompt_tokens(first)
        trunk = talk.say(QUESTIONS[2])
        assert cached(trunk) >= prompt_tokens(first)
        alone = Talk(client, None)
        alone.messages = talk.messages[:3]
        assert reply(trunk) == reply(alone.say(QUESTIONS[2])) != reply(second)
        assert client.delete("/v1/sessions/branch").json()["deleted"] is True
        assert client.get("/v1/sessions/branch").status_code == 404
        assert shown(client, "trunk")["tokens"] >= prompt_tokens(trunk)
        assert client.post("/v1/sessions/nothing/fork").status_code == 404


def test_the_command_line(server: Server) -> None:
    with tenant(server, "terminal") as client:
        Talk(client, "cli/1").say(QUESTIONS[0])

    def gateway(*arguments: str, key: str = client.headers["authorization"].removeprefix("Bearer ")) -> str:
        command = [sys.executable, "-m", "gateway", "sessions", *arguments, "--url", server.url, "--key", key]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout if done.returncode == 0 else done.stderr

    assert "cli/1" in gateway("list") and "demo" in gateway("show", "cli/1")
    assert json.loads(gateway("pin", "cli/1", "--json"))["pinned"] is True
    assert json.loads(gateway("unpin", "cli/1", "--json"))["pinned"] is False
    assert json.loads(gateway("fork", "cli/1", "--new-id", "cli/2", "--json"))["key"] == "cli/2"
    assert json.loads(gateway("reset", "cli/2", "--json"))["key"] == "cli/2"
    owners = {one["owner"] for one in json.loads(gateway("list", "--tenant", "*", "--json", key=ADMIN_KEY))}
    assert "terminal" in owners
    for name in ("cli/1", "cli/2"):
        gateway("delete", name)
        assert gateway("show", name) == "gateway: There is no such session.\n"


def test_a_diagnosis_names_the_message(server: Server) -> None:
    explain = {"X-Gateway-Explain": "cache"}
    with tenant(server, "curious") as client:
        talk = Talk(client, "why")
        unknown = talk.say(QUESTIONS[0], explain)["gateway"]["cache"]
        assert (unknown["cached_tokens"], unknown["tier"], unknown["divergence"]) == (0, None, None)
        going_on = talk.say(QUESTIONS[1], explain)["gateway"]["cache"]
        assert going_on["divergence"] is None and going_on["cached_tokens"] > 0 and going_on["tier"] is not None
        talk.messages[3]["content"] = "What is the capital of Spain?"
        answer = talk.say(QUESTIONS[2], explain)
        changed = answer["gateway"]["cache"]
        where = changed["divergence"]
        assert (where["message"], where["role"]) == (3, "user")
        assert where["expected"] != where["got"] and where["got"] in talk.messages[3]["content"]
        assert where["token"] == changed["cached_tokens"] == cached(answer)
        assert changed["recomputed_tokens"] == prompt_tokens(answer) - cached(answer)
        assert changed["recompute_us"] > 0 and changed["session_tokens"] > changed["cached_tokens"]
        assert "gateway" not in talk.say(QUESTIONS[0])
