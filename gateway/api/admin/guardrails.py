"""The guardrails of the configuration, what each did since the start, and what it would make of a text."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway import errors
from gateway.api.admin.routes import Body, Call, Page, Route
from gateway.config_guardrails import Action, GuardrailKind, Stage
from gateway.guardrails import GuardrailFailed
from gateway.guardrails.rules import Guardrails, Rule

TEXT_CHARS_MAX = 100_000


class GuardrailShown(msgspec.Struct, frozen=True, kw_only=True):
    """A guardrail, and the requests and answers that this process looked at with it since its start."""

    object: str = "guardrail"
    id: str
    kind: GuardrailKind
    action: Action
    stages: tuple[Stage, ...]
    always: bool
    models: tuple[str, ...]
    on_failure: str
    checked: int
    blocked: int
    masked: int
    logged: int
    failed: int
    seconds: float


class TestedText(Body, frozen=True, kw_only=True):
    text: Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)]


class FindingShown(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in the characters from `start` up to `end`."""

    kind: str
    start: int
    end: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen: `outcome` is passed, blocked, masked, logged or failed; `text` is what would be left of the
    text where something is masked."""

    object: str = "guardrail.verdict"
    guardrail: str
    outcome: str
    findings: list[FindingShown]
    text: str | None


class GuardrailRoutes:
    """`/admin/v1/guardrails`."""

    def __init__(self, guardrails: Guardrails) -> None:
        self._guardrails = guardrails

    def routes(self) -> tuple[Route, ...]:
        return (
            Route(
                "GET",
                "/admin/v1/guardrails",
                "guardrails.read",
                self.list,
                "The guardrails, and what each did",
                answer=list[GuardrailShown],
            ),
            Route(
                "POST",
                "/admin/v1/guardrails/{id}/test",
                "guardrails.read",
                self.test,
                "What a guardrail would make of a text",
                body=TestedText,
                answer=Verdict,
                action="guardrail.test",
                description="The text is neither kept nor logged, and not counted among what the guardrail did.",
            ),
        )

    async def list(self, call: Call[None, None]) -> Page[GuardrailShown]:
        return Page([_shown(rule) for rule in self._guardrails.rules.values()])

    async def test(self, call: Call[None, TestedText]) -> Verdict:
        rule = self._guardrails.rules.get(call.path["id"])
        if rule is None:
            raise errors.error("not_found", "There is no such guardrail.")
        try:
            trial = await self._guardrails.try_out(rule, call.body.text)
        except GuardrailFailed:
            return Verdict(guardrail=rule.name, outcome="failed", findings=[], text=None)
        findings = [FindingShown(kind=one.kind, start=one.start, end=one.end) for one in trial.spans]
        call.note(rule.name, outcome=trial.outcome)
        return Verdict(guardrail=rule.name, outcome=trial.outcome, findings=findings, text=trial.text)


def _shown(rule: Rule) -> GuardrailShown:
    config, tally = rule.config, rule.tally
    return GuardrailShown(
        id=rule.name,
        kind=config.kind,
        action=config.action,
        stages=config.stages,
        always=config.always,
        models=config.models,
        on_failure=config.on_failure,
        checked=tally.checked,
        blocked=tally.blocked,
        masked=tally.masked,
        logged=tally.logged,
        failed=tally.failed,
        seconds=round(tally.seconds, 6),
    )
