"""The settings of how routes look after their targets."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config_limits import Section, words

Path = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^/[!-~]*\Z", extra=words("a path such as /health"))]


class HealthConfig(Section, frozen=True, kw_only=True):
    """How a provider is asked whether it is well, about every `interval_s`.

    `path` is one of its host, null: what its kind has for that, or else the list of its models. After `unhealthy_after`
    answers in a row that are not `status`, its targets are left alone; after `healthy_after` that are, they come back.
    """

    path: Path | None = None
    interval_s: Annotated[float, Meta(ge=0.1, le=3600)] = 10
    timeout_s: Annotated[float, Meta(ge=0.05, le=60)] = 3
    healthy_after: Annotated[int, Meta(ge=1, le=100)] = 2
    unhealthy_after: Annotated[int, Meta(ge=1, le=100)] = 3
    status: Annotated[int, Meta(ge=200, le=599)] = 200


class HedgeConfig(Section, frozen=True, kw_only=True):
    """A second target is asked as well when the first has said nothing after `after_ms`, or else for longer than
    `percentile` of the latest requests took. Such requests are at most `share_max` of all, in number and in what they
    may cost."""

    after_ms: Annotated[int, Meta(ge=1, le=600_000)] | None = None
    percentile: Annotated[float, Meta(ge=50, le=99.9)] = 95
    share_max: Annotated[float, Meta(gt=0, le=1)] = 0.05
