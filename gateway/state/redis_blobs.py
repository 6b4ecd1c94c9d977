"""Blobs in Redis or Valkey, for all replicas: a server that is away or slow has nothing, and keeps nothing.

The bytes are counted there, because the server may be one that never evicts. What ends soonest goes first.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from gateway.state.blobs import ENTRY_BYTES, BlobCounts
from gateway.state.redis_link import Link, ask_facts, connection_to, translated
from gateway.state.shared import SharedStateError, SharedStateMisused

PREFIX = "gwc:"
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 2.0
# What may be on its way to the server.
PENDING_BYTES_MAX = 64 << 20

# Members of the indexes are "size:tenant:key", their score the moment in milliseconds at which the blob expires.
_PUT = """
local p, key, tenant, blob = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local ttl, extra, max, tenant_max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local all, own, total = p .. 'all', p .. 't:' .. tenant, p .. 'bytes'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local size, evicted, steps = #blob + extra, 0, 0
local function used(name) return tonumber(redis.call('GET', name) or '0') end
local function drop(member)
  local its_size, owner, name = string.match(member, '^(%d+):(%x+):(.*)$')
  redis.call('DEL', p .. 'v:' .. name)
  if redis.call('ZREM', all, member) == 1 then
    redis.call('ZREM', p .. 't:' .. owner, member)
    redis.call('DECRBY', total, its_size)
    if redis.call('DECRBY', p .. 'n:' .. owner, its_size) <= 0 then redis.call('DEL', p .. 'n:' .. owner) end
  end
end
local function first(index)
  local found = redis.call('ZRANGE', index, 0, 0)
  return found[1]
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', all, '-inf', now, 'LIMIT', 0, 1000)) do drop(member) end
local before = redis.call('STRLEN', p .. 'v:' .. key)
if before > 0 then drop(string.format('%.0f:%s:%s', before + extra, tenant, key)) end
local function make_room(index, counter, most)
  while used(counter) + size > most and steps < 1000 do
    local member = first(index)
    if not member then redis.call('SET', counter, '0') break end
    drop(member)
    evicted, steps = evicted + 1, steps + 1
  end
end
make_room(own, p .. 'n:' .. tenant, tenant_max)
make_room(all, total, max)
if steps < 1000 and size <= tenant_max then
  local member = string.format('%.0f:%s:%s', size, tenant, key)
  redis.call('SET', p .. 'v:' .. key, blob, 'PX', ttl)
  redis.call('ZADD', all, now + ttl, member)
  redis.call('ZADD', own, now + ttl, member)
  redis.call('INCRBY', total, size)
  redis.call('INCRBY', p .. 'n:' .. tenant, size)
  for _, name in ipairs({all, own, total, p .. 'n:' .. tenant}) do
    if redis.call('PTTL', name) < ttl + 1000 then redis.call('PEXPIRE', name, ttl + 60000) end
  end
end
return {used(total), evicted}
"""

# Drops up to ARGV[3] members of an index; how many there were.
_CLEAR = """
local p, index = ARGV[1], ARGV[2]
local members = redis.call('ZRANGE', index, 0, tonumber(ARGV[3]) - 1)
for _, member in ipairs(members) do
  local size, owner, name = string.match(member, '^(%d+):(%x+):(.*)$')
  redis.call('DEL', p .. 'v:' .. name)
  redis.call('ZREM', p .. 'all', member)
  redis.call('ZREM', p .. 't:' .. owner, member)
  redis.call('DECRBY', p .. 'bytes', size)
  if redis.call('DECRBY', p .. 'n:' .. owner, size) <= 0 then redis.call('DEL', p .. 'n:' .. owner) end
end
return {#members, tonumber(redis.call('GET', p .. 'bytes') or '0')}
"""
CLEARED_AT_ONCE = 1000

log = logging.getLogger(__name__)


class RedisBlobs:
    """`Blobs` over one server, which several replicas may share, whatever else it is used for."""

    def __init__(self, url: str, bytes_max: int, tenant_bytes_max: int, *, timeout_s: float = 0.5) -> None:
        self._url = url
        self._bytes_max = bytes_max
        self._tenant_bytes_max = min(tenant_bytes_max, bytes_max)
        self._timeout_s = timeout_s
        self._link: Link | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._pending_bytes = 0
        self._size = 0
        self._evicted = 0
        self._failed = 0

    @property
    def counts(self) -> BlobCounts:
        return BlobCounts(self._size, self._evicted, self._failed)

    async def open(self) -> None:
        """Connect; a server that is away is tried again and again, behind the requests' backs."""
        tried = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(tried))
        await tried.wait()

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])

    async def get(self, key: str) -> bytes | None:
        link = self._link
        if link is None:
            self._failed += 1
            return None
        try:
            found: bytes | None = await link.call(("GET", f"{PREFIX}v:{key}"))
        except (SharedStateError, ResponseError) as error:
            self._fail(error)
            return None
        return found

    def put(self, key: str, tenant: str, blob: bytes, ttl_s: float) -> None:
        link, size = self._link, len(blob)
        if link is None or self._pending_bytes + size > PENDING_BYTES_MAX:
            self._failed += 1
            return
        owner = _owner(tenant)
        ttl_ms = max(1, round(ttl_s * 1000))
        command = (PREFIX, key, owner, blob, ttl_ms, ENTRY_BYTES, self._bytes_max, self._tenant_bytes_max)
        self._pending_bytes += size
        link.call(("EVAL", _PUT, 0, *command)).add_done_callback(lambda reply: self._kept(reply, size))

    async def clear(self, tenant: str | None) -> int | None:
        index = PREFIX + ("all" if tenant is None else f"t:{_owner(tenant)}")
        dropped = 0
        try:
            while (link := self._link) is not None:
                counts: list[int] = await link.call(("EVAL", _CLEAR, 0, PREFIX, index, CLEARED_AT_ONCE))
                count, self._size = counts
                dropped += count
                if count < CLEARED_AT_ONCE:
                    return dropped
        except (SharedStateError, ResponseError) as error:
            self._fail(error)
        return None

    def _kept(self, reply: asyncio.Future[Any], size: int) -> None:
        self._pending_bytes -= size
        if reply.cancelled():
            return
        if (error := reply.exception()) is not None:
            self._fail(error)
            return
        self._size, evicted = reply.result()
        self._evicted += evicted

    def _fail(self, error: BaseException) -> None:
        self._failed += 1
        log.debug("the response cache's Redis: %s", error)

    async def _keep(self, tried: asyncio.Event) -> None:
        """Serve connections one after the other, for ever; each outage is told once."""
        pause_s, told = PAUSE_FIRST_S, False
        while True:
            try:
                connection = await self._connect()
            except SharedStateError as error:
                reason = str(error)
            else:
                if told:
                    log.warning("the response cache has its Redis back")
                self._link = Link(connection, self._timeout_s)
                tried.set()
                pause_s, told = PAUSE_FIRST_S, False
                try:
                    reason = await self._link.serve()
                finally:
                    self._link = None
            tried.set()
            if not told:
                log.warning("the response cache finds nothing while its Redis is away: %s", reason)
                told = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _connect(self) -> AbstractConnection:
        with translated():
            connection = connection_to(self._url)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await connection.connect_check_health()
                    if (await ask_facts(connection)).replica:
                        raise SharedStateMisused("the server is a replica, which takes no writes")
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        return connection


def _owner(tenant: str) -> str:
    """What a tenant is called in keys."""
    return hashlib.blake2b(tenant.encode(), digest_size=12).hexdigest()
