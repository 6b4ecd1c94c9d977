"""Calls of scripts, gathered into round trips: what waits at the end of a turn of the event loop is one call of Redis.

The scripts that a process has used are one program there, which takes a list of calls and runs each of them as a step
of its own: one that fails leaves the others alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from redis.exceptions import ResponseError

from gateway.state.redis_link import IN_FLIGHT_MAX, Answer, Link
from gateway.state.shared import (
    PATIENCE_S,
    Argument,
    Reply,
    Script,
    SharedStateLost,
    SharedStateUnavailable,
)

PREFIX = "gw"
EPOCH_KEY = f"{PREFIX}:epoch"
# The server does nothing else while it runs one call; a step takes it some 50 microseconds.
TOGETHER_MAX = 100
# Answers that say the server cannot do anything right now, as opposed to a script of ours that is wrong.
_AWAY = frozenset({"BUSY", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "UNKILLABLE"})

_BEGIN = f"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('STALEEPOCH') end
local prefix, calls, steps, replies = '{PREFIX}:' .. ARGV[1] .. ':r:', cmsgpack.unpack(ARGV[2]), {{}}, {{}}
"""
_TIME = """local now_us = redis.call('TIME')
now_us = tonumber(now_us[1]) * 1000000 + tonumber(now_us[2])
"""
_GIVEN_TIME = "local now_us = tonumber(ARGV[3])\n"
_END = """
for i, call in ipairs(calls) do
  local number, keys, arguments = unpack(call)
  for k, key in ipairs(keys) do keys[k] = prefix .. key end
  local _, reply = pcall(steps[number], keys, arguments)
  replies[i] = type(reply) == 'table' and (reply.err or reply) or tostring(reply)
end
return cmsgpack.pack(replies)
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Reply | str]).decode


class Program:
    """The scripts that were used so far, as one text. It grows by a script when that is used for the first time."""

    def __init__(self, *, given_time: bool) -> None:
        self._begin = _BEGIN + (_GIVEN_TIME if given_time else _TIME)
        self._numbers: dict[tuple[str, int], int] = {}
        self._steps = ""
        self.text, self.digest = "", ""

    def number(self, script: Script) -> int:
        """Under which number calls have it."""
        return self._numbers.get((script.name, script.version)) or self._add(script)

    def _add(self, script: Script) -> int:
        number = self._numbers[script.name, script.version] = len(self._numbers) + 1
        title = f"-- {script.name} {script.version}"
        self._steps += f"{title}\nsteps[{number}] = function(KEYS, ARGV)\n{script.lua}\nend\n"
        self.text = self._begin + self._steps + _END
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        return number


class _Call(NamedTuple):
    wire: tuple[int, Sequence[str], Sequence[Argument]]
    reply: asyncio.Future[Reply]


class Trips:
    """Carries the calls of one epoch over one connection. `now_us` replaces the server's clock, for tests."""

    def __init__(self, link: Link, program: Program, epoch: str, now_us: Callable[[], int] | None) -> None:
        self._link = link
        self._program = program
        self._epoch = epoch
        self._now_us = now_us
        self._loop = asyncio.get_running_loop()
        self._known: set[str] = set()
        self._unanswered = 0
        self._calls: list[_Call] = []
        self._patient: list[_Call] = []
        self._patient_since_s = 0.0
        self._timer_runs = False

    def call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], *, patient: bool
    ) -> asyncio.Future[Reply]:
        """What `SharedState.run` says."""
        reply: asyncio.Future[Reply] = self._loop.create_future()
        if self._unanswered >= IN_FLIGHT_MAX:
            reply.set_exception(SharedStateUnavailable("Redis is too slow"))
            return reply
        self._unanswered += 1
        call = _Call((self._program.number(script), keys, arguments), reply)
        if not patient:
            if not self._calls:
                self._loop.call_soon(self._send)
            self._calls.append(call)
            return reply
        if not self._patient:
            self._patient_since_s = self._loop.time()
            self._set_timer(PATIENCE_S)
        self._patient.append(call)
        return reply

    def _set_timer(self, in_s: float) -> None:
        # It is left to run out when what waits has been sent: to cancel one for each call costs more.
        if not self._timer_runs:
            self._timer_runs = True
            self._loop.call_later(in_s, self._time_out)

    def _time_out(self) -> None:
        self._timer_runs = False
        if not self._patient:
            return
        left_s = self._patient_since_s + PATIENCE_S - self._loop.time()
        if left_s > 0:
            self._set_timer(left_s)
        else:
            self._send()

    def _send(self) -> None:
        calls = self._patient + self._calls
        self._patient, self._calls = [], []
        for start in range(0, len(calls), TOGETHER_MAX):
            self._carry(calls[start : start + TOGETHER_MAX])

    def _carry(self, calls: Sequence[_Call]) -> None:
        text, digest = self._program.text, self._program.digest
        arguments: list[str | bytes | int] = [self._epoch, _encode([call.wire for call in calls])]
        if self._now_us is not None:
            arguments.append(self._now_us())
        how = ("EVALSHA", digest) if digest in self._known else ("EVAL", text)
        self._known.add(digest)
        self._link.send((*how, 1, EPOCH_KEY, *arguments), partial(self._land, calls, digest))

    def _land(self, calls: Sequence[_Call], digest: str, answer: Answer) -> None:
        if isinstance(answer, ResponseError) and str(answer).startswith("NOSCRIPT"):
            self._known.discard(digest)
            self._carry(calls)
            return
        self._unanswered -= len(calls)
        replies = _decode(answer) if isinstance(answer, bytes) else [answer] * len(calls)
        for call, reply in zip(calls, replies, strict=True):
            if call.reply.done():
                continue  # Who asked has given up.
            if isinstance(reply, list):
                call.reply.set_result(reply)
            else:
                # Each has an error of its own: whoever raises one adds to it.
                call.reply.set_exception(problem(ResponseError(reply) if isinstance(reply, str) else reply, self._link))


def problem(error: object, link: Link) -> Exception:
    """What an answer of the server, or none, means to who called; some answers end the connection."""
    if not isinstance(error, ResponseError):
        return SharedStateUnavailable(str(error))
    text = str(error).removeprefix("ERR ")
    code = text.partition(" ")[0]
    if code == "STALEEPOCH":
        link.give_up("the server has lost its data")
        return SharedStateLost("Redis has lost its data")
    if code == "READONLY":
        link.give_up("the server has become a replica")
    return SharedStateUnavailable(f"Redis: {text}") if code in _AWAY else ResponseError(text)
