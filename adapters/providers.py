"""Kinds of providers as data: the dialects each speaks and where, how it is authorised, what it can do, how it departs.

The facts are those of the providers' own documentation as of November 2026. What differs between the models of one
provider is set per model (`capabilities` of a target); a row says what its best models can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from adapters.dialects.client import Style
from adapters.dialects.counting import CountDialect
from adapters.types import DialectName, Kind

ProviderKind = Literal[
    "openai",
    "azure",
    "anthropic",
    "bedrock",
    "gemini",
    "vertex",
    "vertex-anthropic",
    "openrouter",
    "xai",
    "mistral",
    "deepseek",
    "groq",
    "together",
    "fireworks",
    "cohere",
    "ollama",
    "vllm",
    "llama-server",
    "gateway",
    "openai-compatible",
]
Auth = Literal["bearer", "api_key", "x_api_key", "x_goog_api_key", "sigv4", "google"]
Capability = Literal[
    "tools",
    "tool_choice",
    "parallel_tools",
    "images",
    "image_urls",
    "audio",
    "documents",
    "json_object",
    "json_schema",
    "grammars",
    "logprobs",
    "n",
    "logit_bias",
    "reasoning",
    "suffix",
    "echo",
    "token_ids",
    "dimensions",
]
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

# Which dialects serve a kind of request, the one that says most first.
DIALECTS_OF: Mapping[Kind, tuple[DialectName, ...]] = {
    "chat": ("openai_chat", "anthropic_messages", "gemini", "bedrock_converse", "openai_responses"),
    "completion": ("openai_completions",),
    "embedding": (
        "openai_embeddings",
        "gemini_embeddings",
        "vertex_embeddings",
        "cohere_embeddings",
        "bedrock_embeddings",
    ),
    "rerank": ("rerank",),
}


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of provider.

    `paths` lead from the base URL to where each dialect is spoken; `{model}` in one is the model, percent-encoded.
    `base_url` None has to be configured; `{region}` and `{project}` in it are settings too. `headers` go with every
    request. `models_path` lists its models, which is how it is asked whether a key is good; None: it has no such list.
    `lists_served` says that requests name models as that list does.
    `counting` is how and where it counts the tokens of prompts, `health_path` where its host says whether it is well.
    """

    paths: Mapping[DialectName, str]
    auth: Auth = "bearer"
    base_url: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    capabilities: frozenset[Capability] = frozenset()
    style: Style = Style()
    key_needed: bool = True
    models_path: str | None = "/models"
    lists_served: bool = True
    health_path: str | None = None
    counting: tuple[CountDialect, str] | None = None
    requires: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of requests it takes."""
        return tuple(kind for kind in DIALECTS_OF if self.dialect_of(kind) is not None)

    def dialect_of(self, kind: Kind) -> DialectName | None:
        """The dialect that a request of a kind is translated to."""
        return next((dialect for dialect in DIALECTS_OF[kind] if dialect in self.paths), None)


_OPENAI_PATHS: Mapping[DialectName, str] = {
    "openai_chat": "/chat/completions",
    "openai_completions": "/completions",
    "openai_embeddings": "/embeddings",
}
_RESPONSES: Mapping[DialectName, str] = {"openai_responses": "/responses"}
_COMPACTION: Mapping[DialectName, str] = {"openai_compaction": "/responses/compact"}
_AZURES: Mapping[DialectName, str] = {**_OPENAI_PATHS, **_RESPONSES, **_COMPACTION}
_RERANK: Mapping[DialectName, str] = {"rerank": "/rerank"}
_MESSAGES: Mapping[DialectName, str] = {"anthropic_messages": "/messages"}
_CHAT_ONLY: Mapping[DialectName, str] = {"openai_chat": "/chat/completions"}


def _can(*names: Capability) -> frozenset[Capability]:
    return frozenset(names)


# Some have no words to forbid several calls at once.
_CALLS = _can("tools", "tool_choice")
_TOOLS = _CALLS | _can("parallel_tools")
_JSON = _can("json_object", "json_schema")
_SEEING = _can("images", "image_urls")
_COMMON = _TOOLS | _JSON | _SEEING | _can("reasoning")
_OPENAI = _COMMON | _can(
    "audio", "documents", "logprobs", "n", "logit_bias", "suffix", "echo", "token_ids", "dimensions"
)
# Engines that one runs oneself: they take whatever OpenAI takes, and constraints of their own. They would also fetch
# images from wherever a client says, inside one's own network; so that is left to us.
_SELF_HOSTED = (_OPENAI - _can("documents", "image_urls")) | _can("grammars")

# OpenAI's models that think; those for chats among them do not.
_THOUGHTFUL = r"(o\d|gpt-([5-9]|\d\d)|codex)(?!.*chat)"
_CLAUDE = _TOOLS | _SEEING | _can("documents", "reasoning", "json_schema")
_GOOGLE = _CALLS | _JSON | _SEEING | _can("documents", "n", "logprobs", "reasoning")

_GOOGLES = "/v1/projects/{project}/locations/{region}/publishers/google/models"
_ANTHROPICS = "/v1/projects/{project}/locations/{region}/publishers/anthropic/models"

PROVIDERS: Mapping[ProviderKind, Provider] = {
    "openai": Provider(
        base_url="https://api.openai.com/v1",
        paths={**_OPENAI_PATHS, **_RESPONSES, **_COMPACTION},
        counting=("openai_responses", "/responses/input_tokens"),
        capabilities=_OPENAI,
        style=Style(max_tokens="max_completion_tokens", developer_role=True, thoughtful=_THOUGHTFUL),
    ),
    # The v1 API, where the model is the name of a deployment; with `api_version` the paths before it.
    "azure": Provider(
        paths={dialect: f"/openai/v1{path}" for dialect, path in _AZURES.items()},
        models_path="/openai/v1/models",
        lists_served=False,
        auth="api_key",
        capabilities=_OPENAI,
        style=Style(max_tokens="max_completion_tokens", developer_role=True, thoughtful=_THOUGHTFUL),
    ),
    "anthropic": Provider(
        base_url="https://api.anthropic.com",
        paths={"anthropic_messages": "/v1/messages"},
        counting=("anthropic_messages", "/v1/messages/count_tokens"),
        models_path="/v1/models",
        auth="x_api_key",
        headers=(("anthropic-version", "2023-06-01"),),
        capabilities=_CLAUDE,
    ),
    "bedrock": Provider(
        base_url="https://bedrock-runtime.{region}.amazonaws.com",
        paths={"bedrock_converse": "/model/{model}/converse-stream", "bedrock_embeddings": "/model/{model}/invoke"},
        counting=("bedrock_converse", "/model/{model}/count-tokens"),
        auth="sigv4",
        capabilities=_CALLS | _can("images", "documents", "reasoning", "json_schema", "dimensions"),
        models_path=None,
        requires=("region",),
    ),
    "gemini": Provider(
        base_url="https://generativelanguage.googleapis.com",
        paths={
            "gemini": "/v1beta/models/{model}:streamGenerateContent?alt=sse",
            "gemini_embeddings": "/v1beta/models/{model}:batchEmbedContents",
        },
        counting=("gemini", "/v1beta/models/{model}:countTokens"),
        models_path="/v1beta/models",
        auth="x_goog_api_key",
        capabilities=_GOOGLE | _can("dimensions"),
    ),
    "vertex": Provider(
        base_url="https://{region}-aiplatform.googleapis.com",
        paths={
            "gemini": _GOOGLES + "/{model}:streamGenerateContent?alt=sse",
            "vertex_embeddings": _GOOGLES + "/{model}:predict",
        },
        counting=("vertex", _GOOGLES + "/{model}:countTokens"),
        auth="google",
        capabilities=_GOOGLE | _can("dimensions"),
        models_path=None,
        requires=("region", "project"),
    ),
    # Claude on Vertex.
    "vertex-anthropic": Provider(
        base_url="https://{region}-aiplatform.googleapis.com",
        paths={"anthropic_messages": _ANTHROPICS + "/{model}:streamRawPredict"},
        counting=("anthropic_messages", _ANTHROPICS + "/count-tokens:rawPredict"),
        auth="google",
        capabilities=_CLAUDE - _can("image_urls"),
        style=Style(anthropic_version="vertex-2023-10-16"),
        models_path=None,
        requires=("region", "project"),
    ),
    "openrouter": Provider(
        base_url="https://openrouter.ai/api/v1",
        paths={**_OPENAI_PATHS, **_RESPONSES},
        capabilities=_COMMON | _can("audio", "documents", "logprobs", "logit_bias", "dimensions"),
        style=Style(reasoning="reasoning", thoughts="reasoning_details", cache_control=True, extra_sampling=True),
    ),
    "xai": Provider(
        base_url="https://api.x.ai/v1",
        paths={**_CHAT_ONLY, **_RESPONSES},
        capabilities=_COMMON | _can("logprobs", "n"),
        style=Style(max_tokens="max_completion_tokens"),
    ),
    # Refuses every field it does not know.
    "mistral": Provider(
        base_url="https://api.mistral.ai/v1",
        paths={"openai_chat": "/chat/completions", "openai_embeddings": "/embeddings"},
        capabilities=_COMMON | _can("n"),
        style=Style(usage_option=False, seed="random_seed", reasoning="", names=False, short_ids=True),
    ),
    # Wants the thoughts back that came before calls of tools.
    "deepseek": Provider(
        base_url="https://api.deepseek.com",
        paths={"openai_chat": "/chat/completions", "openai_completions": "/beta/completions"},
        capabilities=_TOOLS | _can("json_object", "logprobs", "reasoning", "suffix"),
        style=Style(thoughts="reasoning_content"),
    ),
    # Answers 400 where it is sent logprobs, logit_bias or names of speakers.
    "groq": Provider(
        base_url="https://api.groq.com/openai/v1",
        paths={**_CHAT_ONLY, **_RESPONSES},
        capabilities=_COMMON,
        style=Style(max_tokens="max_completion_tokens", names=False),
    ),
    "together": Provider(
        base_url="https://api.together.xyz/v1",
        paths={**_OPENAI_PATHS, **_RERANK},
        capabilities=_COMMON | _can("n", "logit_bias", "echo"),
        style=Style(extra_sampling=True),
    ),
    "fireworks": Provider(
        base_url="https://api.fireworks.ai/inference/v1",
        paths={**_OPENAI_PATHS, **_RESPONSES, **_RERANK},
        capabilities=_COMMON | _can("n", "logprobs", "logit_bias", "grammars", "echo", "token_ids", "dimensions"),
        style=Style(extra_sampling=True, grammars="response_format", thoughts="reasoning_content"),
    ),
    # Refuses stream_options; reports the usage in the last chunk all the same.
    "cohere": Provider(
        base_url="https://api.cohere.ai",
        paths={
            "openai_chat": "/compatibility/v1/chat/completions",
            "cohere_embeddings": "/v2/embed",
            "rerank": "/v2/rerank",
        },
        models_path="/v1/models",
        capabilities=_CALLS | _JSON | _can("reasoning", "images", "dimensions"),
        style=Style(usage_option=False, names=False),
    ),
    "ollama": Provider(
        base_url="http://127.0.0.1:11434/v1",
        paths={**_OPENAI_PATHS, **_RESPONSES, **_MESSAGES},
        capabilities=_JSON | _can("tools", "images", "logprobs", "reasoning", "suffix", "dimensions"),
        style=Style(thoughts="reasoning"),
        key_needed=False,
    ),
    "vllm": Provider(
        paths={**_OPENAI_PATHS, **_RESPONSES, **_MESSAGES, **_RERANK},
        counting=("anthropic_messages", "/messages/count_tokens"),
        capabilities=_SELF_HOSTED - _can("suffix"),
        health_path="/health",
        style=Style(
            extra_sampling=True, grammars="structured_outputs", template_arguments=True, thoughts="reasoning_content"
        ),
        key_needed=False,
    ),
    "llama-server": Provider(
        base_url="http://127.0.0.1:8080/v1",
        paths={**_OPENAI_PATHS, **_RESPONSES, **_MESSAGES, **_RERANK},
        counting=("anthropic_messages", "/messages/count_tokens"),
        capabilities=_SELF_HOSTED - _can("echo", "suffix", "dimensions"),
        health_path="/health",
        style=Style(extra_sampling=True, grammars="grammar", template_arguments=True, thoughts="reasoning_content"),
        key_needed=False,
    ),
    # Another gateway of this kind.
    "gateway": Provider(
        paths={**_OPENAI_PATHS, **_RESPONSES, **_COMPACTION, **_MESSAGES, **_RERANK},
        counting=("anthropic_messages", "/messages/count_tokens"),
        capabilities=_SELF_HOSTED,
        health_path="/health/ready",
        style=Style(
            extra_sampling=True, grammars="structured_outputs", template_arguments=True, thoughts="reasoning_content"
        ),
    ),
    # Whatever else speaks OpenAI's dialect: nothing is sent that OpenAI does not know.
    "openai-compatible": Provider(
        paths={**_OPENAI_PATHS, **_RERANK},
        capabilities=_OPENAI - _can("documents", "audio", "image_urls", "suffix", "echo", "token_ids"),
        key_needed=False,
    ),
}
