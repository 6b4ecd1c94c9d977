"""What a request may use and what it did: reserved before it is dispatched, settled and recorded when it ends."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from adapters.errors import AdapterError
from adapters.members import Members
from adapters.types import (
    ChatRequest,
    CompletionRequest,
    DocumentPart,
    EmbeddingRequest,
    ImagePart,
    ImageUrl,
    Inbound,
    Kind,
    Message,
    NativePart,
    Part,
    RerankRequest,
    Served,
    TextPart,
    Timings,
    Tokenizer,
    Usage,
)
from gateway import errors
from gateway.auth import Principal
from gateway.catalog import Price, Target
from gateway.ledger import NOT_RECORDED, Durable, Entry
from gateway.ledger.store import Ledger
from gateway.limits.book import Refusal
from gateway.limits.limiter import Limiter, Need, Reservation, steady_us, wall_us
from gateway.limits.told import refusal_error
from gateway.limits.windows import Room
from gateway.telemetry import Telemetry
from gateway.terms import Terms

Request = ChatRequest | CompletionRequest | EmbeddingRequest | RerankRequest | Inbound

# What a chat template may put around a conversation and around each message, at most.
TEMPLATE_TOKENS = 1024
MESSAGE_TOKENS = 64
PAIR_TOKENS = 256
IMAGE_TOKENS = 4096
# What a token of a prompt that nobody counted is taken to have in bytes.
TOKEN_BYTES = 3
# A page of a PDF is read as its text and as an image, and hardly one has fewer bytes. One that is fetched later may
# have as many as fit into any context.
PAGE_TOKENS = 2 * IMAGE_TOKENS
PAGE_BYTES = 1024
DOCUMENT_TOKENS = 1 << 20
URLS_BYTES = 64 * 1024
# The longest answer of a model whose context is not known and a request that names no bound.
OUTPUT_TOKENS = 8192
NO_USAGE = Usage()
# The terms that are kept: those of so many keys, targets and kinds of requests.
TERMS_MAX = 10_000


class Meter:
    """One request's reservation. It ends exactly once, by plain calls that a cancelled task can still make."""

    # What most requests leave as it is.
    served: Served | None = None
    cost_nano: int | None = None
    durable: Durable | None = None
    # What the response cache did, where there is one, and how old the answer is that it had.
    cache: Literal["hit", "miss", "bypass"] | None = None
    age_s = 0
    # Where the time of an answer of this gateway's own models went, and what of its prompt was not computed again.
    timings: Timings | None = None
    cached_tokens = 0
    _hit_nano: int | None = None
    _ended = False

    def __init__(
        self, metering: Metering, terms: Terms, begun: Entry | None, reservation: Reservation | None, started_us: int
    ) -> None:
        self._metering = metering
        self._terms = terms
        self._begun = begun
        # What is known of the entry by who answers.
        self._said = terms.entry
        self._reservation = reservation
        self.grant = None if reservation is None else reservation.grant
        self._started_us = started_us

    @property
    def rooms(self) -> tuple[Room | None, Room | None]:
        """How the tightest limits on requests and on tokens stand."""
        grant = self.grant
        return (None, None) if grant is None else (grant.requests_room, grant.tokens_room)

    def timed(self, timings: Timings, cached_tokens: int) -> None:
        """Note how an answer came about, which only this gateway's own models tell."""
        if timings.prefill_us or timings.queue_us:
            self.timings, self.cached_tokens = timings, cached_tokens

    def serve(self, served: Served) -> None:
        """Note which target of a route answers: it is charged at that one's price."""
        self.served = served
        self._said = self._terms.served_by(served)

    def show(self) -> None:
        """Note that the client is about to see something of the answer."""
        if self._begun is not None:
            self._metering.show(self._begun)

    def tried(self, attempts: int) -> None:
        """Note how often a route has asked its targets, none of which answered."""
        self._said = replace(self._said, attempts=attempts)

    def hit(self, usage: Usage, served: Served | None, percent: int, age_s: int) -> None:
        """The answer is one that was given before: it uses no tokens and costs a share of what it cost then, at the
        prices of now, whatever part of it is read."""
        terms = self._terms
        price = (terms.entry if served is None else terms.served_by(served)).price
        self._hit_nano = 0 if percent == 0 else None if price is None else -(-price.cost_nano(usage) * percent // 100)
        self._said = replace(terms.entry, price=price, provider="cache", attempts=0, cache="hit")
        self.cache, self.age_s = "hit", age_s

    def end(self, outcome: str, usage: Usage | None, *, estimated: bool, first_token_us: int | None = None) -> None:
        """Settle and record; `usage` None: nothing came of it and nothing is charged. Again: nothing."""
        if self._ended:
            return
        self._ended = True
        said, begun, grant, used = self._said, self._begun, self.grant, usage or NO_USAGE
        if usage is None:
            cost_nano: int | None = 0
        elif self.cache == "hit":
            cost_nano, used = self._hit_nano, NO_USAGE
        else:
            cost_nano = None if said.price is None else said.price.cost_nano(used)
        self.cost_nano = cost_nano
        charged_nano = 0 if grant is None else min(cost_nano or 0, grant.nano)
        entry = None
        if begun is not None:
            entry = replace(
                said,
                id=begun.id,
                request_id=begun.request_id,
                at_us=begun.at_us,
                status="voided" if usage is None else "posted",
                outcome=outcome,
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
                cached_tokens=used.cached_tokens,
                reasoning_tokens=used.reasoning_tokens,
                cache_write_tokens=used.cache_write_tokens,
                cache_write_1h_tokens=used.cache_write_1h_tokens,
                prompt_audio_tokens=used.prompt_audio_tokens,
                completion_audio_tokens=used.completion_audio_tokens,
                estimated=estimated and usage is not None,
                cost_nano=cost_nano,
                charged_nano=charged_nano,
                accounts=() if grant is None else grant.durable_accounts,
                latency_us=self._metering.steady_us() - self._started_us,
                first_token_us=first_token_us,
            )
        self.durable = self._metering.charge(said.model, cost_nano or 0, entry)
        if self._reservation is not None:
            tokens = used.prompt_tokens + used.completion_tokens
            self._metering.settle(self._reservation, tokens, charged_nano, self.durable)


class Metering:
    """Makes meters. Without a ledger nothing is recorded; without limits nothing is refused.

    `now_us` is the wall clock, `steady_us` one that is never set. The ids of all reservations begin with `process`.
    """

    def __init__(
        self,
        limiter: Limiter | None = None,
        ledger: Ledger | None = None,
        telemetry: Telemetry | None = None,
        *,
        now_us: Callable[[], int] = wall_us,
        steady_us: Callable[[], int] = steady_us,
        process: str = "",
    ) -> None:
        self._process = process
        # Numbers that follow each other keep the index of the ledger's ids quick to write, and beginning with the time
        # they are new also where two processes were given one name.
        self._numbers = itertools.count(now_us())
        self._limiter = limiter
        self._ledger = ledger
        self._telemetry = telemetry
        self._now_us = now_us
        self.steady_us = steady_us
        self._terms: OrderedDict[tuple[str, str, Kind], Terms] = OrderedDict()

    async def open(self, principal: Principal, target: Target, request_id: str, kind: Kind, request: Request) -> Meter:
        """Reserve the worst case of a request; raises what the client has to be told when it may not run."""
        ledger = self._ledger
        if ledger is not None and ledger.full:
            raise errors.error("overloaded", NOT_RECORDED)
        started_us, now_us = self.steady_us(), self._now_us()
        place = principal.key_id, target.name, kind
        terms = self._terms.get(place)
        if terms is None or not terms.made_for(principal, target, now_us):
            terms = self._agree(place, principal, target)
        identity = f"{self._process}{next(self._numbers):014x}"
        begun = reservation = None
        if ledger is not None:
            begun = replace(terms.entry, id=identity, request_id=request_id, at_us=now_us)
        if terms.plan is not None and self._limiter is not None:
            price = terms.entry.price
            need = need_at(price, request, target.card.context_tokens)
            reservation = self._limiter.reserve_now(identity, terms.plan, need, price, (started_us, now_us))
            if reservation is None:
                reservation = await self._reserve(self._limiter, terms, identity, request, need)
        if ledger is not None and begun is not None:
            ledger.begin(begun)
        return Meter(self, terms, begun, reservation, started_us)

    def _agree(self, place: tuple[str, str, Kind], principal: Principal, target: Target) -> Terms:
        """Work out the terms of a request, for later ones too."""
        plan = None
        if self._limiter is not None:
            plan = self._limiter.plan(principal, target.parent or target.name)
        terms = self._terms[place] = Terms(principal, target, place[2], plan)
        self._terms.move_to_end(place)
        if len(self._terms) > TERMS_MAX:
            self._terms.popitem(last=False)
        return terms

    async def _reserve(
        self, limiter: Limiter, terms: Terms, identity: str, request: Request, need: Need
    ) -> Reservation:
        """Reserve what could not be at once; raises what is in the way."""
        plan, price = terms.plan, terms.entry.price
        assert plan is not None
        decision = await limiter.reserve(identity, plan, need, price)
        if isinstance(decision, Refusal) and decision.kind in ("tokens", "budget") and decision.remaining > 0:
            exact = await _count(terms.target.adapter, request)
            if exact is not None and exact < need.input_tokens:
                decision = await limiter.reserve(identity, plan, replace(need, input_tokens=exact), price)
        if isinstance(decision, Refusal):
            if self._telemetry is not None:
                self._telemetry.refused(decision.kind)
            raise refusal_error(decision)
        return decision

    def show(self, begun: Entry) -> None:
        """A request is known from now on, whatever happens to this process."""
        assert self._ledger is not None
        self._ledger.show(begun.id)

    def charge(self, model: str, cost_nano: int, entry: Entry | None) -> Durable | None:
        """Count a cost, and give its entry to the ledger; done when it is durable."""
        if self._telemetry is not None:
            self._telemetry.charged(model, cost_nano)
        return None if self._ledger is None or entry is None else self._ledger.add(entry)

    def settle(self, reservation: Reservation, tokens: int, charged_nano: int, durable: Durable | None) -> None:
        """Give back what was not used."""
        assert self._limiter is not None
        self._limiter.settle(reservation, tokens, charged_nano, durable)


async def durable(meter: Meter) -> None:
    """Wait until the request's entry is durable; raises `overloaded` when that takes too long. The entry is on its way
    whatever becomes of the waiting."""
    if meter.durable is not None and not meter.durable.done:
        await meter.durable.in_time()


def forecast_nano(request: Request, price: Price, context_tokens: int | None) -> int:
    """What a request costs at most at a price, for comparison with another one."""
    need = need_at(price, request, context_tokens)
    input_nano, unit_nano = price.worst_nano(need.input_tokens, need.choices, need.kept, need.audio)
    return input_nano + need.output_tokens * unit_nano


def need_at(price: Price | None, request: Request, context_tokens: int | None) -> Need:
    """As `need_of`, with what matters where a price tells tokens of one kind from those of another."""
    need = need_of(request, context_tokens)
    if price is None or price.plain:
        return need
    return replace(need, kept=asks_to_keep(request), audio=has_audio(request))


def asks_to_keep(request: Request) -> bool:
    """Whether a provider is to keep its work on the prompt, or part of it, for later ones."""
    match request:
        case Inbound(body=body):
            return b"cache_control" in body or b"prompt_cache" in body
        case ChatRequest(messages=messages, tools=tools):
            parts = (part for message in messages for part in message.parts)
            calls = (call for message in messages for call in message.tool_calls)
            kept = (getattr(one, "cache", None) for one in itertools.chain(messages, parts, calls, tools))
            return any(one is not None for one in kept)
    return False


def has_audio(request: Request) -> bool:
    """Whether there is audio in a prompt, or it asks for some."""
    match request:
        case Inbound(body=body):
            return b"audio" in body
        case ChatRequest(messages=messages):
            return any(isinstance(part, NativePart) for message in messages for part in message.parts)
    return False


def need_of(request: Request, context_tokens: int | None) -> Need:
    """A request's worst case without asking the tokeniser: a token has a byte at least, and the context an end."""
    if isinstance(request, Inbound):
        if request.dialect == "openai_embeddings":
            return Need(inbound_tokens(request.body, request.head.members))
        head = request.head
        tokens = TEMPLATE_TOKENS + len(request.body) if head.plain else inbound_tokens(request.body, head.members)
        return _text_need(tokens, 1, head.n, head.max_tokens, context_tokens)
    match request:
        case ChatRequest():
            asked = request.generation
            return _text_need(chat_bytes(request), 1, asked.n, asked.max_tokens, context_tokens)
        case CompletionRequest():
            prompts = len(request.prompts)
            tokens = _texts(request.prompts) + prompts * len((request.suffix or "").encode())
            choices = prompts * request.generation.n
            return _text_need(tokens, prompts, choices, request.generation.max_tokens, context_tokens)
        case EmbeddingRequest():
            tokens, texts = _texts(request.inputs), len(request.inputs)
        case RerankRequest():
            tokens, texts = _rerank_tokens(request), len(request.documents)
    return Need(tokens if context_tokens is None else min(tokens, texts * context_tokens))


# An image as Anthropic has it; in another order its bytes count as text.
_IMAGE_SOURCE = re.compile(rb'"type"\s*:\s*"base64"\s*,\s*"media_type"\s*:\s*"image/[a-z]+"\s*,\s*"data"\s*:\s*"')


def inbound_tokens(body: bytes, members: Members | None = None) -> int:
    """What a body that nobody has parsed has at most in tokens: a byte of text is one at most.

    An image costs a fixed number, whether it stands in the body or only its address. In a body of more than URLS_BYTES
    the bytes around addresses make up for the images behind them. With its `members` a large body is not searched in
    its long texts, of which images are some.
    """
    tokens, images, at = TEMPLATE_TOKENS + len(body), 0, 0
    outline, place = (body, int) if members is None else (members.outline, members.place)
    if b"base64" in outline:
        while (found := outline.find(b";base64,", at)) >= 0:
            at = outline.find(b'"', found)
            if at < 0:
                break
            tokens -= place(at) - place(found)
            images += 1
        for source in _IMAGE_SOURCE.finditer(outline):
            end = outline.find(b'"', source.end())
            tokens -= max(0, place(end) - place(source.end()))
            images += 1
    if len(body) <= URLS_BYTES and b"image" in body:
        # Each part names its type and has a member of that name.
        images = max(images, (body.count(b'"image_url"') + 1) // 2, body.count(b'"input_image"'))
    return tokens + IMAGE_TOKENS * images


def counted_tokens(body: bytes) -> int:
    """What such a body has about, for a request whose use nobody reports."""
    return (inbound_tokens(body) - TEMPLATE_TOKENS) // TOKEN_BYTES


def _rerank_tokens(request: RerankRequest) -> int:
    """Each document is read with the query and a template of its own."""
    query = len(request.query.encode()) + PAIR_TOKENS
    return sum(query + len(document.encode()) for document in request.documents)


def _text_need(tokens: int, prompts: int, choices: int, max_tokens: int | None, context_tokens: int | None) -> Need:
    longest = OUTPUT_TOKENS if context_tokens is None else context_tokens
    output = longest if max_tokens is None else max_tokens
    if context_tokens is not None:
        tokens, output = min(tokens, prompts * context_tokens), min(output, context_tokens)
    return Need(tokens, output, choices, cuttable=max_tokens is None)


def chat_bytes(request: ChatRequest) -> int:
    """What a conversation has at most in tokens."""
    size = TEMPLATE_TOKENS + sum(_message_bytes(message) for message in request.messages)
    for tool in request.tools:
        size += MESSAGE_TOKENS + 2 * len(tool.parameters) + len((tool.name + tool.description).encode())
    return size


def _message_bytes(message: Message) -> int:
    size = MESSAGE_TOKENS + len(message.text.encode())
    if isinstance(message.content, tuple):
        size += sum(_part_tokens(part) for part in message.content)
    if message.reasoning:
        size += len(message.reasoning.encode())
    size += sum(len(thought.redacted or "") for thought in message.thoughts)
    for call in message.tool_calls:
        size += MESSAGE_TOKENS + len((call.id + call.name + call.arguments).encode())
    return size


def _part_tokens(part: Part) -> int:
    """What a part has at most in tokens beside its text."""
    match part:
        case TextPart():
            return 0
        case DocumentPart(url=str()):
            return DOCUMENT_TOKENS
        case DocumentPart(media_type="application/pdf", data=data):
            return min(DOCUMENT_TOKENS, PAGE_TOKENS * (1 + len(data) // PAGE_BYTES))
        case DocumentPart(data=data):
            return MESSAGE_TOKENS + len(data)
        case NativePart(source=source):
            return len(source)
        case ImagePart() | ImageUrl():
            return IMAGE_TOKENS


def _texts(inputs: tuple[str | tuple[int, ...], ...]) -> int:
    """Each text with the tokens that a model puts around it."""
    return sum(len(one.encode()) + 8 if isinstance(one, str) else len(one) + 8 for one in inputs)


async def _count(adapter: Tokenizer, request: Request) -> int | None:
    """The exact number of input tokens; None where nobody can tell."""
    try:
        match request:
            case ChatRequest():
                if any(not isinstance(part, TextPart) for message in request.messages for part in message.parts):
                    return None
                return (await adapter.apply_template(request))[1]
            case CompletionRequest():
                inputs = request.prompts
                if request.suffix is not None:
                    return None
            case EmbeddingRequest():
                inputs = request.inputs
            case RerankRequest() | Inbound():
                return None
        return sum([await _length(adapter, one) for one in inputs])
    except AdapterError:
        return None


async def _length(adapter: Tokenizer, one: str | tuple[int, ...]) -> int:
    # Embedders put a token on either end even of token ids.
    return 2 + len(await adapter.tokenize(one, special=True) if isinstance(one, str) else one)
