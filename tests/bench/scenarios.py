"""What the gateway is judged by beside llama-server: each scenario measures one endpoint once.

A scenario takes a `Probe` and returns numbers by name, with units. Prompts are token ids drawn from a seed, so lengths
are exact, both endpoints get the same ones, and nothing is answered from an earlier repetition. Every scenario ends
with the endpoint idle.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpx
import msgspec

from gateway.bench import Endpoint, exchange
from gateway.bench_report import Outcome, percentile

TIMEOUT_S = 600.0
LOAD_TIMEOUT_S = 120.0
SETTLE_S = 1.5
"""After a cancellation: llama-server looks for vanished clients once a second."""
_PAUSE_S = 0.05
"""Time for a request to reach the state it shall be in."""


class ScenarioError(Exception):
    """An endpoint answered otherwise than the scenario needs, so that its numbers would mean nothing."""


class Probe:
    """One endpoint in one repetition: draws prompts and sends token-exact streamed requests."""

    def __init__(self, client: httpx.AsyncClient, endpoint: Endpoint, token_ids: range, seed: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._token_ids = token_ids
        self._draw = random.Random(seed)

    def prompt(self, tokens: int) -> list[int]:
        """A new random prompt."""
        return self._draw.choices(self._token_ids, k=tokens)

    async def attempt(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        on_text: Callable[[], None] | None = None,
        *,
        conversation: str | None = None,
        word: int | None = None,
    ) -> Outcome:
        """Send one greedy request, whatever comes of it. `conversation` is a name for servers that take one; the answer
        repeats the token `word` if there is one."""
        body = {
            "model": self._endpoint.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "prompt_cache_key": conversation,
            "logit_bias": {} if word is None else {str(word): 100},
        }
        encoded = msgspec.json.encode(body)
        path = "/completions"
        return await exchange(self._client, self._endpoint, path, encoded, timeout_s=TIMEOUT_S, on_text=on_text)

    async def send(
        self, prompt: Sequence[int], max_tokens: int, conversation: str | None = None, *, word: int | None = None
    ) -> Outcome:
        """Send one greedy request that must be answered in full."""
        outcome = await self.attempt(prompt, max_tokens, conversation=conversation, word=word)
        try:
            return checked(outcome, len(prompt), max_tokens)
        except ScenarioError as error:
            raise ScenarioError(f"{self._endpoint.url} ({self._endpoint.model}): {error}") from None

    async def send_all(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Outcome]:
        """Send requests at the same time."""
        return await asyncio.gather(*(self.send(prompt, max_tokens) for prompt in prompts))


class Running:
    """A request in the background whose progress can be awaited and which can be cancelled."""

    def __init__(self, probe: Probe, prompt_tokens: int, max_tokens: int) -> None:
        self.times_s: list[float] = []
        self._progress = asyncio.Event()
        self.task = asyncio.create_task(probe.attempt(probe.prompt(prompt_tokens), max_tokens, self._on_text))

    def _on_text(self) -> None:
        self.times_s.append(time.perf_counter())
        self._progress.set()

    async def reach(self, pieces: int) -> None:
        """Wait until this many pieces of text have come."""
        while len(self.times_s) < pieces:
            self._progress.clear()
            step = asyncio.create_task(self._progress.wait())
            await asyncio.wait({step, self.task}, return_when=asyncio.FIRST_COMPLETED)
            step.cancel()
            if self.task.done() and len(self.times_s) < pieces:
                raise ScenarioError(f"a stream ended with {self.task.result().status} after {len(self.times_s)} pieces")

    async def cancel(self) -> float:
        """Close the connection; returns when."""
        now = time.perf_counter()
        self.task.cancel()
        await asyncio.wait({self.task})
        return now


Scenario = Callable[[Probe], Awaitable[dict[str, float]]]


def checked(outcome: Outcome, prompt_tokens: int, max_tokens: int) -> Outcome:
    """The outcome, if it is complete and has the exact token counts."""
    counts = (outcome.input_tokens, outcome.output_tokens)
    if not outcome.ok or counts != (prompt_tokens, max_tokens):
        raise ScenarioError(f"{outcome.status} with {counts} tokens instead of {(prompt_tokens, max_tokens)}")
    return outcome


async def greet(probe: Probe) -> dict[str, float]:
    """A server may listen before it has loaded its model."""
    deadline_s = time.monotonic() + LOAD_TIMEOUT_S
    while not (outcome := await probe.attempt(probe.prompt(16), max_tokens=4)).ok:
        if time.monotonic() > deadline_s:
            raise ScenarioError(f"warming up ended with {outcome.status}")
        await asyncio.sleep(0.2)
    return {}


def streams(count: int, prompt_tokens: int = 128) -> Scenario:
    """`count` distinct prompts at once, 64 tokens each."""

    async def scenario(probe: Probe) -> dict[str, float]:
        outcomes = await probe.send_all([probe.prompt(prompt_tokens) for _ in range(count)], max_tokens=64)
        numbers = together(outcomes) | {"gap mean ms": _mean_ms(gap for outcome in outcomes for gap in outcome.gaps_s)}
        rate = running_rate(outcomes)
        return numbers if rate is None else numbers | {"tokens/s while all decode": rate}

    return scenario


async def shared_prefix(probe: Probe) -> dict[str, float]:
    """Eight 560-token prompts at once that begin with the same 512 tokens, 32 tokens each."""
    prefix = probe.prompt(512)
    return together(await probe.send_all([prefix + probe.prompt(48) for _ in range(8)], max_tokens=32))


def newcomer(prompt_tokens: int) -> Scenario:
    """A running stream, beside which a long prompt arrives."""

    async def scenario(probe: Probe) -> dict[str, float]:
        stream = Running(probe, prompt_tokens=128, max_tokens=3000)
        await stream.reach(16)
        outcome = await probe.send(probe.prompt(prompt_tokens), max_tokens=8)
        await stream.reach(len(stream.times_s) + 1)
        await stream.cancel()
        await asyncio.sleep(SETTLE_S)
        first_s = outcome.first_token_s or 0.0
        meanwhile = sum(outcome.started_s < at < outcome.started_s + first_s for at in stream.times_s)
        gaps = (after - before for before, after in itertools.pairwise(stream.times_s) if after > outcome.started_s)
        return {
            "longest gap of the stream ms": max(gaps) * 1000,
            "pieces/s of the stream meanwhile": meanwhile / first_s,
            "first token of the newcomer ms": first_s * 1000,
        }

    return scenario


async def second_turn(probe: Probe) -> dict[str, float]:
    """A conversation of 2,000 tokens and its answer of 64, then its next turn: all of that and a question of 32."""
    history, answer = probe.prompt(2000), probe.prompt(1)
    cold = await probe.send(history, max_tokens=64, word=answer[0])
    return _turns(cold, await probe.send(history + answer * 64 + probe.prompt(32), max_tokens=16))


async def edited_turn(probe: Probe) -> dict[str, float]:
    """The same with another answer of 64 tokens in its place, which is new to the endpoint too."""
    history = probe.prompt(2000)
    cold = await probe.send(history, max_tokens=16)
    return _turns(cold, await probe.send(history + probe.prompt(64 + 32), max_tokens=16))


def _turns(cold: Outcome, warm: Outcome) -> dict[str, float]:
    cold_s, warm_s = cold.first_token_s or 0.0, warm.first_token_s or 0.0
    return {
        "cold first token ms": cold_s * 1000,
        "second turn first token ms": warm_s * 1000,
        "cold / second turn": cold_s / warm_s,
        "uncached tokens": float((warm.input_tokens or 0) - (warm.cached_tokens or 0)),
    }


async def continued(probe: Probe) -> dict[str, float]:
    """A running stream, beside which a short prompt comes, and then the next turn of a conversation of 2,000 tokens
    that had to make room: what its return and its leaving again add to the gaps of the stream."""
    history = probe.prompt(2000)
    await probe.send(history, max_tokens=8)
    stream = Running(probe, prompt_tokens=128, max_tokens=3000)
    await stream.reach(32)
    calm = gaps_ms(stream, len(stream.times_s) - 24)
    at = len(stream.times_s)
    await probe.send(probe.prompt(40), max_tokens=8)
    await stream.reach(len(stream.times_s) + 16)
    beside_new = gaps_ms(stream, at)
    at = len(stream.times_s)
    outcome = await probe.send(history + probe.prompt(8 + 32), max_tokens=8)
    await stream.reach(len(stream.times_s) + 16)
    beside_old = gaps_ms(stream, at)
    await stream.cancel()
    await asyncio.sleep(SETTLE_S)
    return {
        "gap median ms": statistics.median(calm),
        "longest gap beside a short prompt ms": max(beside_new),
        "longest gap beside a continued conversation ms": max(beside_old),
        "uncached tokens": float((outcome.input_tokens or 0) - (outcome.cached_tokens or 0)),
    }


def gaps_ms(stream: Running, start: int) -> list[float]:
    """The gaps between the pieces of a stream from the piece `start` on."""
    return [(after - before) * 1000 for before, after in itertools.pairwise(stream.times_s[max(0, start - 1) :])]


async def many_conversations(probe: Probe) -> dict[str, float]:
    """Eight conversations of 1,000 tokens take turns where four fit; then each goes on, in the same order."""
    histories = [probe.prompt(1000) for _ in range(8)]
    for history in histories:
        await probe.send(history, max_tokens=8)
    warm = [await probe.send(history + probe.prompt(8 + 32), max_tokens=8) for history in histories]
    return {
        "second turn first token mean ms": _mean_ms(outcome.first_token_s or 0 for outcome in warm),
        "second turn first token max ms": max(outcome.first_token_s or 0 for outcome in warm) * 1000,
        "uncached tokens": float(sum((outcome.input_tokens or 0) - (outcome.cached_tokens or 0) for outcome in warm)),
    }


async def cancel_decoding(probe: Probe) -> dict[str, float]:
    """One place; its holder vanishes while tokens come: until the next request has its first token."""
    holder = Running(probe, prompt_tokens=32, max_tokens=5000)
    await holder.reach(8)
    return await _time_to_next(probe, holder)


async def cancel_prefill(probe: Probe) -> dict[str, float]:
    """One place; its holder vanishes while its 4,000-token prompt is processed."""
    holder = Running(probe, prompt_tokens=4000, max_tokens=64)
    await asyncio.sleep(_PAUSE_S)
    numbers = await _time_to_next(probe, holder)
    if holder.times_s:
        raise ScenarioError("the prompt was processed before the request was cancelled")
    return numbers


async def _time_to_next(probe: Probe, holder: Running) -> dict[str, float]:
    waiting = asyncio.create_task(probe.send(probe.prompt(32), max_tokens=1))
    await asyncio.sleep(_PAUSE_S)
    cancelled_s = await holder.cancel()
    outcome = await waiting
    await asyncio.sleep(SETTLE_S)
    return {"next first token after the cancellation ms": (outcome.text_s[0] - cancelled_s) * 1000}


async def cancel_queued(probe: Probe) -> dict[str, float]:
    """One place; a queued request vanishes: until the one behind it is served, from when the place is free."""
    holder = Running(probe, prompt_tokens=32, max_tokens=400)
    await holder.reach(8)
    queued = Running(probe, prompt_tokens=32, max_tokens=5000)
    await asyncio.sleep(_PAUSE_S)
    behind = asyncio.create_task(probe.send(probe.prompt(32), max_tokens=1))
    await asyncio.sleep(_PAUSE_S)
    await queued.cancel()
    if holder.task.done():
        raise ScenarioError("the place was free before the queued request was cancelled")
    freed_s = (await holder.task).ended_s
    outcome = await behind
    await asyncio.sleep(SETTLE_S)
    return {"next first token after the place is free ms": (outcome.text_s[0] - freed_s) * 1000}


async def flood(probe: Probe) -> dict[str, float]:
    """60 requests at once for four places and a queue of ten; whoever is refused comes back once, when told to."""
    begun = time.perf_counter()

    async def visit(prompt: Sequence[int]) -> tuple[Outcome, Outcome | None]:
        outcome = await probe.attempt(prompt, max_tokens=32)
        if outcome.ok:
            return outcome, None
        if outcome.status not in ("429", "503") or outcome.retry_after_s is None:
            raise ScenarioError(f"{outcome.status} without Retry-After")
        await asyncio.sleep(outcome.ended_s + outcome.retry_after_s - time.perf_counter())
        return outcome, await probe.attempt(prompt, max_tokens=32)

    visits = await asyncio.gather(*(visit(probe.prompt(64)) for _ in range(60)))
    served = [first for first, again in visits if again is None]
    numbers = {
        "refused": float(len(visits) - len(served)),
        "first token max ms": max(outcome.first_token_s or 0 for outcome in served) * 1000,
        "first place free after s": min(outcome.ended_s for outcome in served) - begun,
        "queue empty after s": max(outcome.ended_s for outcome in served) - begun,
    }
    refused = [(first, again) for first, again in visits if again is not None]
    if refused:
        waits = sorted(first.retry_after_s or 0 for first, _ in refused)
        numbers["refusal p95 ms"] = percentile(sorted(first.total_s for first, _ in refused), 95) * 1000
        numbers |= {"Retry-After min s": waits[0], "Retry-After mean s": statistics.fmean(waits)}
        numbers |= {"Retry-After max s": waits[-1]}
        numbers["admitted on return %"] = 100 * statistics.fmean(again.ok for _, again in refused)
    return numbers


def together(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Numbers of requests that were sent at the same time."""
    wall_s = max(outcome.ended_s for outcome in outcomes) - min(outcome.started_s for outcome in outcomes)
    first_s = [outcome.first_token_s or 0 for outcome in outcomes]
    return {
        "tokens/s": sum(outcome.tokens for outcome in outcomes) / wall_s,
        "first token mean ms": statistics.fmean(first_s) * 1000,
        "first token max ms": max(first_s) * 1000,
        "gap max ms": max(gap for outcome in outcomes for gap in outcome.gaps_s) * 1000,
    }


def running_rate(outcomes: Sequence[Outcome]) -> float | None:
    """Tokens per second while every stream is past its first and before its last; None when that is too short."""
    begin = max(outcome.text_s[0] for outcome in outcomes)
    end = min(outcome.text_s[-1] for outcome in outcomes)
    pieces = [sum(begin < at <= end for at in outcome.text_s) for outcome in outcomes]
    if min(pieces) < 8:
        return None
    tokens = (count * outcome.tokens / len(outcome.text_s) for count, outcome in zip(pieces, outcomes, strict=True))
    return sum(tokens) / (end - begin)


def _mean_ms(times_s: Iterable[float]) -> float:
    return statistics.fmean(times_s) * 1000


class Group(msgspec.Struct, frozen=True):
    """Scenarios that run on the same pair of servers."""

    parallel: int
    context_tokens: int
    queue_depth: int
    scenarios: dict[str, Scenario]


def groups() -> tuple[Group, ...]:
    """Every scenario, by name."""
    counts = (1, 3, 4, 6, 7, 8, 16)
    wide: dict[str, Scenario] = {f"streams-{count}": streams(count) for count in counts}
    wide["burst-16"] = streams(16, prompt_tokens=400)
    wide |= {"shared-prefix": shared_prefix, "newcomer-1500": newcomer(1500), "newcomer-4000": newcomer(4000)}
    turns: dict[str, Scenario] = {
        "second-turn": second_turn,
        "edited-turn": edited_turn,
        "conversations-8": many_conversations,
    }
    turns["continued"] = continued
    cancels: dict[str, Scenario] = {
        "cancel-queued": cancel_queued,
        "cancel-prefill": cancel_prefill,
        "cancel-decode": cancel_decoding,
    }
    return (
        Group(parallel=16, context_tokens=8192, queue_depth=64, scenarios=wide),
        Group(parallel=4, context_tokens=12_288, queue_depth=64, scenarios=turns),
        Group(parallel=1, context_tokens=8192, queue_depth=64, scenarios=cancels),
        Group(parallel=4, context_tokens=8192, queue_depth=10, scenarios={"flood-60": flood}),
    )
