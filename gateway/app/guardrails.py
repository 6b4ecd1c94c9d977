"""Builds the guardrails of the configuration."""

from __future__ import annotations

from contextlib import AsyncExitStack

from adapters import open_moderator
from gateway.audit import Audit, Event
from gateway.config import Config, GuardrailConfig
from gateway.guardrails import Guardrail
from gateway.guardrails.asked import Moderation, Presidio, Webhook
from gateway.guardrails.patterns import regexes
from gateway.guardrails.pii import pii
from gateway.guardrails.rules import Found, Guardrails, Rule
from gateway.remotes import upstream_settings
from gateway.telemetry import Telemetry


def open_guardrails(config: Config, telemetry: Telemetry, audit: Audit, stack: AsyncExitStack) -> Guardrails:
    """All of them; nothing is sent anywhere yet. What they block is put into the audit log."""

    def found(event: Found) -> None:
        if event.outcome == "blocked":
            done = Event(
                action="guardrail.block",
                actor=event.key_id,
                tenant=event.tenant,
                subject=event.guardrail,
                outcome="content_blocked",
                request_id=event.request_id,
                details={"stage": event.stage, "kinds": event.kinds},
            )
            audit.add_repeatable(done)

    guardrails = Guardrails([Rule(one, _guardrail(one, config)) for one in config.guardrails], telemetry, found)
    stack.push_async_callback(guardrails.close)
    return guardrails


def _guardrail(one: GuardrailConfig, config: Config) -> Guardrail:
    match one.kind:
        case "regex":
            return regexes(one.patterns, one.window_chars)
        case "pii":
            return pii(one.types)
        case "webhook":
            return Webhook(one)
        case "presidio":
            return Presidio(one)
        case "moderation":
            provider = next(provider for provider in config.providers if provider.name == one.provider)
            return Moderation(one, open_moderator(upstream_settings(provider), one.model))
