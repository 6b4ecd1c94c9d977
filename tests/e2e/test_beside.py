"""Targets beside each other, through a real server: in several dialects, hedged, and mirrored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server, free_port
from tests.e2e.upstreams import Fleet, Replica, until

SCRIPT = "answers: [{text: I am here}]\n"
CONFIG = """
models: [{{name: here, script: canned.yaml, price: {{input: "1", output: "1"}}}}]
providers:
  - {{name: one, kind: openai-compatible, base_url: "http://127.0.0.2:{port}/v1"}}
  - {{name: two, kind: openai-compatible, base_url: "http://127.0.0.3:{port}/v1"}}
  - {{name: claude, kind: anthropic, base_url: "http://127.0.0.4:{port}", api_key: sk-ant-0123456789}}
routes:
  - name: mixed
    groups:
      - - {{provider: one, model: m, price: &price {{input: "1", output: "1"}}}}
        - {{provider: claude, model: m, price: *price}}
        - {{provider: local, model: here}}
  - name: falling
    policy: priority
    groups: [[{{provider: two, model: m, price: *price}}], [{{provider: claude, model: m, price: *price}}]]
  - name: hedged
    policy: priority
    hedge: {{after_ms: 50, share_max: 1}}
    groups: [[{{provider: one, model: slow, price: *price}}, {{provider: two, model: m, price: *price}}]]
  - name: mirrored
    mirror: {{provider: claude, model: shadow}}
    groups: [[{{provider: one, model: m, price: *price}}]]
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    replicas = (
        Replica("127.0.0.2", "I am one"),
        Replica("127.0.0.3", "I am two"),
        Replica("127.0.0.4", "I am Claude", "anthropic"),
    )
    with Fleet(*replicas, port=free_port()) as running:
        yield running


@pytest.fixture(scope="module")
def server(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("front")
    (folder / "canned.yaml").write_text(SCRIPT)
    with Server(folder, config=CONFIG.format(port=fleet.port)) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def user(text: str = "hi") -> list[Any]:
    return [{"role": "user", "content": text}]


def entries(server: Server, request_id: str) -> list[dict[str, Any]]:
    with server.client() as client:
        return list(client.get(f"/v1/requests/{request_id}").json()["data"])


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client_gets_the_same_from_targets_of_any_dialect(
    server: Server, fleet: Fleet, sdk: openai.OpenAI, stream: bool
) -> None:
    one, _, claude = fleet.replicas
    before, texts = len(one.bodies), {}
    for _ in range(3):
        raw = sdk.chat.completions.with_raw_response.create(
            model="mixed", messages=user(), stream=stream, extra_body={"zz_unknown": {"a": [1]}}
        )
        answer: Any = raw.parse()
        if stream:
            texts[raw.headers["x-gateway-target"]] = "".join(
                chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices
            )
        else:
            texts[raw.headers["x-gateway-target"]] = answer.choices[0].message.content
            assert answer.usage.completion_tokens > 0
        (entry,) = entries(server, raw.headers["x-request-id"])
        assert f"{entry['provider']}/{entry['target']}" == raw.headers["x-gateway-target"]
        assert (entry["status"], entry["usage"]["estimated"]) == ("posted", False)
    assert texts == {"one/m": "I am one", "claude/m": "I am Claude", "local/here": "I am here"}
    assert one.bodies[before]["zz_unknown"] == {"a": [1]}, "who speaks the dialect gets what the client said"
    assert "zz_unknown" not in claude.bodies[-1] and claude.bodies[-1]["max_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client_too(fleet: Fleet, server: Server, stream: bool) -> None:
    *_, claude = fleet.replicas
    texts = set()
    with anthropic.Anthropic(base_url=server.url, api_key=ADMIN_KEY, max_retries=0) as client:
        for _ in range(3):
            before = len(claude.bodies)
            asked: Any = {"model": "mixed", "max_tokens": 50, "messages": user(), "extra_body": {"zz_unknown": 1}}
            if stream:
                with client.messages.stream(**asked) as events:
                    message: Any = events.get_final_message()
            else:
                message = client.messages.create(**asked)
            texts.add(message.content[0].text)
            if len(claude.bodies) > before:
                assert claude.bodies[-1]["zz_unknown"] == 1
    assert texts == {"I am one", "I am Claude", "I am here"}


def test_a_target_of_another_dialect_takes_over(server: Server, fleet: Fleet, sdk: openai.OpenAI) -> None:
    _, two, _ = fleet.replicas
    fleet.shut(two)
    try:
        raw = sdk.chat.completions.with_raw_response.create(model="falling", messages=user())
        assert raw.parse().choices[0].message.content == "I am Claude"
        assert (raw.headers["x-gateway-target"], raw.headers["x-gateway-attempts"]) == ("claude/m", "2")
        assert len(entries(server, raw.headers["x-request-id"])) == 1
    finally:
        fleet.open(two)


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_target_answers_for_a_slow_one_and_is_charged_once(
    server: Server, fleet: Fleet, sdk: openai.OpenAI, stream: bool
) -> None:
    one, two, _ = fleet.replicas
    one.delay_s, left = 30, one.left
    until(lambda: two.server is not None)
    try:
        raw = sdk.chat.completions.with_raw_response.create(model="hedged", messages=user(), stream=stream)
        answer: Any = raw.parse()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) if stream else ""
        assert (text or answer.choices[0].message.content) == "I am two"
        assert raw.headers["x-gateway-target"] == "two/m"
        (entry,) = entries(server, raw.headers["x-request-id"])
        assert (entry["status"], entry["provider"], entry["cost_usd"]) == ("posted", "two", "0.000012")
        with server.client() as client:
            decision = client.get(f"/v1/decisions/{raw.headers['x-request-id']}").json()
        outrun = next(one for one in decision["attempts"] if one["outcome"] == "outrun")
        assert outrun["target"] == "one/slow" and float(outrun["cost_usd_max"]) > 0
        until(lambda: one.left > left)  # Its connection is closed, so it computes no more.
    finally:
        one.delay_s = 0
    assert server.metric("gateway_hedges_total", model="hedged", outcome="won") >= 1
    assert server.metric("gateway_hedge_cost_nano_usd_total", model="hedged") > 0
    assert server.metric("gateway_target_failures_total", target="one/slow") == 0


def test_copies_go_to_the_shadow_and_show_nowhere(server: Server, fleet: Fleet, sdk: openai.OpenAI) -> None:
    *_, claude = fleet.replicas
    for stream in (False, True):
        before = len(claude.bodies)
        raw = sdk.chat.completions.with_raw_response.create(model="mirrored", messages=user("copy me"), stream=stream)
        answer: Any = raw.parse()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) if stream else ""
        assert (text or answer.choices[0].message.content) == "I am one"
        assert not [name for name in raw.headers if "mirror" in name]
        until(lambda seen=before: len(claude.bodies) > seen)  # type: ignore[misc]
        assert claude.bodies[-1]["model"] == "shadow" and "copy me" in str(claude.bodies[-1]["messages"])
        assert ADMIN_KEY not in claude.heads[-1]
        (entry,) = entries(server, raw.headers["x-request-id"])
        assert entry["provider"] == "one"
    until(lambda: server.metric("gateway_mirrored_requests_total", model="mirrored", outcome="ok") == 2)
    for side in ("real", "shadow"):
        assert server.metric("gateway_mirror_first_output_seconds_count", model="mirrored", side=side) == 2
    claude.well = False
    try:
        answer = sdk.chat.completions.create(model="mirrored", messages=user())
        assert answer.choices[0].message.content == "I am one"
        until(lambda: server.metric("gateway_mirrored_requests_total", model="mirrored", outcome="failed") == 1)
    finally:
        claude.well = True
