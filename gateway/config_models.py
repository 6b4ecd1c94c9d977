"""The settings of local models and their engines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from adapters.llama_cpp import reasoning, tools
from adapters.llama_cpp.messages import EngineSettings, LoraFile
from gateway.config_cache import CacheTtl
from gateway.config_limits import PriceConfig, Section, words

ModelName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z")]
# owner/repo, owner/repo:Q4_K_M or owner/repo/file.gguf, each with @revision; hf: before it or not.
HubName = Annotated[
    str,
    Meta(
        max_length=400,
        pattern=r"^(hf:)?[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
        r"(:[A-Za-z0-9][A-Za-z0-9_-]*|(/[A-Za-z0-9][A-Za-z0-9._-]*)+\.[gG][gG][uU][fF])?(@[A-Za-z0-9][A-Za-z0-9._/-]*)?\Z",
        extra=words("owner/repo, owner/repo:QUANTISATION or owner/repo/file.gguf"),
    ),
]
LocalPath = Annotated[str, Meta(min_length=1, extra={"path": True})]


class LoraConfig(LoraFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter of a model, under the name that its model's public name is continued with."""

    name: Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@+-]*\Z")]
    path: LocalPath
    scale: Annotated[float, Meta(ge=-100, le=100)] = 1.0


def _one_of(names: tuple[str, ...]) -> Meta:
    return Meta(pattern=rf"^({'|'.join(map(re.escape, names))})\Z", extra=words(f"one of {', '.join(names)}"))


class EngineConfig(EngineSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`EngineSettings` with the ranges an operator may choose from. What can only be empty is set elsewhere."""

    context_tokens: Annotated[int, Meta(ge=64, le=1 << 24)] | None = None
    cache_tokens: Annotated[int, Meta(ge=64, le=1 << 26)] | None = None
    parallel: Annotated[int, Meta(ge=1, le=256)] = 8
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    chunk_tokens: Annotated[int, Meta(ge=16, le=8192)] = 512
    target_gap_ms: Annotated[int, Meta(ge=10, le=60_000)] = 200
    session_ram_bytes: Annotated[int, Meta(ge=0, le=1 << 44)] = 1 << 30
    session_ttl_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 3600
    session_disk_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 4 << 30
    session_disk_ttl_s: Annotated[int, Meta(ge=0, le=3650 * 86_400)] = 7 * 86_400
    session_count_max: Annotated[int, Meta(ge=1, le=10_000)] = 1024
    session_dir: None = None
    session_key: None = None
    public_prefixes: tuple[()] = ()
    tool_format: Annotated[str, _one_of(tools.NAMES)] | None = None
    reasoning_format: Annotated[str, _one_of(reasoning.NAMES)] | None = None
    gpu_layers: Annotated[int, Meta(ge=-1, le=10_000)] = 0
    lease_path: LocalPath | None = None
    loras: Annotated[tuple[LoraConfig, ...], Meta(max_length=64)] = ()
    mmproj: LocalPath | None = None
    image_cache_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 256 << 20


class ModelConfig(Section, frozen=True, kw_only=True):
    """A local GGUF file under its public name, and how its engine runs, or what to `pull` from a hub in its place; or a
    `script` that is played."""

    name: ModelName
    path: LocalPath | None = None
    pull: HubName | None = None
    script: LocalPath | None = None
    aliases: tuple[ModelName, ...] = ()
    queue_depth_max: Annotated[int, Meta(ge=1, le=100_000)] = 64
    default: bool = False
    lazy: bool = False
    pinned: bool = False
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] | None = None
    price: PriceConfig | None = None
    cache_ttl_s: CacheTtl = None
    public_prefixes: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=64)] = ()
    engine: EngineConfig = EngineConfig()

    @property
    def file(self) -> str:
        """What has to be there for the model to be served; empty when it is pulled."""
        return self.path or self.script or ""

    @property
    def local(self) -> bool:
        """Whether an engine here runs it."""
        return self.script is None


def engine_conflicts(models: tuple[ModelConfig, ...]) -> Iterator[tuple[str, str]]:
    """Settings of engines that exclude each other, as (path, problem)."""
    for i, model in enumerate(models):
        if model.engine.kv_type != "f16" and model.engine.flash_attention == "off":
            yield f"models[{i}].engine.flash_attention", f"off is not possible with kv_type {model.engine.kv_type}"
