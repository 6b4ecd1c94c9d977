"""Every row of the table, against the facts that matter when a request is sent there."""

from __future__ import annotations

from typing import get_args
from urllib.parse import urlsplit

import pytest

from adapters.dialects.client import Style
from adapters.providers import CAPABILITIES, DIALECTS_OF, PROVIDERS, Provider, ProviderKind

# kind: base URL (None: has to be set), path of chat, authorisation
FACTS = {
    "openai": ("https://api.openai.com/v1", "/chat/completions", "bearer"),
    "azure": (None, "/openai/v1/chat/completions", "api_key"),
    "anthropic": ("https://api.anthropic.com", "/v1/messages", "x_api_key"),
    "bedrock": ("https://bedrock-runtime.{region}.amazonaws.com", "/model/{model}/converse-stream", "sigv4"),
    "gemini": (
        "https://generativelanguage.googleapis.com",
        "/v1beta/models/{model}:streamGenerateContent?alt=sse",
        "x_goog_api_key",
    ),
    "vertex": (
        "https://{region}-aiplatform.googleapis.com",
        "/v1/projects/{project}/locations/{region}/publishers/google/models/{model}:streamGenerateContent?alt=sse",
        "google",
    ),
    "vertex-anthropic": (
        "https://{region}-aiplatform.googleapis.com",
        "/v1/projects/{project}/locations/{region}/publishers/anthropic/models/{model}:streamRawPredict",
        "google",
    ),
    "openrouter": ("https://openrouter.ai/api/v1", "/chat/completions", "bearer"),
    "xai": ("https://api.x.ai/v1", "/chat/completions", "bearer"),
    "mistral": ("https://api.mistral.ai/v1", "/chat/completions", "bearer"),
    "deepseek": ("https://api.deepseek.com", "/chat/completions", "bearer"),
    "groq": ("https://api.groq.com/openai/v1", "/chat/completions", "bearer"),
    "together": ("https://api.together.xyz/v1", "/chat/completions", "bearer"),
    "fireworks": ("https://api.fireworks.ai/inference/v1", "/chat/completions", "bearer"),
    "cohere": ("https://api.cohere.ai", "/compatibility/v1/chat/completions", "bearer"),
    "ollama": ("http://127.0.0.1:11434/v1", "/chat/completions", "bearer"),
    "vllm": (None, "/chat/completions", "bearer"),
    "llama-server": ("http://127.0.0.1:8080/v1", "/chat/completions", "bearer"),
    "gateway": (None, "/chat/completions", "bearer"),
    "openai-compatible": (None, "/chat/completions", "bearer"),
}
# What a provider is known to answer with an error, and must therefore not be sent.
CANNOT = {
    "mistral": {"logprobs", "logit_bias", "grammars"},
    "groq": {"logprobs", "logit_bias", "n"},
    "deepseek": {"images", "n", "json_schema"},
    "anthropic": {"n", "logprobs", "logit_bias", "json_object"},
    "bedrock": {"n", "parallel_tools", "logit_bias", "logprobs", "image_urls", "json_object", "grammars"},
    "gemini": {"parallel_tools", "logit_bias", "grammars"},
    "vertex": {"parallel_tools", "logit_bias", "grammars"},
    "vertex-anthropic": {"n", "logprobs", "logit_bias", "json_object", "image_urls"},
    "cohere": {"n", "parallel_tools", "logit_bias"},
    "ollama": {"image_urls", "n", "logit_bias", "tool_choice"},
    "openai": {"grammars"},
    "azure": {"grammars"},
    "openai-compatible": {"grammars"},
}
STYLES = {
    "openai": Style(
        max_tokens="max_completion_tokens",
        developer_role=True,
        thoughtful=r"(o\d|gpt-([5-9]|\d\d)|codex)(?!.*chat)",
    ),
    "mistral": Style(usage_option=False, seed="random_seed", reasoning="", names=False, short_ids=True),
    "cohere": Style(usage_option=False, names=False),
    "groq": Style(max_tokens="max_completion_tokens", names=False),
    "deepseek": Style(thoughts="reasoning_content"),
}


@pytest.mark.parametrize("kind", PROVIDERS)
def test_where_each_provider_is_and_how_it_is_authorised(kind: ProviderKind) -> None:
    row = PROVIDERS[kind]
    dialect = row.dialect_of("chat")
    assert dialect is not None
    assert (row.base_url, row.paths[dialect], row.auth) == FACTS[kind]


@pytest.mark.parametrize("kind", CANNOT)
def test_what_a_provider_refuses_is_not_among_its_capabilities(kind: ProviderKind) -> None:
    assert not PROVIDERS[kind].capabilities & CANNOT[kind]


@pytest.mark.parametrize("kind", STYLES)
def test_departures_from_the_dialect(kind: ProviderKind) -> None:
    assert PROVIDERS[kind].style == STYLES[kind]


@pytest.mark.parametrize("row", PROVIDERS.values(), ids=PROVIDERS)
def test_every_row_is_sound(row: Provider) -> None:
    assert row.capabilities <= set(CAPABILITIES)
    assert "chat" in row.kinds
    for path in (*row.paths.values(), *(row.counting or ())[1:]):
        assert path.startswith("/")
        assert path.replace("{model}", "").replace("{region}", "").replace("{project}", "").isascii()
    for name in ("region", "project"):
        used = any(f"{{{name}}}" in text for text in (row.base_url or "", *row.paths.values()))
        assert used == (name in row.requires)
    if row.base_url is not None:
        parts = urlsplit(row.base_url)
        assert parts.scheme == "https" or parts.hostname == "127.0.0.1"
        assert not row.base_url.endswith("/")


def test_the_table_is_complete() -> None:
    assert set(get_args(ProviderKind)) == set(PROVIDERS) == set(FACTS)
    assert {kind for row in PROVIDERS.values() for kind in row.kinds} == set(DIALECTS_OF)
