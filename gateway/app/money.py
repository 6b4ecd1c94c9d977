"""Opens what counts and limits: counters, ledger, wallets, alerts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from gateway import gauges
from gateway.alerts import Alerts, Channel
from gateway.app.workers import JOURNAL_NAME
from gateway.catalog import nano_usd
from gateway.config import AlertsConfig, Config
from gateway.ledger.caught_up import CaughtUp
from gateway.ledger.store import Ledger
from gateway.limits import rest
from gateway.limits.limiter import Balance, Limiter, LocalCounters, steady_us, wall_us
from gateway.limits.orphans import Orphans
from gateway.limits.shared import SharedCounters
from gateway.limits.wallets import Wallets, money_epoch
from gateway.state.database import Database
from gateway.state.journal import Journal
from gateway.state.outbox import Outbox
from gateway.state.shared import SharedState, Under
from gateway.state.sqlite import Sqlite
from gateway.telemetry import Telemetry


async def open_money(
    config: Config,
    database: Database | None,
    shared: SharedState,
    telemetry: Telemetry,
    stack: AsyncExitStack,
    process: str,
    folder: Path,
) -> tuple[Limiter, Ledger | None]:
    """Limits and the ledger. Without a database usage is not recorded, and budgets begin at zero with each start.
    `process` names this process to those that share its counters, `folder` is its outbox."""

    async def nothing(accounts: Sequence[str]) -> dict[str, Balance]:
        return {}

    async def caught_up() -> None:
        if ledger is not None:
            await ledger.keeper.caught_up()

    ledger, books = None, None
    if database is not None:
        # So that a database that was put in the place of another does not meet counters of that one.
        shared = Under(shared, f"{await money_epoch(database)}:")
        outbox = Outbox(folder)  # It locks the folder, the journal's too.
        alone = isinstance(database, Sqlite) and config.state.redis is None
        ledger = Ledger(database, outbox, Journal(folder / JOURNAL_NAME), disk_first=alone)
        books = CaughtUp(database, ledger.keeper.caught_up)
        telemetry.gauge_source(partial(gauges.of_ledger, ledger))
    counters: SharedCounters | LocalCounters
    if config.state.redis is None:
        counters = LocalCounters(lambda: ledger is not None and ledger.complete, caught_up)
        if ledger is not None:
            saved, boot = folder / "rates.json", rest.boot_id()
            rest.recall(counters.book, saved, boot)
            stack.callback(rest.save, counters.book, saved, boot)
    else:
        orphans = None if ledger is None else Orphans(shared, process, ledger.charges)
        counters = SharedCounters(
            shared,
            config.state.replicas,
            steady_us,
            complete=lambda: ledger is None or not ledger.waiting_bytes,
            orphans=orphans,
        )
        if ledger is not None:
            ledger.keeper.returned = counters.adopt
    if ledger is not None:
        await ledger.start()
        stack.push_async_callback(ledger.close)
    if isinstance(counters, SharedCounters):
        counters.start()
        stack.push_async_callback(counters.close)
    telemetry.gauge_source(lambda: [("gateway_reservations", (), counters.holds)])
    balances = nothing if books is None else Wallets(books).balances
    alerts = Alerts(database, _channels(config.alerts), balances, telemetry)
    alerts.start()
    stack.push_async_callback(alerts.close)
    limiter = Limiter(
        config.limits,
        counters,
        balances,
        now_us=wall_us,
        steady_us=steady_us,
        alert=alerts.add,
        wallet_low_nano=nano_usd(config.alerts.wallet_low_usd),
    )
    return limiter, ledger


def _channels(config: AlertsConfig) -> dict[str, Channel]:
    """Who is told of alerts beside the log."""
    # Imported by those who use them.
    from gateway.alerts.channels import Mail, Webhook

    channels: dict[str, Channel] = {}
    if config.webhook.url is not None:
        channels["webhook"] = Webhook(config.webhook)
    if config.smtp.host is not None:
        channels["smtp"] = Mail(config.smtp)
    return channels
