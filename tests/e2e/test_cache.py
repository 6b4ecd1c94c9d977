"""The response cache through a real server: in front of a provider whose requests are counted, and of a local model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import openai
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.stores import Valkey

UPSTREAM = "models: [{name: theirs, script: canned.yaml}]\n"
SCRIPT = f"""
answers:
  - {{text: Hello from there}}
  - {{match: long, text: {"word " * 5000}}}
"""
FRONT = """
providers: [{{name: next, kind: gateway, base_url: "{url}/v1", api_key: "${{UPSTREAM_KEY}}"}}]
models: [{{name: demo, path: {demo}, price: {{input: "1", output: "2"}}, cache_ttl_s: 600}}]
routes:
  - {{name: far, cache_ttl_s: 600, groups: [[{{provider: next, model: theirs, price: {{input: "1", output: "2"}}}}]]}}
  - {{name: brief, cache_ttl_s: 1, groups: [[{{provider: next, model: theirs, price: {{input: "1", output: "2"}}}}]]}}
cache: {{enabled: true, hit_price_percent: 10, entry_bytes_max: 20000, redis: {redis}}}
"""
DEMO = Path(__file__).parents[2] / "adapters/llama_cpp/demo/demo.gguf"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "canned.yaml").write_text(SCRIPT)
    with Server(folder, config=UPSTREAM) as server:
        yield server


@pytest.fixture(scope="module", params=["memory", "redis"])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, behind: Server) -> Iterator[Server]:
    redis = request.getfixturevalue("valkey").url if request.param == "redis" else "null"
    config = FRONT.format(url=behind.url, demo=DEMO, redis=redis)
    with Server(tmp_path_factory.mktemp("front"), config=config, UPSTREAM_KEY=ADMIN_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def sdk(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def asked(behind: Server) -> float:
    return behind.metric("gateway_inference_requests_total")


def ask(
    sdk: openai.OpenAI, text: str, model: str = "far", control: str | None = None, max_tokens: int = 50
) -> tuple[str, Mapping[str, str]]:
    raw = sdk.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        max_tokens=max_tokens,
        extra_headers={} if control is None else {"cache-control": control},
    )
    return raw.parse().choices[0].message.content or "", raw.headers


def streamed(sdk: openai.OpenAI, text: str, model: str) -> tuple[list[str], str]:
    raw = sdk.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": text}], stream=True, max_tokens=8
    )
    chunks = list(raw.parse())
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices], raw.headers["x-gateway-cache"]


def test_a_hit_asks_nobody_and_costs_its_share(front: Server, behind: Server, sdk: openai.OpenAI) -> None:
    before = asked(behind)
    first, miss = ask(sdk, "first")
    again, hit = ask(sdk, "first")
    assert first == again == "Hello from there"
    assert (miss["x-gateway-cache"], hit["x-gateway-cache"]) == ("miss", "hit")
    assert int(hit["age"]) >= 0 and "age" not in miss
    assert float(hit["x-gateway-cost-usd"]) == pytest.approx(float(miss["x-gateway-cost-usd"]) / 10, abs=1e-9)
    assert asked(behind) == before + 1
    with front.client() as plain:
        (entry,) = plain.get(f"/v1/requests/{hit['x-request-id']}").json()["data"]
    assert (entry["cache"], entry["provider"], entry["cost_usd"]) == ("hit", "cache", hit["x-gateway-cost-usd"])
    assert front.metric("gateway_cache_requests_total", model="far", outcome="hit") >= 1
    assert front.metric("gateway_cache_bytes") > 0


def test_streams_are_given_again_and_a_local_models_answer_in_either_form(sdk: openai.OpenAI) -> None:
    for model in ("far", "demo"):
        pieces, outcome = streamed(sdk, "a stream", model)
        again, repeated = streamed(sdk, "a stream", model)
        assert (outcome, repeated) == ("miss", "hit")
        assert again == pieces and len(pieces) > 2
    whole, headers = ask(sdk, "a stream", "demo", max_tokens=8)
    assert (whole, headers["x-gateway-cache"]) == ("".join(pieces), "hit")


def test_what_requests_say(behind: Server, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(sdk, "third", control="only-if-cached")
    assert (caught.value.status_code, caught.value.code) == (504, "not_cached")
    outcomes = [ask(sdk, "third", control=control)[1]["x-gateway-cache"] for control in ("no-store", "no-cache", None)]
    assert outcomes == ["miss", "bypass", "hit"]


def test_what_is_too_large_is_not_kept(sdk: openai.OpenAI) -> None:
    assert [ask(sdk, "long", max_tokens=8000)[1]["x-gateway-cache"] for _ in range(2)] == ["miss", "miss"]


def test_answers_expire(behind: Server, sdk: openai.OpenAI) -> None:
    assert ask(sdk, "brief", "brief")[1]["x-gateway-cache"] == "miss"
    deadline = time.monotonic() + 20
    while ask(sdk, "brief", "brief", control="no-store")[1]["x-gateway-cache"] == "hit":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_can_be_emptied_for_a_tenant(front: Server, sdk: openai.OpenAI) -> None:
    assert [ask(sdk, "fifth")[1]["x-gateway-cache"] for _ in range(2)] == ["miss", "hit"]
    with front.client() as admin:
        assert admin.get("/admin/v1/cache").json()["size_bytes"] > 0
        assert admin.delete("/admin/v1/cache?tenant=somebody").json()["answers"] == 0
        assert ask(sdk, "fifth")[1]["x-gateway-cache"] == "hit"
        assert admin.delete("/admin/v1/cache?tenant=admin").json()["answers"] >= 1
    assert ask(sdk, "fifth")[1]["x-gateway-cache"] == "miss"


def test_without_its_redis_requests_are_answered_as_ever(tmp_path: Path, behind: Server) -> None:
    with Valkey() as redis:
        config = FRONT.format(url=behind.url, demo=DEMO, redis=redis.url)
        with (
            Server(tmp_path, config=config, UPSTREAM_KEY=ADMIN_KEY) as server,
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0) as sdk,
        ):
            assert [ask(sdk, "x")[1]["x-gateway-cache"] for _ in range(2)] == ["miss", "hit"]
            redis.kill()
            assert [ask(sdk, "x")[0] for _ in range(3)] == ["Hello from there"] * 3
            assert ask(sdk, "x")[1]["x-gateway-cache"] == "miss"
            assert server.metric("gateway_cache_failures_total") > 0
            redis.start()
            deadline = time.monotonic() + 20
            while ask(sdk, "x")[1]["x-gateway-cache"] != "hit":
                assert time.monotonic() < deadline
                time.sleep(0.1)
