"""What clients are told of limits: why a request may not run, and how the tightest ones stand."""

from __future__ import annotations

import functools

from gateway import errors
from gateway.errors import GatewayError
from gateway.limits.book import Refusal
from gateway.limits.periods import PERIOD_LETTERS
from gateway.limits.windows import BUSY_RETRY_US, Room

# Whoever reads that a short request is over 1,000 tokens should not have to guess why.
MORE_THAN_ALL = (
    "This request alone could use more: until it has run, each byte of it counts as a token, and so do 1,024 for a "
    "template and the longest answer that it asks for."
)


def refusal_error(refusal: Refusal) -> GatewayError:
    """The answer to a request that was not let in."""
    scope = refusal.key.partition(":")[0]
    retry_s = None if refusal.retry_us is None else refusal.retry_us / 1e6
    headers = rate_headers(refusal.requests_room, refusal.tokens_room)
    if refusal.kind == "budget" and retry_s is None:
        what = "wallet is empty" if scope == "wallet" else f"budget of your {scope} is used up"
        reset_s = None if refusal.resets_us is None else refusal.resets_us / 1e6
        message = f"The {what}, or what is left of it is too little for this request."
        return errors.error("insufficient_quota", message, retry_after_s=reset_s, headers=headers)
    message = _explain(refusal, scope)
    if retry_s is not None:
        return errors.error("rate_limit_exceeded", message, retry_after_s=retry_s, headers=headers)
    headers["x-should-retry"] = "false"
    alone = MORE_THAN_ALL if refusal.kind == "tokens" else "This request alone is over it."
    refused = errors.error("rate_limit_exceeded", f"{message} {alone}", headers=headers)
    refused.retry_after_s = None
    return refused


def _explain(refusal: Refusal, scope: str) -> str:
    match refusal.kind:
        case "budget" if refusal.retry_us != BUSY_RETRY_US:
            return f"The budget of your {scope} is used up for now."
        case "budget":
            return f"What is left of the budget of your {scope} is held by requests that still run."
        case "concurrency":
            return f"Too many requests at the same time: the limit of your {scope} is {refusal.limit}."
        case unit:
            window = _window(refusal.key.rsplit(":", 1)[1])
            limit = f"the limit of your {scope} is {refusal.limit} {window}, with {refusal.remaining} left"
            return f"Too many {unit}: {limit}."


def _window(name: str) -> str:
    """The window or period at the end of a rate's key, in words."""
    if not name.isdecimal():
        return f"per {PERIOD_LETTERS[name[0]]}"
    return "in one minute" if name == "60" else f"in {name} seconds"


def rate_headers(requests: Room | None, tokens: Room | None) -> dict[str, str]:
    """How the tightest limits stand, as OpenAI names it."""
    lines = [line.partition(": ") for line in rate_lines(requests, tokens).splitlines()]
    return {name: value for name, _, value in lines}


def rate_lines(requests: Room | None, tokens: Room | None) -> str:
    """The same as it goes over the wire."""
    text = ""
    for unit, room in ("requests", requests), ("tokens", tokens):
        if room is not None:
            text += (
                f"x-ratelimit-limit-{unit}: {room.limit}\r\n"
                f"x-ratelimit-remaining-{unit}: {room.remaining}\r\n"
                f"x-ratelimit-reset-{unit}: {_duration(-(-room.reset_us // 1000))}\r\n"
            )
    return text


@functools.lru_cache(maxsize=4096)
def _duration(total_ms: int) -> str:
    """A length of time as OpenAI writes it: `17ms`, `8.64s`, `6m0s`, `1h0m5s`. Requests of a moment have the same."""
    if 0 < total_ms < 1000:
        return f"{total_ms}ms"
    minutes, ms = divmod(total_ms, 60_000)
    seconds = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + seconds
