"""How often somebody may try to log in or sign up: per address and per account, across replicas, in bounded memory."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Sequence

import msgspec

from gateway import errors
from gateway.state.memory import Memory
from gateway.state.shared import Argument, Records, Reply, Script, SharedState, SharedStateUnavailable

ENTRIES_MAX = 200_000

log = logging.getLogger(__name__)


class Allowance(msgspec.Struct, frozen=True):
    """`burst` tries at once, and then one every `every_s`."""

    name: str
    burst: int
    every_s: int


# A person mistypes a few times; behind one address there may be an office. An account can be tried from many addresses,
# so it has a limit of its own: some 1,450 guesses a day at a password that must not be easy to guess.
LOG_IN_ADDRESS = Allowance("login-address", 20, 15)
LOG_IN_ACCOUNT = Allowance("login-account", 10, 60)
SIGN_UP_ADDRESS = Allowance("signup-address", 5, 600)
# Each start of a log-in at a provider costs a request to it at the end.
PROVIDER_ADDRESS = Allowance("provider-address", 30, 5)

# A theoretical arrival time (GCRA) per key: each try moves it on by `every`; it may lie `burst` times `every` ahead.
# Arguments: +1 or -1 (a try given back), then burst and every in microseconds for each key. All keys take the try, or
# none does. The reply is the wait in microseconds, 0 when the try is granted.
_LUA = """
local function tat(key)
  local value = tonumber(redis.call('HGET', key, 'tat') or '0')
  if value < now_us then return now_us end
  return value
end
local step, wait = tonumber(ARGV[1]), 0
for i = 1, #KEYS do
  local every = tonumber(ARGV[2 * i + 1])
  local ahead = tat(KEYS[i]) + every - now_us - tonumber(ARGV[2 * i]) * every
  if step > 0 and ahead > wait then wait = ahead end
end
if wait > 0 then return {wait} end
for i = 1, #KEYS do
  local value = tat(KEYS[i]) + step * tonumber(ARGV[2 * i + 1])
  if value > now_us then
    redis.call('HSET', KEYS[i], 'tat', string.format('%.0f', value))
    redis.call('PEXPIRE', KEYS[i], string.format('%.0f', math.floor((value - now_us) / 1000) + 1000))
  else
    redis.call('DEL', KEYS[i])
  end
end
return {0}
"""


def _step(records: Records, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
    now_us, (step, *rest) = records.now_us, (int(one) for one in arguments)
    times = [max((records.read(key) or {}).get("tat", 0), now_us) for key in keys]
    bursts, everies = rest[::2], rest[1::2]
    if step > 0:
        waits = [
            at_us + every - now_us - burst * every for at_us, burst, every in zip(times, bursts, everies, strict=True)
        ]
        if (wait_us := max(waits)) > 0:
            return [wait_us]
    for key, at_us, every in zip(keys, times, everies, strict=True):
        at_us += step * every
        if at_us > now_us:
            records.write(key, {"tat": at_us}, (at_us - now_us) // 1000 + 1000)
        else:
            records.delete(key)
    return [0]


ATTEMPT = Script("attempts", 1, _LUA, _step)

Tries = tuple[tuple[Allowance, str], ...]


class Attempts:
    """Grants tries, and counts them in `shared`; while that is away, this process counts alone.

    What is tried is known by a keyed digest only, so no list of addresses lies anywhere. `local` has its own bound: a
    flood of names fills it and then is refused, and takes no room from the counters of limits.
    """

    def __init__(self, shared: SharedState | None, pepper: bytes, *, local: Memory | None = None) -> None:
        self._shared = shared
        self._pepper = pepper
        self._local = local or Memory(entries_max=ENTRIES_MAX)
        self._alone = False

    async def take(self, *tries: tuple[Allowance, str]) -> None:
        """Count one try of each; raises `rate_limit_exceeded` when one of them is not allowed, and counts none then."""
        wait_us = await self._run(1, tries)
        if wait_us > 0:
            message = "Too many attempts. Wait a moment before the next one."
            raise errors.error("rate_limit_exceeded", message, retry_after_s=wait_us / 1e6)

    async def give_back(self, *tries: tuple[Allowance, str]) -> None:
        """Take back a try, which turned out to be rightful."""
        await self._run(-1, tries)

    async def _run(self, step: int, tries: Tries) -> int:
        keys = [self._key(allowance, of) for allowance, of in tries]
        arguments = [step]
        for allowance, _ in tries:
            arguments += [allowance.burst, allowance.every_s * 1_000_000]
        if self._shared is not None:
            try:
                wait_us = (await self._shared.run(ATTEMPT, keys, arguments))[0]
                self._alone = False
                return wait_us
            except SharedStateUnavailable as error:
                if not self._alone:
                    log.warning("tries to log in are counted by this process alone: %s", error)
                self._alone = True
        try:
            return (await self._local.run(ATTEMPT, keys, arguments))[0]
        except SharedStateUnavailable:
            message = "Too many people try to log in at the moment. Try again shortly."
            raise errors.error("overloaded", message, retry_after_s=60) from None

    def _key(self, allowance: Allowance, of: str) -> str:
        digest = hmac.new(self._pepper, f"{allowance.name}:{of}".encode(errors="replace"), hashlib.sha256)
        return f"attempts:{digest.hexdigest()[:32]}"


def origin_of(address: str) -> str:
    """Whom an address belongs to: itself in version 4, the network of a subscriber in version 6."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), 64), strict=False).network_address)
