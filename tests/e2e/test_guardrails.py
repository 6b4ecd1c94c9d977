"""Guardrails through the real server, with the SDKs as clients."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.server import ADMIN_KEY, ROOT, Server, free_port
from tests.e2e.upstreams import Fleet, Replica
from tests.guards import CARD, SECRET, guards

SCRIPT = f"""
answers:
  - text: All is well.
  - {{match: card please, chunks: ["Sure: ", "4111 11", "11 1111 ", "1111", ". Bye"]}}
  - {{match: call, reasoning: "it is {CARD}", tool_calls: [{{name: mail, arguments: '{{"to":"bob@example.com"}}'}}]}}
  - {{match: aurora, text: "The project aurora is secret"}}
"""
CONFIG = """
data_dir: unused
models:
  - {{name: canned, script: canned.yaml, price: {{input: "1", output: "1000"}}}}
  - {{name: demo, path: {demo}}}
providers: [{{name: far, kind: openai-compatible, base_url: "http://127.0.0.2:{port}/v1"}}]
routes: [{{name: far, groups: [[{{provider: far, model: theirs, price: {{input: "1", output: "1"}}}}]]}}]
guardrails:
  - {{name: pii, kind: pii, action: mask, models: [canned, far]}}
  - {{name: codes, kind: regex, action: block, always: true, patterns: {{project: '(?i)project aurora'}}}}
  - {{name: seen, kind: regex, action: log, always: true, patterns: {{well: well}}}}
  - {{name: hook, kind: webhook, action: block, url: "{url}/hook", secret: "{secret}", private_addresses: true}}
"""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(Replica("127.0.0.2", "Ask bob@example.com"), port=free_port()) as running:
        yield running


@pytest.fixture(scope="module")
def server(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("guardrails")
    (folder / "canned.yaml").write_text(SCRIPT)
    demo = ROOT / "adapters/llama_cpp/demo/demo.gguf"
    with guards() as asked:
        config = CONFIG.format(demo=demo, url=asked.url, secret=SECRET, port=fleet.port).replace(
            "data_dir: unused\n", ""
        )
        with Server(folder, config=config) as server:
            yield server


Sdk = Callable[..., openai.OpenAI]


@pytest.fixture
def sdk(server: Server) -> Iterator[Sdk]:
    """Clients that are closed in the end."""
    with ExitStack() as stack:

        def client(key: str = ADMIN_KEY) -> openai.OpenAI:
            return stack.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0))

        yield client


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=ADMIN_KEY, max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, text: str, model: str = "canned") -> tuple[str, str | None]:
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], stream=True)
    said, reason = "", None
    for chunk in stream:
        for choice in chunk.choices:
            said += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return said, reason


def recorded(server: Server, request_id: str) -> dict[str, Any]:
    """The entry of a request that failed, which is written soon after its answer."""
    deadline = time.monotonic() + 30
    with server.client() as client:
        while (answer := client.get(f"/v1/requests/{request_id}")).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.05)
    (entry,) = answer.json()["data"]
    return dict(entry)


def test_answers_are_masked_and_blocked(sdk: Sdk, claude: anthropic.Anthropic) -> None:
    client = sdk()
    assert streamed(client, "card please") == ("Sure: [CARD]. Bye", "stop")
    whole = client.chat.completions.create(model="canned", messages=[{"role": "user", "content": "call"}])
    assert whole.choices[0].message.tool_calls is not None
    (call,) = whole.choices[0].message.tool_calls
    assert call.type == "function"
    assert call.function.arguments == '{"to":"[EMAIL]"}'
    assert CARD not in whole.model_dump_json()
    assert streamed(client, "aurora") == ("The", "content_filter")
    blocked = client.chat.completions.create(model="canned", messages=[{"role": "user", "content": "aurora"}])
    assert blocked.choices[0].finish_reason == "content_filter"
    assert blocked.usage is not None
    assert blocked.usage.completion_tokens == 1
    response = client.responses.create(model="canned", input="aurora", store=False)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"
    message = claude.messages.create(model="canned", max_tokens=50, messages=[{"role": "user", "content": "aurora"}])
    assert message.stop_reason == "refusal"


def test_a_blocked_request_costs_nothing(server: Server, sdk: Sdk, claude: anthropic.Anthropic) -> None:
    client = sdk()
    for model in ("canned", "demo"):
        with pytest.raises(openai.BadRequestError) as caught:
            streamed(client, "Tell me of Project Aurora", model)
        assert caught.value.code == "content_blocked"
        entry = recorded(server, caught.value.response.headers["x-request-id"])
        assert (entry["status"], entry["outcome"], entry["cost_usd"]) == ("voided", "content_blocked", "0.0")
    with pytest.raises(anthropic.BadRequestError) as refused:
        claude.messages.create(model="canned", max_tokens=5, messages=[{"role": "user", "content": "project aurora"}])
    assert "content_blocked" in str(refused.value.body)
    with pytest.raises(openai.BadRequestError):
        sdk().completions.create(model="demo", prompt="project aurora", max_tokens=3)
    said, reason = streamed(client, "Say hello.", "demo")
    assert said
    assert reason in ("stop", "length")


def test_in_the_terminal(server: Server) -> None:
    def gateway(*arguments: str) -> str:
        command = [sys.executable, "-m", "gateway", "guardrails", *arguments, "--url", server.url, "--key", ADMIN_KEY]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    said = gateway("test", "pii", f"my card {CARD}")
    assert said == "masked\n  card: characters 8 to 27\nmy card [CARD]\n"
    assert gateway("test", "codes", "Project Aurora") == "blocked\n  project: characters 0 to 14\n"
    name, kind, action, *_ = gateway("list").splitlines()[1].split()
    assert (name, kind, action) == ("pii", "pii", "mask")


def test_guardrails_of_a_team_and_what_they_did(server: Server, sdk: Sdk) -> None:
    with server.client() as admin:
        org = admin.post("/admin/v1/orgs", json={"name": "acme"}).json()
        team = admin.post("/admin/v1/teams", json={"org_id": org["id"], "name": "t", "guardrails": ["hook"]}).json()
        made = admin.post("/admin/v1/keys", json={"name": "k", "team_id": team["id"], "org_id": org["id"]}).json()
        client = sdk(made["key"])
        with pytest.raises(openai.BadRequestError) as caught:
            streamed(client, "a badword")
        assert "badword" not in str(caught.value.body)
        assert streamed(client, "a good word") == ("All is well.", "stop")
        assert streamed(sdk(), "a badword") == ("All is well.", "stop")
        changed = admin.patch(f"/admin/v1/teams/{team['id']}", json={"guardrails": []}).json()
        assert changed["guardrails"] == []
        assert streamed(client, "a badword") == ("All is well.", "stop")

        did = {one["id"]: one for one in admin.get("/admin/v1/guardrails").json()["data"]}
        assert did["hook"]["blocked"] == 1
        assert did["seen"]["logged"] >= 3
        tried = admin.post("/admin/v1/guardrails/pii/test", json={"text": "write to bob@example.com"}).json()
        assert (tried["outcome"], tried["text"]) == ("masked", "write to [EMAIL]")
        assert tried["findings"] == [{"kind": "email", "start": 9, "end": 24}]
        audit = admin.get("/admin/v1/audit", params={"action": "guardrail.block"}).text
        assert "badword:1" in audit
        assert "a badword" not in audit
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}).text
    assert 'gateway_guardrail_checks_total{guardrail="hook",stage="before",outcome="blocked"} 1' in text
    assert "bob@example.com" not in server.log.read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_knows_reaches_a_provider_behind_guardrails(server: Server, fleet: Fleet, stream: bool) -> None:
    message = {"role": "user", "content": "I am ann@example.com", "vendor": {"new": [1.5, "also ann@example.com"]}}
    with server.client() as client:
        asked = {"model": "far", "messages": [message], "of_tomorrow": {"deep": [{}]}, "stream": stream}
        answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200 and "[EMAIL]" in answer.text and "bob@example.com" not in answer.text
    (replica,) = fleet.replicas
    sent = replica.bodies[-1]
    assert sent["messages"] == [{"role": "user", "content": "I am [EMAIL]", "vendor": {"new": [1.5, "also [EMAIL]"]}}]
    assert sent["of_tomorrow"] == {"deep": [{}]} and sent["model"] == "theirs"
