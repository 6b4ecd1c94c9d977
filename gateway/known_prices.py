"""Prices of well-known models, in US dollars per million tokens.

Facts of the providers' public price lists: each row says where and when they were read. They change without notice, so
a price that is configured, or set by an administrator, always comes first. What is not known for sure is not here, and
neither are names such as `...-latest`, behind which a model changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec

from adapters.providers import ProviderKind
from gateway.config_limits import LongPromptPrice, PriceConfig

# Another one whenever a row changes; entries of the ledger name it.
VERSION = "known-2026-11-21"

OPENAI = "https://openai.com/api/pricing/"
ANTHROPIC = "https://www.anthropic.com/pricing"
GEMINI = "https://ai.google.dev/gemini-api/docs/pricing"
MISTRAL = "https://mistral.ai/pricing"
DEEPSEEK = "https://api-docs.deepseek.com/quick_start/pricing"
XAI = "https://docs.x.ai/docs/models"
GROQ = "https://groq.com/pricing"
TOGETHER = "https://www.together.ai/pricing"
COHERE = "https://cohere.com/pricing"
BEDROCK = "https://aws.amazon.com/bedrock/pricing/"

# Models are also named with the day they are from; the row of the name alone is meant then.
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|20\d{6})\Z")


class Known(msgspec.Struct, frozen=True):
    """A row. `checked` is when the price was last known to be on the page at `source`."""

    kind: ProviderKind
    model: str
    checked: str
    source: str
    price: PriceConfig


def known_price(kind: ProviderKind | None, model: str) -> Known | None:
    """The row of a provider's model, if there is one."""
    if kind is None:
        return None
    return TABLE.get((kind, model)) or TABLE.get((kind, _DATED.sub("", model)))


def _row(
    kind: ProviderKind, source: str, checked: str, models: str, input: str, output: str = "0", **more: str
) -> Iterator[Known]:
    """The rows of models that cost the same. `more` are further prices; those of prompts of more than `above` tokens
    begin with `long_`."""
    above = more.pop("above", None)
    long = {name.removeprefix("long_"): usd for name, usd in more.items() if name.startswith("long_")}
    rest = {name: usd for name, usd in more.items() if not name.startswith("long_")}
    beyond = None if above is None else LongPromptPrice(above_tokens=int(above), **long)
    price = PriceConfig(input=input, output=output, long_prompts=beyond, **rest)
    for model in models.split():
        yield Known(kind, model, checked, source, price)


def _openai() -> Iterator[Known]:
    def row(checked: str, models: str, *prices: str, **more: str) -> Iterator[Known]:
        return _row("openai", OPENAI, checked, models, *prices, **more)

    yield from row("2025-07-04", "gpt-4o", "2.50", "10", cached_input="1.25")
    yield from row("2025-07-04", "gpt-4o-2024-05-13", "5", "15")
    yield from row("2025-07-04", "gpt-4o-mini", "0.15", "0.60", cached_input="0.075")
    yield from row("2025-07-04", "gpt-4.1", "2", "8", cached_input="0.50")
    yield from row("2025-07-04", "gpt-4.1-mini", "0.40", "1.60", cached_input="0.10")
    yield from row("2025-07-04", "gpt-4.1-nano", "0.10", "0.40", cached_input="0.025")
    yield from row("2025-07-04", "gpt-4-turbo", "10", "30")
    yield from row("2025-07-04", "gpt-4 gpt-4-0613", "30", "60")
    yield from row("2025-07-04", "gpt-3.5-turbo gpt-3.5-turbo-0125", "0.50", "1.50")
    yield from row("2025-07-04", "o1", "15", "60", cached_input="7.50")
    yield from row("2025-07-04", "o1-pro", "150", "600")
    yield from row("2025-07-04", "o3", "2", "8", cached_input="0.50")
    yield from row("2025-07-04", "o3-pro", "20", "80")
    yield from row("2025-07-04", "o3-mini", "1.10", "4.40", cached_input="0.55")
    yield from row("2025-07-04", "o4-mini", "1.10", "4.40", cached_input="0.275")
    yield from row("2025-11-13", "gpt-5 gpt-5-codex", "1.25", "10", cached_input="0.125")
    yield from row("2025-11-13", "gpt-5-mini", "0.25", "2", cached_input="0.025")
    yield from row("2025-11-13", "gpt-5-nano", "0.05", "0.40", cached_input="0.005")
    yield from row("2025-11-13", "gpt-5-pro", "15", "120")
    yield from row("2025-11-13", "gpt-5.1 gpt-5.1-codex", "1.25", "10", cached_input="0.125")
    yield from row("2025-11-13", "gpt-5.1-codex-mini", "0.25", "2", cached_input="0.025")
    yield from row("2025-12-11", "gpt-5.2", "1.75", "14", cached_input="0.175")
    yield from row("2025-12-11", "gpt-5.2-pro", "21", "168")
    audio = {"audio_input": "40", "audio_output": "80"}
    yield from row("2025-07-04", "gpt-4o-audio-preview", "2.50", "10", **audio)
    audio = {"audio_input": "100", "audio_output": "200"}
    yield from row("2025-07-04", "gpt-4o-audio-preview-2024-10-01", "2.50", "10", **audio)
    audio = {"audio_input": "10", "audio_output": "20"}
    yield from row("2025-07-04", "gpt-4o-mini-audio-preview", "0.15", "0.60", **audio)
    yield from row("2025-07-04", "text-embedding-3-small", "0.02")
    yield from row("2025-07-04", "text-embedding-3-large", "0.13")
    yield from row("2025-07-04", "text-embedding-ada-002", "0.10")


def _anthropic() -> Iterator[Known]:
    def row(checked: str, models: str, *prices: str, **more: str) -> Iterator[Known]:
        read, write, hour = prices[2:]
        kept = {"cached_input": read, "cache_write": write, "cache_write_1h": hour} | more
        return _row("anthropic", ANTHROPIC, checked, models, *prices[:2], **kept)

    opus_4 = "claude-opus-4 claude-opus-4-0 claude-opus-4-1"
    yield from row("2025-08-05", opus_4, "15", "75", "1.50", "18.75", "30")
    yield from row("2025-11-24", "claude-opus-4-5", "5", "25", "0.50", "6.25", "10")
    yield from row("2026-05-28", "claude-opus-4-7 claude-opus-4-8", "5", "25", "0.50", "6.25", "10")
    yield from row(
        "2025-09-29",
        "claude-sonnet-4 claude-sonnet-4-0 claude-sonnet-4-5",
        *("3", "15", "0.30", "3.75", "6"),
        above="200000",
        long_input="6",
        long_output="22.50",
        long_cached_input="0.60",
        long_cache_write="7.50",
        long_cache_write_1h="12",
    )
    yield from row("2025-06-23", "claude-3-7-sonnet claude-3-5-sonnet", "3", "15", "0.30", "3.75", "6")
    yield from row("2025-10-15", "claude-haiku-4-5", "1", "5", "0.10", "1.25", "2")
    yield from row("2025-06-23", "claude-3-5-haiku", "0.80", "4", "0.08", "1", "1.60")
    yield from row("2025-06-23", "claude-3-haiku", "0.25", "1.25", "0.03", "0.30", "0.50")
    yield from row("2025-06-23", "claude-3-opus", "15", "75", "1.50", "18.75", "30")


def _gemini() -> Iterator[Known]:
    def row(checked: str, models: str, *prices: str, **more: str) -> Iterator[Known]:
        return _row("gemini", GEMINI, checked, models, *prices, **more)

    pro = {"above": "200000", "long_input": "2.50", "long_output": "15", "long_cached_input": "0.25"}
    yield from row("2025-11-18", "gemini-2.5-pro", "1.25", "10", cached_input="0.125", **pro)
    yield from row("2025-11-18", "gemini-2.5-flash", "0.30", "2.50", cached_input="0.03", audio_input="1")
    yield from row("2025-11-18", "gemini-2.5-flash-lite", "0.10", "0.40", cached_input="0.01", audio_input="0.30")
    flash_2 = "gemini-2.0-flash gemini-2.0-flash-001"
    yield from row("2025-11-18", flash_2, "0.10", "0.40", cached_input="0.025", audio_input="0.70")
    yield from row("2025-11-18", "gemini-2.0-flash-lite gemini-2.0-flash-lite-001", "0.075", "0.30")
    pro = {"above": "200000", "long_input": "4", "long_output": "18", "long_cached_input": "0.40"}
    yield from row("2025-11-18", "gemini-3-pro-preview", "2", "12", cached_input="0.20", **pro)
    yield from row("2025-11-18", "gemini-embedding-001", "0.15")


def _mistral() -> Iterator[Known]:
    def row(checked: str, models: str, *prices: str, **more: str) -> Iterator[Known]:
        return _row("mistral", MISTRAL, checked, models, *prices, **more)

    yield from row("2025-07-04", "mistral-large-2411 mistral-large-2407 pixtral-large-2411", "2", "6")
    yield from row("2026-06-09", "mistral-large-2512", "0.50", "1.50", cached_input="0.05")
    yield from row("2026-08-24", "mistral-medium-2505 mistral-medium-2508", "0.40", "2", cached_input="0.04")
    yield from row("2025-07-04", "mistral-small-2506 mistral-small-2503", "0.10", "0.30")
    yield from row("2026-06-09", "mistral-small-2603", "0.15", "0.60", cached_input="0.015")
    yield from row("2026-06-09", "codestral-2508", "0.30", "0.90", cached_input="0.03")
    yield from row("2025-07-04", "codestral-2501", "0.30", "0.90")
    yield from row("2026-06-09", "devstral-2512", "0.40", "2", cached_input="0.04")
    yield from row("2025-08-12", "magistral-medium-2506 magistral-medium-2507", "2", "5")
    yield from row("2025-08-12", "magistral-small-2506 magistral-small-2507", "0.50", "1.50")
    yield from row("2025-07-04", "ministral-3b-2410", "0.04", "0.04")
    yield from row("2026-08-24", "ministral-8b-2410", "0.10", "0.10")
    yield from row("2026-06-09", "ministral-3b-2512", "0.10", "0.10", cached_input="0.01")
    yield from row("2026-08-24", "ministral-8b-2512", "0.15", "0.15", cached_input="0.015")
    yield from row("2026-06-09", "ministral-14b-2512", "0.20", "0.20", cached_input="0.02")
    yield from row("2025-07-04", "open-mistral-nemo open-mistral-nemo-2407", "0.15", "0.15")
    yield from row("2025-07-04", "mistral-embed", "0.10")


def _others() -> Iterator[Known]:
    flash, pro = ("0.14", "0.28"), ("0.435", "0.87")
    yield from _row("deepseek", DEEPSEEK, "2026-05-12", "deepseek-v4-flash", *flash, cached_input="0.0028")
    yield from _row("deepseek", DEEPSEEK, "2026-06-02", "deepseek-v4-pro", *pro, cached_input="0.003625")
    yield from _row("xai", XAI, "2025-07-12", "grok-3", "3", "15", cached_input="0.75")
    yield from _row("xai", XAI, "2025-07-12", "grok-3-mini", "0.30", "0.50", cached_input="0.075")
    long = {"above": "128000", "long_cached_input": "0.75", "long_input": "6", "long_output": "30"}
    yield from _row("xai", XAI, "2025-09-30", "grok-4-0709", "3", "15", cached_input="0.75", **long)
    long = {"above": "128000", "long_cached_input": "0.05", "long_input": "0.40", "long_output": "1"}
    fast = "grok-4-fast-reasoning grok-4-fast-non-reasoning"
    yield from _row("xai", XAI, "2025-09-30", fast, "0.20", "0.50", cached_input="0.05", **long)
    yield from _row("xai", XAI, "2026-01-19", "grok-code-fast-1", "0.20", "1.50", cached_input="0.02")
    yield from _row("groq", GROQ, "2025-08-31", "llama-3.1-8b-instant", "0.05", "0.08")
    yield from _row("groq", GROQ, "2025-08-31", "llama-3.3-70b-versatile", "0.59", "0.79")
    yield from _row("groq", GROQ, "2025-08-31", "meta-llama/llama-4-scout-17b-16e-instruct", "0.11", "0.34")
    yield from _row("groq", GROQ, "2025-08-31", "qwen/qwen3-32b", "0.29", "0.59")
    llama = "meta-llama/Llama-3.3-70B-Instruct-Turbo meta-llama/Meta-Llama-3.1-70B-Instruct-Turbo"
    yield from _row("together", TOGETHER, "2025-07-04", llama, "0.88", "0.88")
    yield from _row("together", TOGETHER, "2025-07-04", "meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", "0.18", "0.18")
    yield from _row("cohere", COHERE, "2025-07-04", "command-a-03-2025 command-r-plus-08-2024", "2.50", "10")
    yield from _row("cohere", COHERE, "2025-07-04", "command-r-08-2024", "0.15", "0.60")
    yield from _row("cohere", COHERE, "2025-07-04", "command-r7b-12-2024", "0.0375", "0.15")
    yield from _row("cohere", COHERE, "2025-12-10", "embed-v4.0", "0.12")


def _bedrock() -> Iterator[Known]:
    """In regions of the USA, or wherever Amazon likes (`global.`)."""

    def row(checked: str, models: str, *prices: str, **more: str) -> Iterator[Known]:
        return _row("bedrock", BEDROCK, checked, models, *prices, **more)

    nova = "amazon.nova-micro-v1:0 us.amazon.nova-micro-v1:0"
    yield from row("2025-07-04", nova, "0.035", "0.14", cached_input="0.00875")
    nova = "amazon.nova-lite-v1:0 us.amazon.nova-lite-v1:0"
    yield from row("2025-07-04", nova, "0.06", "0.24", cached_input="0.015")
    nova = "amazon.nova-pro-v1:0 us.amazon.nova-pro-v1:0"
    yield from row("2025-07-04", nova, "0.80", "3.20", cached_input="0.20")
    yield from row("2025-07-04", "us.amazon.nova-premier-v1:0", "2.50", "12.50", cached_input="0.625")
    haiku, opus = "global.anthropic.claude-haiku-4-5-20251001-v1:0", "global.anthropic.claude-opus-4-5-20251101-v1:0"
    yield from row("2025-11-24", haiku, "1", "5", cached_input="0.10", cache_write="1.25")
    yield from row("2026-02-23", opus, "5", "25", cached_input="0.50", cache_write="6.25")
    yield from row("2025-07-04", "meta.llama3-3-70b-instruct-v1:0 us.meta.llama3-3-70b-instruct-v1:0", "0.72", "0.72")
    yield from row("2025-07-04", "meta.llama3-1-8b-instruct-v1:0 us.meta.llama3-1-8b-instruct-v1:0", "0.22", "0.22")
    yield from row("2025-07-04", "us.deepseek.r1-v1:0", "1.35", "5.40")
    yield from row("2025-11-24", "openai.gpt-oss-120b-1:0", "0.15", "0.60")
    yield from row("2025-11-24", "openai.gpt-oss-20b-1:0", "0.07", "0.30")


def _table() -> Mapping[tuple[ProviderKind, str], Known]:
    rows = (*_openai(), *_anthropic(), *_gemini(), *_mistral(), *_others(), *_bedrock())
    return {(row.kind, row.model): row for row in rows}


TABLE: Mapping[tuple[ProviderKind, str], Known] = _table()
