"""Routes over several targets, local and remote, through a real server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.e2e.upstreams import until

AUTHORISED = {"authorization": f"Bearer {ADMIN_KEY}"}
SCRIPT = "answers: [{text: Hello from there}]\n"
FAILING = """
answers: [{error: {code: engine_failed}}]
"""
LIMITED = """
answers: [{error: {code: rate_limit_exceeded, retry_after_s: 40}}]
"""
LONG = """
answers: [{text: "It fits."}]
context_tokens: 100000
"""
SHORT = """
answers: [{text: "It is short."}]
context_tokens: 100
"""
UPSTREAM = "models: [{name: theirs, script: canned.yaml}]\n"
FRONT = """
models:
  - {{name: here, script: canned.yaml, price: {{input: "1", output: "2"}}}}
  - {{name: ill, script: failing.yaml}}
  - {{name: limited, script: limited.yaml}}
  - {{name: short, script: short.yaml}}
  - {{name: long, script: long.yaml}}
providers:
  - {{name: next, kind: gateway, base_url: "{url}/v1", api_key: "${{UPSTREAM_KEY}}"}}
  - {{name: away, kind: openai-compatible, base_url: "http://127.0.0.1:9/v1"}}
routes:
  - name: balanced
    groups:
      - - {{provider: local, model: here}}
        - {{provider: next, model: theirs, weight: 3, price: {{input: "1000", output: "1000"}}}}
  - name: safe
    policy: priority
    groups:
      - [{{provider: away, model: gone}}, {{provider: local, model: ill}}]
      - [{{provider: next, model: theirs}}]
  - {{name: hopeless, groups: [[{{provider: away, model: gone}}]]}}
  - {{name: busy, groups: [[{{provider: away, model: gone}}], [{{provider: local, model: limited}}]]}}
  - {{name: roomy, groups: [[{{provider: local, model: short}}], [{{provider: local, model: long}}]]}}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    upstream, folder = tmp_path_factory.mktemp("upstream"), tmp_path_factory.mktemp("front")
    (upstream / "canned.yaml").write_text(SCRIPT)
    scripts = {"canned": SCRIPT, "failing": FAILING, "limited": LIMITED, "short": SHORT, "long": LONG}
    for name, text in scripts.items():
        (folder / f"{name}.yaml").write_text(text)
    with (
        Server(upstream, config=UPSTREAM) as behind,
        Server(folder, config=FRONT.format(url=behind.url), UPSTREAM_KEY=ADMIN_KEY) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def sdk(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, model: str, text: str = "hi") -> tuple[str, Mapping[str, str]]:
    raw = sdk.chat.completions.with_raw_response.create(model=model, messages=[{"role": "user", "content": text}])
    return raw.parse().choices[0].message.content or "", raw.headers


def test_requests_are_balanced_by_weight_and_charged_where_they_went(front: Server, sdk: openai.OpenAI) -> None:
    headers = [ask(sdk, "balanced")[1] for _ in range(40)]
    counts = Counter(one["x-gateway-target"] for one in headers)
    assert counts == {"local/here": 10, "next/theirs": 30}
    for one in headers[:8]:
        entry = httpx.get(f"{front.url}/v1/requests/{one['x-request-id']}", headers=AUTHORISED).json()["data"][0]
        assert f"{entry['provider']}/{entry['target']}" == one["x-gateway-target"]
        assert entry["model"] == "balanced"
        assert entry["items"][0]["usd_per_million"] == ("1.0" if entry["provider"] == "local" else "1000.0")
        assert entry["cost_usd"] == one["x-gateway-cost-usd"]


def test_what_fails_is_tried_elsewhere_and_the_decision_says_so(front: Server, sdk: openai.OpenAI) -> None:
    text, headers = ask(sdk, "safe")
    assert text == "Hello from there"
    assert headers["x-gateway-target"] == "next/theirs"
    assert headers["x-gateway-attempts"] == "3"
    decision = httpx.get(f"{front.url}/v1/decisions/{headers['x-request-id']}", headers=AUTHORISED).json()
    assert (decision["route"], decision["policy"]) == ("safe", "priority")
    tried = [(one["target"], one["outcome"]) for one in decision["attempts"]]
    assert tried == [("away/gone", "upstream_error"), ("local/ill", "engine_failed"), ("next/theirs", "ok")]
    missing = httpx.get(f"{front.url}/v1/decisions/none", headers=AUTHORISED)
    assert missing.status_code == 404


def test_streams_too(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model="safe", messages=[{"role": "user", "content": "hi"}], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello from there"


def test_when_nobody_can_it_is_said(front: Server, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        ask(sdk, "hopeless")
    assert caught.value.status_code == 502
    response = caught.value.response
    found: list[dict[str, Any]] = []

    def recorded() -> bool:
        answer = httpx.get(f"{front.url}/v1/requests/{response.headers['x-request-id']}", headers=AUTHORISED)
        found[:] = answer.json().get("data", [])
        return bool(found)

    until(recorded)
    assert (found[0]["provider"], str(found[0]["attempts"])) == ("", response.headers["x-gateway-attempts"])


def test_a_limit_of_the_provider_is_told_as_one_while_it_lasts(sdk: openai.OpenAI) -> None:
    waits = []
    for _ in range(2):
        with pytest.raises(openai.RateLimitError, match=r"provider|script") as caught:
            ask(sdk, "busy")
        assert caught.value.code == "rate_limit_exceeded"
        waits.append(float(caught.value.response.headers["retry-after-ms"]))
    assert 0 < waits[1] < waits[0] <= 40_000


def test_a_prompt_that_is_too_long_goes_where_it_fits(sdk: openai.OpenAI) -> None:
    assert ask(sdk, "roomy")[0] == "It is short."
    assert ask(sdk, "roomy", "word " * 100)[0] == "It fits."


def test_a_failing_target_rests_and_metrics_say_so(front: Server, sdk: openai.OpenAI) -> None:
    for _ in range(8):
        assert ask(sdk, "safe")[0] == "Hello from there"
    metrics = httpx.get(f"{front.url}/metrics").text
    assert 'gateway_target_breaker{target="local/ill"} 1' in metrics
    assert 'gateway_target_running{target="next/theirs"} 0' in metrics
    assert ask(sdk, "safe")[1]["x-gateway-attempts"] == "1"
