"""The scenarios that need no cancellation, against a scripted endpoint; and the gateway's configuration for benches."""

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway import config
from gateway.bench import Endpoint, open_client
from gateway.bench_report import Outcome
from tests.bench import scenarios
from tests.bench.__main__ import Pair, is_chosen, parse
from tests.bench.endpoints import Setup, gateway_config

FIRST = Endpoint(url="http://first", model="m")
SECOND = Endpoint(url="http://second", model="m")


class Body(msgspec.Struct):
    prompt: list[int]
    max_tokens: int
    logit_bias: dict[str, int]


class Completions:
    """Answers each request in full at once, after refusing the first `refusals` ones; keeps the prompts by host and the
    biases."""

    def __init__(self, refusals: int = 0) -> None:
        self.prompts: dict[str, list[list[int]]] = {}
        self.biases: list[dict[str, int]] = []
        self._refusals = refusals

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self._refusals:
            self._refusals -= 1
            return httpx.Response(429, headers={"retry-after": "0"})
        body = msgspec.json.decode(request.content, type=Body)
        self.prompts.setdefault(request.url.host, []).append(body.prompt)
        self.biases.append(body.logit_bias)
        usage = {"prompt_tokens": len(body.prompt), "completion_tokens": body.max_tokens}
        pieces: list[object] = [{"choices": [{"text": "x"}]}] * body.max_tokens
        pieces += [{"choices": [{"text": "", "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        content = b"".join(b"data: " + msgspec.json.encode(piece) + b"\n\n" for piece in pieces)
        return httpx.Response(200, stream=httpx.ByteStream(content))


def run(scenario: scenarios.Scenario, endpoint: Completions) -> dict[str, float]:
    async def main() -> dict[str, float]:
        async with open_client(httpx.MockTransport(endpoint)) as client:
            return await scenario(scenarios.Probe(client, FIRST, range(10, 1000), "seed"))

    return asyncio.run(main())


def test_streams_are_distinct_and_of_exact_length() -> None:
    endpoint = Completions()
    numbers = run(scenarios.streams(3), endpoint)
    prompts = endpoint.prompts["first"]
    assert [len(prompt) for prompt in prompts] == [128] * 3 and len({tuple(prompt) for prompt in prompts}) == 3
    assert numbers["tokens/s"] > 0


def test_shared_prefix_is_shared() -> None:
    endpoint = Completions()
    run(scenarios.shared_prefix, endpoint)
    prompts = endpoint.prompts["first"]
    assert len({tuple(prompt[:512]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 8


def test_second_turn_continues_the_first_and_its_answer() -> None:
    endpoint = Completions()
    numbers = run(scenarios.second_turn, endpoint)
    cold, warm = endpoint.prompts["first"]
    assert (len(cold), len(warm), warm[:2000]) == (2000, 2096, cold) and numbers["uncached tokens"] == 2096
    (word,) = set(warm[2000:2064])
    assert endpoint.biases == [{str(word): 100}, {}]


def test_an_edited_turn_brings_its_own_answer() -> None:
    endpoint = Completions()
    run(scenarios.edited_turn, endpoint)
    cold, warm = endpoint.prompts["first"]
    assert (len(cold), len(warm), warm[:2000]) == (2000, 2096, cold) and len(set(warm[2000:2064])) > 1


def test_conversations_take_turns() -> None:
    endpoint = Completions()
    run(scenarios.many_conversations, endpoint)
    prompts = endpoint.prompts["first"]
    assert [after[:1000] for after in prompts[8:]] == prompts[:8]


def test_flood_counts_refusals_and_returns() -> None:
    numbers = run(scenarios.flood, Completions(refusals=50))
    assert (numbers["refused"], numbers["admitted on return %"], numbers["Retry-After max s"]) == (50, 100, 0)


def test_an_answer_of_another_length_is_no_measurement() -> None:
    outcome = Outcome(status="ok", started_s=0, ended_s=1, text_s=(1,), input_tokens=3, output_tokens=4)
    assert scenarios.checked(outcome, 3, 4) is outcome
    with pytest.raises(scenarios.ScenarioError, match="instead of"):
        scenarios.checked(outcome, 3, 5)


def test_running_rate_counts_only_the_time_when_all_run() -> None:
    def outcome(first_s: int) -> Outcome:
        times_s = tuple(float(first_s + step) for step in range(20))
        return Outcome(status="ok", started_s=0, ended_s=99, text_s=times_s, output_tokens=40)

    assert scenarios.running_rate([outcome(0), outcome(5)]) == 4
    assert scenarios.running_rate([outcome(0), outcome(15)]) is None


def test_both_sides_get_the_same_prompts_in_alternating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Completions()
    monkeypatch.setattr("tests.bench.__main__.open_client", lambda: open_client(httpx.MockTransport(endpoint)))
    rows = asyncio.run(Pair("tiny", FIRST, SECOND, 2, seed=1).rows("streams-1", scenarios.streams(1)))
    assert endpoint.prompts["first"] == endpoint.prompts["second"]
    assert endpoint.prompts["first"][0] != endpoint.prompts["first"][1]
    assert rows[0].metric == "tokens/s" and rows[0].ratio


def test_gateway_configuration_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    setup = Setup(model=tmp_path / "a b.gguf", threads=2, cpus=frozenset({0}), parallel=4, context_tokens=4096)
    path.write_text(gateway_config(setup))
    (model,) = config.load(path, {}, {}).models
    assert (model.path, model.engine.threads, model.engine.cache_tokens) == (str(setup.model), 2, 4096)


def test_scenarios_are_chosen_by_name_or_its_first_words() -> None:
    names = [name for group in scenarios.groups() for name in group.scenarios]
    assert len(set(names)) == len(names)
    wanted = parse(["--scenario", "streams-1", "--scenario", "cancel"]).scenario
    assert [name for name in names if is_chosen(name, wanted)] == [
        "streams-1",
        "cancel-queued",
        "cancel-prefill",
        "cancel-decode",
    ]
    assert all(is_chosen(name, None) for name in names)
