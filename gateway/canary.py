"""Whether money is guarded at all: a key whose budget is nothing must be refused, on the path of every request."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.scripted import Answer, Script, Scripted
from adapters.types import Caller, ChatRequest, Generation, Message
from gateway.auth import Principal
from gateway.catalog import Catalog, Price, Target
from gateway.config_limits import BudgetConfig, LimitsConfig, ScopeLimits
from gateway.errors import GatewayError
from gateway.inference import Inference
from gateway.limits.limiter import Balance, Counters, Limiter, steady_us, wall_us
from gateway.limits.wallets import Wallets
from gateway.metering import Metering
from gateway.state.database import Database
from gateway.telemetry import Telemetry

NAME = "canary"
LIMITS = ScopeLimits(budgets=(BudgetConfig(usd="0", period="total"),))


async def sing(config: LimitsConfig, counters: Counters, database: Database | None) -> str | None:
    """Ask as a key with a budget of zero; what is wrong when it is not refused because of that. Nothing is recorded."""

    async def nothing(accounts: Sequence[str]) -> dict[str, Balance]:
        return {}

    balances = nothing if database is None else Wallets(database).balances
    limiter = Limiter(config, counters, balances, now_us=wall_us, steady_us=steady_us)
    telemetry = Telemetry(NAME)
    target = Target(NAME, Scripted(NAME, Script(answers=(Answer(text="free"),))), price=Price(1, 1, 1))
    inference = Inference(Catalog([target]), telemetry, Metering(limiter, None, telemetry))
    principal = Principal(tenant=NAME, key_id=NAME, name=NAME, limits=LIMITS)
    request = ChatRequest(NAME, (Message("user", "sing"),), generation=Generation(max_tokens=1))
    try:
        stream = await inference.chat(principal, request, Caller(NAME, NAME))
    except GatewayError as error:
        return None if error.code == "insufficient_quota" else f"a key without a budget got: {error.message}"
    await stream.aclose()
    return "a key whose budget is zero was let in"
