"""`gateway chat`: a conversation in the terminal with any OpenAI-compatible server, over HTTP as every client."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TextIO, TypeVar

import httpx
import msgspec

from gateway.bench import Endpoint, EventSplitter

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
PASTE_GAP_S = 0.05
# What goes around thoughts on a terminal: dimmed, or on one that does no such thing named.
DIMMED, NAMED = ("\x1b[2m", "\x1b[0m"), ("(thinking) ", "")
HELP = "/reset forgets the conversation, /system TEXT sets the instructions, /quit leaves; Ctrl-C stops an answer"

# Control characters could move the cursor or retitle the window, and the bidirectional ones reorder what is read.
_UNSAFE = {code: ascii(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F)}
_UNSAFE |= {code: ascii(chr(code))[1:-1] for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
_UNSAFE |= {0x0A: "\n", 0x09: "\t"}

Turn = dict[str, str]
T = TypeVar("T")


class ChatError(Exception):
    """The server cannot be reached, or it refused; the message is for the person at the terminal."""


class Piece(msgspec.Struct, frozen=True):
    """Text of an answer, or of a thought before it."""

    text: str
    is_thought: bool = False


class _Delta(msgspec.Struct):
    """Servers call thoughts `reasoning_content` or `reasoning`; some send both, which are the same then."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def pieces(self) -> Iterator[Piece]:
        if thought := self.reasoning_content or self.reasoning:
            yield Piece(thought, is_thought=True)
        if self.content:
            yield Piece(self.content)


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    message: str = "unknown error"


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Server:
    """The endpoints of a server that a conversation needs."""

    def __init__(self, url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> None:
        self._endpoint = Endpoint(url=url, model="", api_key=api_key)
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._client = httpx.Client(transport=transport, timeout=timeout, headers=self._endpoint.headers())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """The names a request may ask for."""
        with self._exchange("GET", "/models", None) as response:
            return [model.id for model in msgspec.json.decode(response.read(), type=_Models).data]

    def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """The JSON answer at an encoded API path with its query, such as `/sessions/a%2Fb?model=m`."""
        with self._exchange(method, path, body, headers) as response:
            return msgspec.json.decode(response.read(), type=kind)

    def answer(self, model: str, turns: list[Turn]) -> Generator[Piece, None, None]:
        """The next turn of a conversation in pieces. Closing the iterator closes the connection, which stops it."""
        body = {"model": model, "messages": turns, "stream": True}
        decoder = msgspec.json.Decoder(_Chunk)
        splitter = EventSplitter()
        with self._exchange("POST", "/chat/completions", body) as response:
            for data in response.iter_raw():
                for payload in splitter.feed(data):
                    if payload == b"[DONE]":
                        return
                    chunk = decoder.decode(payload)
                    if chunk.error is not None:
                        raise ChatError(escape(chunk.error.message))
                    for choice in chunk.choices:
                        yield from choice.delta.pieces()
        raise ChatError("the answer was cut off")

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        url = self._endpoint.address("") + path
        content = None if body is None else msgspec.json.encode(body)
        try:
            with self._client.stream(method, url, content=content, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    raise ChatError(_refusal(response))
                yield response
        except httpx.ConnectError:
            raise ChatError(f"no server answers at {url}; start one with `gateway serve`") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatError(f"{url}: {error or type(error).__name__}") from None
        except msgspec.MsgspecError:
            raise ChatError(f"{url} does not speak the OpenAI API") from None


def administration(url: str, api_key: str | None) -> Server:
    """The administration routes of the server at `url`, with or without /v1."""
    return Server(url.rstrip("/").removesuffix("/v1") + "/admin/v1", api_key)


def escape(text: str) -> str:
    """`text` without the power to steer a terminal; line breaks and tabs stay."""
    return text.translate(_UNSAFE)


class Conversation:
    """The turns so far, and the commands that change them."""

    def __init__(self, server: Server, model: str, out: TextIO, system: str | None = None) -> None:
        self._server = server
        self._model = model
        self._out = out
        self._system = system
        self._turns: list[Turn] = []
        self._thinks = False

    def say(self, text: str) -> None:
        """Send a turn and print the answer as it comes; raises ChatError, then the turn is forgotten.

        Ctrl-C stops the answer; what was said until then stays in the history. Thoughts are dimmed on a terminal, and
        nowhere else shown or kept.
        """
        system = [{"role": "system", "content": self._system}] if self._system else []
        turn = {"role": "user", "content": text}
        said: list[str] = []
        try:
            with contextlib.closing(self._server.answer(self._model, [*system, *self._turns, turn])) as pieces:
                for piece in pieces:
                    self._think(piece.is_thought)
                    if not piece.is_thought:
                        said.append(piece.text)
                        self._print(piece.text)
                    elif self._out.isatty():
                        self._print(piece.text)
        except KeyboardInterrupt:
            self._think(False)
            self._print(" [stopped]")
        except ChatError:
            self._think(False)
            if said:
                self._print("\n")
            raise
        self._think(False)
        self._print("\n")
        self._turns += [turn, {"role": "assistant", "content": "".join(said)}]

    def command(self, line: str) -> bool:
        """Carry out a line that starts with a slash; False when it ends the conversation."""
        name, _, rest = line.partition(" ")
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self._turns.clear()
                self._print("The conversation is forgotten.\n")
            case "/system":
                self._system = rest.strip() or None
                self._print("The instructions are set.\n" if self._system else "There are no instructions now.\n")
            case _:
                self._print(HELP + "\n")
        return True

    def _think(self, thinks: bool) -> None:
        """Begin to show thoughts on a terminal, or end it, with an empty line before the answer."""
        if thinks != self._thinks and self._out.isatty():
            dims = os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
            begin, end = DIMMED if dims else NAMED
            self._out.write(begin if thinks else end + "\n\n")
        self._thinks = thinks

    def _print(self, text: str) -> None:
        self._out.write(escape(text))
        self._out.flush()


def chat(
    server: Server, model: str | None, system: str | None, source: TextIO, out: TextIO, read_turn: Callable[[], str]
) -> int:
    """Talk until the end of input; the exit code. Piped input is one turn, answered once."""
    conversation = Conversation(server, model or first_model(server), out, system)
    if not source.isatty():
        text = source.read()
        if not text.strip():
            raise ChatError("standard input is empty")
        conversation.say(text)
        return 0
    out.write(HELP + "\n")
    while True:
        try:
            text = read_turn()
        except EOFError:
            out.write("\n")
            return 0
        except KeyboardInterrupt:
            out.write("\n/quit leaves\n")
            continue
        if text.startswith("/"):
            if not conversation.command(text):
                return 0
        elif text.strip():
            try:
                conversation.say(text)
            except ChatError as error:
                print(f"error: {error}", file=sys.stderr)


def read_turn() -> str:
    """A turn from the terminal. Lines that arrive together were pasted and belong together; `\\` at an end goes on."""
    lines = [input("> ")]
    while lines[-1].endswith("\\") or select.select([sys.stdin], [], [], PASTE_GAP_S)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(line.removesuffix("\\") for line in lines)


def first_model(server: Server) -> str:
    """The model to use when nobody chose one."""
    models = server.models()
    if not models:
        raise ChatError("the server has no models")
    return models[0]


def _refusal(response: httpx.Response) -> str:
    """What a status other than 200 means to the person at the terminal."""
    try:
        message = msgspec.json.decode(response.read(), type=_Chunk).error or _Error(f"HTTP {response.status_code}")
    except msgspec.MsgspecError:
        message = _Error(f"HTTP {response.status_code}")
    hint = "; pass a key with --key or GATEWAY_API_KEY" if response.status_code == httpx.codes.UNAUTHORIZED else ""
    return escape(message.message.rstrip(".") + hint if hint else message.message)
