"""Targets that generate and embed: canonical types, their errors, and the adapters behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.llama_cpp import LlamaCpp
    from adapters.llama_cpp.messages import EngineSettings
    from adapters.moderation import Moderator
    from adapters.remote import Remote, RemoteModel
    from adapters.upstream import Upstream, UpstreamSettings

__all__ = ["open_adapter", "open_moderator", "open_remote", "open_upstream"]


def open_adapter(name: str, path: str, settings: EngineSettings, *, queue_depth_max: int = 64) -> LlamaCpp:
    """The adapter for the GGUF file at `path`, not yet started."""
    # Imported here because worker processes import this package too and need nothing of the gateway's side.
    from adapters.llama_cpp import LlamaCpp

    return LlamaCpp(name, path, settings, queue_depth_max=queue_depth_max)


def open_upstream(settings: UpstreamSettings, address: str | None = None) -> Upstream:
    """The way to a provider, or to one address of it, which its models share; nothing is sent yet. Whoever opens it
    closes it."""
    from adapters.upstream import Upstream

    return Upstream(settings, address=address)


def open_remote(model: RemoteModel, upstream: Upstream) -> Remote:
    """The adapter for a model of a provider."""
    from adapters.remote import Remote

    return Remote(model, upstream)


def open_moderator(settings: UpstreamSettings, model: str | None) -> Moderator:
    """A provider's moderation model, over connections of its own; nothing is sent yet. Whoever opens it closes it."""
    from adapters.moderation import Moderator

    return Moderator(open_upstream(settings), model)
