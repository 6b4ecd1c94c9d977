"""What a process that asks says to the one that has the engines, and back.

Frames as between a gateway and its workers (`adapters/llama_cpp/messages.py`), each a list of messages. `id` is chosen
by who asks and never used again on its connection. Of a stream the host sends at most WINDOW events that were not asked
for; the guest says how many more it can take. Nothing here is trusted any less than the process itself, as the socket
lies in a folder of the same user.
"""

from __future__ import annotations

import msgspec

from adapters import errors
from adapters.errors import AdapterError
from adapters.llama_cpp import Status
from adapters.llama_cpp.messages import SessionCounters
from adapters.llama_cpp.pool import Verb
from adapters.llama_cpp.resident import Placement
from adapters.types import (
    Caller,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    EmbeddingRequest,
    Embeddings,
    Finished,
    ModelCard,
    Ranking,
    ReasoningDelta,
    RefusalDelta,
    RerankRequest,
    SessionAction,
    SessionInfo,
    Started,
    TextDelta,
    ToolCallDelta,
)

# Events of one stream that nobody has taken yet.
WINDOW = 256


class _Ask(msgspec.Struct, frozen=True, tag=True, array_like=True):
    id: int


class _AskModel(_Ask, frozen=True):
    model: str


class Chat(_AskModel, frozen=True):
    request: ChatRequest
    caller: Caller


class Complete(_AskModel, frozen=True):
    request: CompletionRequest
    caller: Caller


class Embed(_AskModel, frozen=True):
    request: EmbeddingRequest
    caller: Caller


class Rerank(_AskModel, frozen=True):
    request: RerankRequest
    caller: Caller


class Tokenize(_AskModel, frozen=True):
    text: str
    special: bool


class Detokenize(_AskModel, frozen=True):
    tokens: list[int]


class Render(_AskModel, frozen=True):
    request: ChatRequest


class ListSessions(_AskModel, frozen=True):
    tenant: str | None


class ChangeSession(_AskModel, frozen=True):
    tenant: str
    key: str
    action: SessionAction
    new_key: str | None


class Change(_AskModel, frozen=True):
    """What an operator wants of a model's place in memory."""

    verb: Verb
    force: bool


class Call(_Ask, frozen=True):
    """A question to another part of the process than its models, in the words of that part."""

    part: str
    body: bytes


class More(_Ask, frozen=True):
    """So many more events of a stream can be taken."""

    count: int


class Cancel(_Ask, frozen=True):
    """Nobody waits for this any more."""


class Metrics(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What the guest of this number counts, as text; empty when it is gone. The host passes it on to the others."""

    number: int
    text: bytes


ModelQuestion = (
    Chat | Complete | Embed | Rerank | Tokenize | Detokenize | Render | ListSessions | ChangeSession | Change
)
Question = ModelQuestion | Call
Asked = Question | More | Cancel | Metrics


class HasStarted(_Ask, frozen=True):
    value: Started


class HasText(_Ask, frozen=True):
    value: TextDelta


class HasReasoning(_Ask, frozen=True):
    value: ReasoningDelta


class HasRefusal(_Ask, frozen=True):
    value: RefusalDelta


class HasCall(_Ask, frozen=True):
    value: ToolCallDelta


class HasChoice(_Ask, frozen=True):
    value: ChoiceFinished


class HasFinished(_Ask, frozen=True):
    value: Finished


class Embedded(_Ask, frozen=True):
    value: Embeddings


class Ranked(_Ask, frozen=True):
    value: Ranking


class Tokens(_Ask, frozen=True):
    value: list[int]


class Text(_Ask, frozen=True):
    value: str


class Rendered(_Ask, frozen=True):
    value: tuple[str, int]


class Sessions(_Ask, frozen=True):
    value: list[SessionInfo]


class Session(_Ask, frozen=True):
    value: SessionInfo | None


class Changed(_Ask, frozen=True):
    value: bool


class Answered(_Ask, frozen=True):
    value: bytes


class Failed(_Ask, frozen=True):
    """`kind` is the name of the error's class."""

    kind: str
    message: str
    code: str
    param: str | None
    retry_after_s: float | None


class Model(msgspec.Struct, frozen=True):
    """How a model is at the moment; `eta_s` None is for ever, `place` None for a model that is in no pool."""

    name: str
    status: Status
    card: ModelCard
    sessions: SessionCounters
    restarts: int
    eta_s: float | None
    place: Placement | None


class State(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """How all models are. The first message of every connection, and sent again when it has changed."""

    models: list[Model]
    taken_bytes: int = 0
    memory_bytes_max: int = 0


Event = HasStarted | HasText | HasReasoning | HasRefusal | HasCall | HasChoice | HasFinished
Value = Embedded | Ranked | Tokens | Text | Rendered | Sessions | Session | Changed | Answered
Told = Event | Value | Failed | State | Metrics

# The message of each type of event.
EVENTS = {
    Started: HasStarted,
    TextDelta: HasText,
    ReasoningDelta: HasReasoning,
    RefusalDelta: HasRefusal,
    ToolCallDelta: HasCall,
    ChoiceFinished: HasChoice,
    Finished: HasFinished,
}


def failed(id: int, error: AdapterError) -> Failed:
    return Failed(id, type(error).__name__, error.message, error.code, error.param, error.retry_after_s)


def error_of(told: Failed) -> AdapterError:
    """The error that the host raised."""
    kind = getattr(errors, told.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, AdapterError)) or kind is errors.UpstreamRefused:
        kind = errors.EngineFailed
    return kind(told.message, code=told.code, param=told.param, retry_after_s=told.retry_after_s)
