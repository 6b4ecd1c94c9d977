"""The settings of what is kept of the past."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from gateway.config_limits import Section

# What is told twice because an answer was lost has to meet what was told first, so a month is kept at least.
Days = Annotated[int, Meta(ge=31, le=36_500)]


class RetentionConfig(Section, frozen=True, kw_only=True):
    """For how many days the ledger's entries and the audit log are kept; null: for ever. Balances and sums stay."""

    ledger_days: Days | None = None
    audit_days: Days | None = None
