"""Drops what is older than it has to be kept, every hour: detail of the ledger, the audit log, past windows."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.audit import GATEWAY, Audit, Event, drop_before
from gateway.config_money import RetentionConfig
from gateway.ledger.retention import drop_entries
from gateway.limits.limiter import wall_us
from gateway.limits.wallets import sweep_windows
from gateway.regularly import Regularly
from gateway.state.database import Database, DatabaseError

FIRST_S = 60.0
EVERY_S = 3600.0
DAY_US = 86_400_000_000

log = logging.getLogger(__name__)


class Retention:
    """The hourly work over one database; several processes may do it at the same time."""

    def __init__(
        self, database: Database, audit: Audit, config: RetentionConfig, *, now_us: Callable[[], int] = wall_us
    ) -> None:
        self._database = database
        self._audit = audit
        self._config = config
        self._now_us = now_us
        self._regularly = Regularly(self._attempt, EVERY_S, first_s=FIRST_S, jitter=0.0)

    def start(self) -> None:
        self._regularly.start()

    async def close(self) -> None:
        await self._regularly.close()

    async def _attempt(self) -> None:
        try:
            await self.once()
        except DatabaseError as error:
            log.warning("what is old could not be dropped: %s", error)

    async def once(self) -> None:
        """Drop what is too old by now."""
        now_us = self._now_us()
        await sweep_windows(self._database, now_us)
        if self._config.ledger_days is not None:
            before_us = now_us - self._config.ledger_days * DAY_US
            if count := await drop_entries(self._database, before_us, now_us):
                self._audit.add(Event(action="ledger.drop", actor=GATEWAY, details={"entries": count}))
        if self._config.audit_days is not None:
            await drop_before(self._database, now_us - self._config.audit_days * DAY_US, now_us)
