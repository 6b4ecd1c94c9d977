"""What requests to a well-known model cost, down to each kind of token, and for whom it is cheaper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.e2e.server import ADMIN_KEY, Server
from tests.e2e.test_providers import Providers

CONFIG = """
models: []
providers: [{{name: claude, kind: anthropic, base_url: "http://127.0.0.1:{port}", api_key: sk-of-the-gateway}}]
routes: [{{name: haiku, groups: [[{{provider: claude, model: claude-haiku-4-5-20251001}}]]}}]
"""
# 25 tokens of input, 100 from the cache, 30 kept for five minutes and 10 for an hour, and the answer, in nano-USD.
INPUT, OUTPUT = 25 * 1000 + 100 * 100 + 30 * 1250 + 10 * 2000, 5000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    providers = Providers({"/v1/messages": ("text/event-stream", "anthropic_messages/text.sse")})
    try:
        config = CONFIG.format(port=providers.port)
        with Server(tmp_path_factory.mktemp("prices"), config=config, ready=False) as running:
            yield running
    finally:
        providers.stop()


def cost_nano(server: Server, key: str) -> tuple[int, int, dict[str, tuple[int, str]], str]:
    """What a request cost by its header, its tokens of output, and its items."""
    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as sdk:
        cached: Any = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        messages: Any = [{"role": "user", "content": [cached]}]
        raw = sdk.messages.with_raw_response.create(model="haiku", max_tokens=100, messages=messages, stream=True)
        identity = raw.headers["request-id"]
        list(raw.parse())
    with server.client() as client:
        (entry,) = client.get(f"/v1/requests/{identity}").json()["data"]
    items = {one["item"]: (one["tokens"], one["usd_per_million"]) for one in entry["items"]}
    nano = round(float(entry["cost_usd"]) * 1e9)
    return nano, entry["usage"]["completion_tokens"], items, entry["price_table"]


def test_each_kind_of_token_is_charged_at_the_known_price(server: Server) -> None:
    nano, output, items, table = cost_nano(server, ADMIN_KEY)
    assert nano == INPUT + output * OUTPUT
    assert items == {
        "input": (25, "1.0"),
        "cached_input": (100, "0.1"),
        "cache_write": (30, "1.25"),
        "cache_write_1h": (10, "2.0"),
        "output": (output, "5.0"),
    }
    assert table.startswith("known-")
    with server.client() as client:
        (price,) = client.get("/admin/v1/prices").json()["data"]
    assert (price["source"], price["price"]["cache_write_1h"]) == ("table", "2.0")
    assert price["url"].startswith("https://") and price["checked"]


def test_a_team_pays_its_share_and_an_administrators_price_comes_first(server: Server) -> None:
    with server.client() as client:
        org = client.post("/admin/v1/orgs", json={"name": "Acme"}).json()["id"]
        team = client.post("/admin/v1/teams", json={"org_id": org, "name": "lab", "price_factor": "0.5"}).json()
        assert team["price_factor"] == "0.5"
        budget = {"budgets": [{"usd": "1"}]}
        made = client.post("/admin/v1/keys", json={"name": "k", "team_id": team["id"], "limits": budget})
        key = made.json()["key"]
        nano, output, items, _ = cost_nano(server, key)
        assert nano * 2 == INPUT + output * OUTPUT and items["cache_write"] == (30, "0.625")

        price = {"input": "10", "output": "0"}
        assert client.put("/admin/v1/prices/claude%2Fclaude-haiku-4-5-20251001", json=price).status_code == 200
        nano, _, items, table = cost_nano(server, key)
        assert nano == 165 * 5000 and not table.startswith("known-")
        assert client.patch(f"/admin/v1/teams/{team['id']}", json={"price_factor": None}).status_code == 200
        assert cost_nano(server, key)[0] == 165 * 10_000
        assert client.delete("/admin/v1/prices/claude%2Fclaude-haiku-4-5-20251001").status_code == 204
