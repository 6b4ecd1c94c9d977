"""Which limits apply to whom: a principal and a model become the rates, gates and budgets a request has to pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from zoneinfo import ZoneInfo

import msgspec

from gateway.auth import Principal
from gateway.catalog import nano_usd
from gateway.config_limits import BudgetConfig, LimitsConfig, RuleConfig, ScopeLimits
from gateway.limits.book import NANO_MAX, Budget, Gate, Rate
from gateway.limits.periods import Period, period_at

PLANS_MAX = 10_000
MINUTE_US = 60_000_000
WALLET = "wallet:"


class Allowance(msgspec.Struct, frozen=True):
    """A budget as it was set; `subject` is the scope it belongs to, such as `team:research`. `percents` are its
    thresholds, the highest first; none of them is reached below `alert_nano`."""

    subject: str
    config: BudgetConfig
    limit_nano: int
    percents: tuple[int, ...]
    alert_nano: int


class Plan(msgspec.Struct, frozen=True):
    """All limits of one principal on one model. The accounts hold until `ends_us`; None: for ever. `allowances` are
    those of the budgets, by account."""

    rates: tuple[Rate, ...]
    gates: tuple[Gate, ...]
    budgets: tuple[Budget, ...]
    budget_ends_us: tuple[int | None, ...]
    allowances: Mapping[str, Allowance]
    wallets: tuple[str, ...]
    starts_us: int
    ends_us: int | None

    @property
    def limited(self) -> bool:
        """Whether there is anything to hold."""
        return bool(self.rates or self.gates or self.budgets or self.wallets)

    @property
    def money(self) -> bool:
        """Whether a price has to be known."""
        return bool(self.budgets or self.wallets)


class Plans:
    """Plans by principal and model, made once and kept while their periods last."""

    def __init__(self, config: LimitsConfig) -> None:
        self._zone = ZoneInfo(config.time_zone)
        self._rules: dict[tuple[str, str], RuleConfig] = {(rule.scope, rule.id): rule for rule in config.rules}
        self._plans: OrderedDict[tuple[str, str], tuple[Principal, Plan]] = OrderedDict()

    def plan(self, principal: Principal, model: str, now_us: int) -> Plan:
        """The limits of a principal on a model at a moment."""
        place = principal.key_id, model
        known = self._plans.get(place)
        if known is not None:
            made_for, plan = known
            same = made_for is principal or made_for == principal
            if same and plan.starts_us <= now_us and (plan.ends_us is None or now_us < plan.ends_us):
                return plan
        plan = self._make(principal, model, now_us)
        self._plans[place] = principal, plan
        self._plans.move_to_end(place)
        if len(self._plans) > PLANS_MAX:
            self._plans.popitem(last=False)
        return plan

    def _make(self, principal: Principal, model: str, now_us: int) -> Plan:
        rates: list[Rate] = []
        rate_periods: list[Period] = []
        gates: dict[str, Gate] = {}
        allowances: dict[str, tuple[Allowance, Period]] = {}
        wallets: dict[str, None] = {}
        for subject, limits in self._scopes(principal, model):
            zone = self._zone if limits.time_zone is None else ZoneInfo(limits.time_zone)
            for rate, period in _rates(subject, limits, now_us, zone):
                rates.append(rate)
                rate_periods += [] if period is None else [period]
            if limits.concurrent_requests is not None:
                gate = Gate(subject, limits.concurrent_requests)
                gates[subject] = min(gate, gates.get(subject, gate), key=lambda gate: gate.limit)
            for budget in limits.budgets:
                period = _always(budget.window_s) or period_at(budget.period or "month", now_us, zone)
                account = f"{subject}:{period.name}"
                allowance = _allowance(subject, budget)
                if account not in allowances or allowances[account][0].limit_nano > allowance.limit_nano:
                    allowances[account] = allowance, period
            if limits.wallet is not None:
                wallets[WALLET + limits.wallet] = None
        periods = [period for _, period in allowances.values()]
        ends = [period.ends_us for period in (*periods, *rate_periods) if period.ends_us is not None]
        return Plan(
            rates=tuple({rate.key: rate for rate in sorted(rates, key=lambda rate: -rate.limit)}.values()),
            gates=tuple(gates.values()),
            budgets=tuple(_budget(account, allowance) for account, (allowance, _) in allowances.items()),
            budget_ends_us=tuple(period.ends_us for period in periods),
            allowances={account: allowance for account, (allowance, _) in allowances.items()},
            wallets=tuple(wallets),
            starts_us=max((period.starts_us for period in (*periods, *rate_periods)), default=0),
            ends_us=min(ends, default=None),
        )

    def _scopes(self, principal: Principal, model: str) -> Iterator[tuple[str, ScopeLimits]]:
        """Each scope of a request that has limits: its own from the database and those that the configuration has for
        it, which both hold, else those of every one of its kind.
        """
        own = dict(principal.scopes_limits)
        key = principal.counted_as or principal.key_id
        if principal.limits is not None:
            own[f"key:{key}"] = principal.limits
        member = principal.team_id and principal.user_id and f"{principal.team_id}/{principal.user_id}"
        names = [
            ("key", key),
            ("user", principal.user_id),
            ("member", member),
            ("team", principal.team_id),
            ("org", principal.org_id),
            ("tenant", principal.tenant),
            ("model", model),
            *(("tag", tag) for tag in dict.fromkeys(principal.tags)),
        ]
        for scope, identity in names:
            if identity is None:
                continue
            subject = f"{scope}:{identity}"
            found = [own.get(subject), self._rules.get((scope, identity))]
            if found == [None, None]:
                found = [self._rules.get((scope, "*"))]
            for limits in found:
                if limits is not None:
                    yield subject, limits


def _allowance(subject: str, budget: BudgetConfig) -> Allowance:
    percents = tuple(sorted(budget.alert_percents, reverse=True))
    limit_nano = min(nano_usd(budget.usd), NANO_MAX)
    return Allowance(subject, budget, limit_nano, percents, limit_nano * min(percents, default=0) // 100)


def _always(window_s: int | None) -> Period | None:
    """What stands for the period of a budget with a sliding window."""
    return None if window_s is None else Period(f"{window_s}s", 0, None)


def _budget(account: str, allowance: Allowance) -> Budget:
    window_s = allowance.config.window_s
    return Budget(account, allowance.limit_nano, None if window_s is None else window_s * 1_000_000)


def _rates(subject: str, limits: ScopeLimits, now_us: int, zone: ZoneInfo) -> Iterator[tuple[Rate, Period | None]]:
    """The rates of a scope, those of calendar periods with the running one."""
    if limits.requests_per_minute is not None:
        yield Rate(f"{subject}:requests:60", "requests", limits.requests_per_minute, MINUTE_US), None
    if limits.tokens_per_minute is not None:
        yield Rate(f"{subject}:tokens:60", "tokens", limits.tokens_per_minute, MINUTE_US), None
    for rate in limits.rates:
        key = f"{subject}:{rate.unit}"
        if rate.window_s is not None:
            yield Rate(f"{key}:{rate.window_s}", rate.unit, rate.limit, rate.window_s * 1_000_000), None
        elif rate.period is not None:
            period = period_at(rate.period, now_us, zone)
            assert period.ends_us is not None, "the periods of rates end"
            length_us = period.ends_us - period.starts_us
            yield Rate(f"{key}:{period.name}", rate.unit, rate.limit, length_us, period.ends_us), period
