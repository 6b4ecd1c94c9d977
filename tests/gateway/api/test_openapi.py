"""The OpenAPI document against the routes, a validator, and real answers; the page that shows it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest

from adapters.types import ModelCard
from gateway.api import mount
from gateway.api.docs import ASSETS
from gateway.api.http import Endpoint
from gateway.api.openapi import document
from gateway.auth.roles import PUBLIC
from gateway.catalog import Catalog, Target
from tests.fakes import Scripted, session
from tests.gateway.api.wire import run, serve
from tests.gateway.parts import parts

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def routes() -> tuple[Endpoint, ...]:
    adapter = Scripted(card=ModelCard(context_tokens=99, kinds=("chat",), vision=True))
    adapter.sessions["s1"] = session("s1", "talk")
    return mount.routes(parts(Catalog([Target("m", adapter)])))


def test_the_document_is_valid_and_complete() -> None:
    endpoints = routes()
    made: Any = document("1.2", endpoints)
    openapi_spec_validator.validate(made)
    assert (made["openapi"], made["info"]["version"]) == ("3.1.0", "1.2")
    told = {
        (method.upper(), path): operation for path, item in made["paths"].items() for method, operation in item.items()
    }
    assert set(told) == {(one.method, re.sub(":path|:text", "", one.path)) for one in endpoints}
    assert len({operation["operationId"] for operation in told.values()}) == len(told)
    assert told["GET", "/v1/models/{id}"]["operationId"] == "get_v1_models_id"
    for one in endpoints:
        operation = told[one.method, re.sub(":path|:text", "", one.path)]
        assert operation["summary"] == one.summary
        assert bool(operation["security"]) == (one.permission != PUBLIC)
        assert one.permission == PUBLIC or f"`{one.permission}`" in operation["description"]
        names = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert names == set(re.findall(r"\{(\w+)", one.path))


def test_the_front_page_has_every_route_as_the_document_has_it() -> None:
    async def main() -> None:
        endpoints = routes()
        async with serve(endpoints) as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
            named = (await client.get("/")).json()["endpoints"]
        made: Any = document("1", endpoints)
        told = {f"{method.upper()} {path}" for path, item in made["paths"].items() for method in item}
        assert set(named) == told - {"GET /"}

    run(main())


def test_fields_that_are_refused_are_not_offered() -> None:
    assert "api_base" not in str(document("1", routes()))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", BODY),
        ("POST", "/v1/chat/completions", BODY | {"logprobs": True}),
        ("POST", "/v1/completions", {"model": "m", "prompt": "x"}),
        ("POST", "/v1/responses", {"model": "m", "input": "x"}),
        ("POST", "/v1/responses/input_tokens", {"model": "m", "input": "x"}),
        ("POST", "/v1/messages", BODY | {"max_tokens": 9}),
        ("POST", "/v1/messages/count_tokens", BODY),
        ("POST", "/v1/embeddings", {"model": "m", "input": ["x"]}),
        ("POST", "/v1/embeddings", {"model": "m", "input": ["x"], "encoding_format": "base64"}),
        ("POST", "/v1/rerank", {"model": "m", "query": "q", "documents": ["a", "b"], "return_documents": True}),
        ("POST", "/v1/count_tokens", {"model": "m", "input": "x"}),
        ("POST", "/v1/tokenize", {"model": "m", "content": "x"}),
        ("POST", "/v1/detokenize", {"model": "m", "tokens": [104]}),
        ("POST", "/v1/apply-template", BODY),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/m", None),
        ("GET", "/v1/sessions", None),
        ("GET", "/v1/sessions/s1", None),
        ("POST", "/v1/sessions/s1/pin", None),
        ("POST", "/v1/sessions/s1/fork", {"new_id": "copy"}),
        ("DELETE", "/v1/sessions/s1", None),
        ("GET", "/v1/usage/me", None),
        ("GET", "/admin/v1/audit", None),
        ("GET", "/admin/v1/models", None),
        ("GET", "/admin/v1/pool", None),
        ("GET", "/admin/v1/settings", None),
        ("GET", "/admin/v1/wallets", None),
        ("GET", "/health", None),
        ("GET", "/health/live", None),
        ("POST", "/v1/chat/completions", {"model": "nobody"}),
        ("POST", "/v1/messages", {"model": "nobody"}),
        ("GET", "/nowhere", None),
    ],
)
def test_answers_are_as_they_are_described(method: str, path: str, body: Any) -> None:
    async def main() -> None:
        endpoints = routes()
        made: Any = document("1", endpoints)
        async with serve(endpoints) as served, httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
            answer = await client.request(method, path, json=body)
        told: Any = {"default": {"$ref": "#/components/responses/Error"}}
        if path != "/nowhere":
            told = _described(made, method, path)["responses"]
        described = told.get(str(answer.status_code), told["default"])
        if "$ref" in described:
            described = made["components"]["responses"][described["$ref"].rpartition("/")[2]]
        schema = described["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": made["components"]})

    run(main())


def _described(made: Any, method: str, path: str) -> Any:
    for pattern, item in made["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path) and method.lower() in item:
            return item[method.lower()]
    raise AssertionError(f"{method} {path} is not described")


def test_the_page_runs_only_what_this_server_sends() -> None:
    async def main() -> None:
        async with (
            serve(routes()) as served,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client,
        ):
            page = await client.get("/docs")
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            used = re.findall(r'(?:src|href)="([^"]+)"', page.text)
            assert set(used) == {f"docs/{name}" for name in (*ASSETS, "start.js")}
            assert not re.search(r"<script>|<style|style=|\son\w+=", page.text)
            for path in used:
                file = await client.get(f"/{path}")
                assert file.status_code == 200 and file.content
                assert file.headers["x-content-type-options"] == "nosniff"
            bundle = (await client.get("/docs/swagger-ui-bundle.js")).text
            start = (await client.get("/docs/start.js")).text
            assert "SwaggerUIBundle" in bundle and 'url: "openapi.json"' in start
            for path in ("/docs/swagger-ui.js", "/docs/..%2f__init__.py", "/docs/x"):
                assert (await client.get(path)).status_code == 404
            assert (await client.get("/openapi.json")).json()["openapi"] == "3.1.0"

    run(main())
