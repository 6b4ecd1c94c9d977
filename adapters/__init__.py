"""Targets that generate and embed: canonical types, their errors, and the adapters behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.llama_cpp import LlamaCpp
    from adapters.llama_cpp.messages import EngineSettings

__all__ = ["open_adapter"]


def open_adapter(name: str, path: str, settings: EngineSettings, *, queue_depth_max: int = 64) -> LlamaCpp:
    """The adapter for the GGUF file at `path`, not yet started."""
    # Imported here because worker processes import this package too and need nothing of the gateway's side.
    from adapters.llama_cpp import LlamaCpp

    return LlamaCpp(name, path, settings, queue_depth_max=queue_depth_max)
