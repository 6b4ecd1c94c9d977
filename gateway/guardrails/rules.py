"""Which guardrails apply to a request, what they make of it and of its answer, and what each of them did so far."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeVar

import msgspec

from gateway import errors
from gateway.auth import Principal
from gateway.catalog import Target, matches
from gateway.config_guardrails import Action, GuardrailConfig, Stage
from gateway.errors import GatewayError
from gateway.guardrails import Guardrail, GuardrailFailed, Span, masked
from gateway.telemetry import Telemetry

# Combinations of what a key is given and of a target whose guardrails are remembered.
APPLYING_MAX = 1000
LOCAL_KINDS = ("regex", "pii")

T = TypeVar("T")

log = logging.getLogger(__name__)

OUTCOMES: Mapping[Action, str] = {"block": "blocked", "mask": "masked", "log": "logged"}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a guardrail did to a request or its answer: names and numbers, never a text. `kinds` such as `email:2`."""

    guardrail: str
    stage: Stage
    outcome: str
    kinds: str
    request_id: str
    key_id: str
    tenant: str


class Tally:
    """What a guardrail did since the start."""

    def __init__(self) -> None:
        self.checked = 0
        self.blocked = 0
        self.masked = 0
        self.logged = 0
        self.failed = 0
        self.seconds = 0.0


class Rule:
    """A guardrail of the configuration, at work."""

    def __init__(self, config: GuardrailConfig, guardrail: Guardrail) -> None:
        self.config = config
        self.guardrail = guardrail
        self.tally = Tally()

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def open(self) -> bool:
        """Whether what it cannot look at may pass."""
        return self.config.on_failure == "open" or self.config.action == "log"

    async def within(self, work: Awaitable[T]) -> T:
        """What `work` comes to in the time that looking at something may take; what is looked at here is bounded by its
        work. Raises GuardrailFailed."""
        try:
            async with nullcontext() if self.config.kind in LOCAL_KINDS else asyncio.timeout(self.config.timeout_s):
                return await work
        except TimeoutError:
            raise GuardrailFailed("it took too long") from None

    def unavailable(self) -> GatewayError:
        return errors.error("guardrail_unavailable", f"The guardrail '{self.name}' cannot be asked. Try again shortly.")


class Trial(msgspec.Struct, frozen=True):
    """What would happen to a text: `outcome` and, where something is masked, the text that is left."""

    outcome: str
    spans: Sequence[Span]
    text: str | None


class Guardrails:
    """All guardrails of a gateway. `found` is told of each that found something or failed."""

    def __init__(
        self,
        rules: Sequence[Rule],
        telemetry: Telemetry,
        found: Callable[[Found], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.rules: Mapping[str, Rule] = {rule.name: rule for rule in rules}
        self._telemetry = telemetry
        self._found = found
        self.clock = clock
        self._applying: dict[tuple[tuple[str, ...], Target], tuple[Rule, ...]] = {}

    def applying(self, principal: Principal, target: Target) -> tuple[Rule, ...]:
        """Those that apply to requests of a caller to a target, in the order of the configuration.

        Raises `guardrail_unavailable` when the caller is given one that there is not.
        """
        key = principal.guardrails, target
        known = self._applying.get(key)
        if known is None:
            if len(self._applying) >= APPLYING_MAX:
                self._applying.clear()
            known = self._applying[key] = self._select(principal.guardrails, target)
        return known

    def _select(self, given: tuple[str, ...], target: Target) -> tuple[Rule, ...]:
        if gone := sorted(set(given) - set(self.rules)):
            log.error("keys, teams or organisations are given guardrails that are not configured: %s", ", ".join(gone))
            message = "A guardrail that applies to you is not configured. Ask the operator."
            raise errors.error("guardrail_unavailable", message)
        return tuple(
            rule
            for rule in self.rules.values()
            if rule.config.always or rule.name in given or any(matches(target, name) for name in rule.config.models)
        )

    def enforced(self, principal: Principal, target: Target) -> bool:
        """Whether something may not pass unseen."""
        return any(rule.config.action != "log" for rule in self.applying(principal, target))

    async def run(self, rule: Rule, stage: Stage, texts: Sequence[str]) -> list[Sequence[Span]]:
        """What a guardrail finds in these texts; raises GuardrailFailed."""
        started = self.clock()
        try:
            return await rule.within(rule.guardrail.find(texts))
        finally:
            self.took(rule, self.clock() - started)

    async def try_out(self, rule: Rule, text: str) -> Trial:
        """What would happen to a text; raises GuardrailFailed. Nothing of it is counted or told."""
        (spans,) = await rule.within(rule.guardrail.find([text]))
        if not spans:
            return Trial("passed", spans, None)
        action = rule.config.action
        return Trial(OUTCOMES[action], spans, masked(text, spans) if action == "mask" else None)

    def took(self, rule: Rule, seconds: float) -> None:
        rule.tally.seconds += seconds
        self._telemetry.guardrail_seconds(rule.name, seconds)

    def note(self, rule: Rule, stage: Stage, outcome: str, who: Found, spans: Sequence[Span] = ()) -> None:
        """Count what came of looking at something, and tell what was found."""
        tally = rule.tally
        tally.checked += 1
        if outcome != "passed":
            setattr(tally, outcome, getattr(tally, outcome) + 1)
        self._telemetry.guardrail(rule.name, stage, outcome)
        if outcome == "passed":
            return
        counts = Counter(span.kind for span in spans)
        kinds = " ".join(f"{kind}:{count}" for kind, count in sorted(counts.items()))
        if outcome != "failed":
            log.info("guardrail %s %s %s (%s) in request %s", rule.name, stage, outcome, kinds, who.request_id)
        self._found(msgspec.structs.replace(who, guardrail=rule.name, stage=stage, outcome=outcome, kinds=kinds))

    def failed(self, rule: Rule, stage: Stage, who: Found, reason: GuardrailFailed) -> None:
        """Count a failure; raises where that means that nothing may pass."""
        log.warning("guardrail %s failed in request %s: %s", rule.name, who.request_id, reason)
        self.note(rule, stage, "failed", who)
        if not rule.open:
            raise rule.unavailable()

    async def close(self) -> None:
        for rule in self.rules.values():
            await rule.guardrail.close()


class Duty:
    """A guardrail at work on one answer that streams. `spans` are all that it found; once it has `failed`, nothing more
    is looked at."""

    def __init__(self, all: Guardrails, rule: Rule, stage: Stage, who: Found) -> None:
        self.rule = rule
        self.stage = stage
        self.spans: list[Span] = []
        self.failed = False
        self._all = all
        self._who = who
        self._seconds = 0.0

    @property
    def action(self) -> Action:
        return self.rule.config.action

    async def does(self, work: Awaitable[None]) -> bool:
        """Whether some of its work was done; raises `guardrail_unavailable` where nothing may pass without."""
        started_s = self._all.clock()
        try:
            await self.rule.within(work)
            return True
        except GuardrailFailed as reason:
            self.failed = True
            self._all.failed(self.rule, self.stage, self._who, reason)
            return False
        finally:
            self._seconds += self._all.clock() - started_s

    def close(self) -> None:
        """Count what it did."""
        self._all.took(self.rule, self._seconds)
        if not self.failed:
            outcome = OUTCOMES[self.action] if self.spans else "passed"
            self._all.note(self.rule, self.stage, outcome, self._who, self.spans)
