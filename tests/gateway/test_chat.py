"""The terminal conversation against a scripted server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest

from gateway.chat import HELP, ChatError, Conversation, Server, chat, escape

Bodies = list[dict[str, object]]


class Terminal(io.StringIO):
    """Standard input with a person behind it."""

    def isatty(self) -> bool:
        return True


def piece(text: str, field: str = "content") -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"delta": {field: text}}]}) + b"\n\n"


DONE = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n'


class Pieces(httpx.SyncByteStream):
    """A body that arrives as given and notes whether it was closed."""

    def __init__(self, chunks: list[bytes | BaseException]) -> None:
        self._chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed = True


def server(*answers: Pieces | httpx.Response, bodies: Bodies | None = None) -> Server:
    """A server that plays `answers` one after the other and has two models."""
    waiting = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer k"
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"object": "list", "data": [{"id": "one"}, {"id": "two"}]})
        assert request.url.path == "/v1/chat/completions"
        if bodies is not None:
            bodies.append(msgspec.json.decode(request.content))
        answer = waiting.pop(0)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, stream=answer)

    return Server("http://test", "k", httpx.MockTransport(handle))


def turns(*lines: str | type[BaseException]) -> Callable[[], str]:
    """A person who types `lines`, or presses a key that raises."""
    waiting = list(lines)

    def read() -> str:
        line = waiting.pop(0) if waiting else EOFError
        if isinstance(line, str):
            return line
        raise line

    return read


def talk(remote: Server, *lines: str | type[BaseException], system: str | None = None) -> str:
    out = io.StringIO()
    with remote:
        assert chat(remote, None, system, Terminal(), out, turns(*lines)) == 0
    return out.getvalue()


def test_history_is_kept_and_reset() -> None:
    bodies: Bodies = []
    remote = server(*(Pieces([piece("An"), piece(f"swer {i}"), DONE]) for i in range(4)), bodies=bodies)
    out = talk(remote, "a", "", "b", "/reset", "c", "/system Be brief.", "d\nd", "/quit", "never", system="S")
    assert out.startswith(HELP)
    assert "Answer 0\nAnswer 1\nThe conversation is forgotten.\nAnswer 2\nThe instructions are set.\nAnswer 3\n" in out
    assert [body["model"] for body in bodies] == ["one"] * 4
    system = {"role": "system", "content": "S"}
    first = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Answer 0"}]
    assert bodies[1]["messages"] == [system, *first, {"role": "user", "content": "b"}]
    assert bodies[2]["messages"] == [system, {"role": "user", "content": "c"}]
    last = bodies[3]["messages"]
    assert isinstance(last, list)
    assert last[0] == {"role": "system", "content": "Be brief."}
    assert last[-1] == {"role": "user", "content": "d\nd"}


def test_an_answer_cannot_steer_the_terminal() -> None:
    out = talk(server(Pieces([piece("\x1b]0;pwned\x07a\r\x9b2J\u202eb\u2028\t\nç"), DONE])), "a")
    assert "\\x1b]0;pwned\\x07a\\x0d\\x9b2J\\u202eb\\u2028\t\nç" in out.replace("\\r", "\\x0d")
    assert not any(character in out for character in "\x1b\x07\r\x9b\u202e\u2028")
    assert escape("plain text\n") == "plain text\n"


def test_pieces_may_be_cut_anywhere() -> None:
    whole = piece("grüß") + b": comment\n\n" + piece(" data: [DONE]\n\n") + DONE
    for size in (1, 3, 7):
        chunks: list[bytes | BaseException] = [whole[i : i + size] for i in range(0, len(whole), size)]
        assert "grüß data: [DONE]\n\n" in talk(server(Pieces(chunks)), "a")


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    bodies: Bodies = []
    stopped = Pieces([piece("Once upon"), KeyboardInterrupt(), piece(" never")])
    out = talk(server(stopped, Pieces([piece("ok"), DONE]), bodies=bodies), "story", KeyboardInterrupt, "go on")
    assert "Once upon [stopped]\n" in out
    assert stopped.closed, "the server learns of it by the closed connection"
    messages = bodies[1]["messages"]
    assert isinstance(messages, list)
    assert messages[1] == {"role": "assistant", "content": "Once upon"}


THINKING: list[bytes | BaseException] = [
    piece("It is", "reasoning_content"),
    piece(" four\x1b[0m.", "reasoning"),
    piece("4"),
    DONE,
]


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"TERM": "xterm"}, "\x1b[2mIt is four\\x1b[0m.\x1b[0m\n\n4\n"),
        ({"TERM": "dumb"}, "(thinking) It is four\\x1b[0m.\n\n4\n"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "(thinking) It is four\\x1b[0m.\n\n4\n"),
    ],
)
def test_thoughts_are_dimmed_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], shown: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    bodies: Bodies = []
    out = Terminal()
    talking = Conversation(server(Pieces(THINKING), Pieces([piece("ok"), DONE]), bodies=bodies), "one", out)
    talking.say("2 + 2?")
    assert out.getvalue() == shown
    talking.say("and?")
    messages = bodies[1]["messages"]
    assert isinstance(messages, list)
    assert messages[1] == {"role": "assistant", "content": "4"}, "thoughts are no part of the history"


def test_thoughts_go_to_no_file_and_no_pipe() -> None:
    out = io.StringIO()
    assert chat(server(Pieces(THINKING)), "one", None, io.StringIO("2 + 2?"), out, turns()) == 0
    assert out.getvalue() == "4\n"


def test_a_thought_that_is_stopped_or_fails_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    thought = piece("Hm", "reasoning_content")
    stopped, broken = Pieces([thought, KeyboardInterrupt()]), Pieces([thought])
    out = Terminal()
    talking = Conversation(server(stopped, broken), "one", out)
    talking.say("a")
    assert out.getvalue() == "\x1b[2mHm\x1b[0m\n\n [stopped]\n"
    with pytest.raises(ChatError, match="cut off"):
        talking.say("b")
    assert out.getvalue().endswith("\x1b[2mHm\x1b[0m\n\n")


def test_errors_are_shown_and_the_turn_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    bodies: Bodies = []
    refused = httpx.Response(429, json={"error": {"message": "The queue is full.\x1b[0m", "code": "queue_full"}})
    broken = Pieces([piece("Half"), b'data: {"error":{"message":"the engine died"}}\n\n'])
    remote = server(refused, broken, Pieces([piece("cut")]), Pieces([piece("ok"), DONE]), bodies=bodies)
    out = talk(remote, "a", "b", "c", "d")
    assert out.removeprefix(HELP + "\n") == "Half\ncut\nok\n\n", "there is no line for what was never said"
    assert capsys.readouterr().err.splitlines() == [
        "error: The queue is full.\\x1b[0m",
        "error: the engine died",
        "error: the answer was cut off",
    ]
    assert bodies[3]["messages"] == [{"role": "user", "content": "d"}]


def test_piped_input_is_one_turn() -> None:
    out = io.StringIO()
    bodies: Bodies = []
    remote = server(Pieces([piece("4"), DONE]), bodies=bodies)
    assert chat(remote, "two", None, io.StringIO("2 + 2\n= ?\n"), out, turns()) == 0
    assert out.getvalue() == "4\n"
    assert bodies[0] == {"model": "two", "messages": [{"role": "user", "content": "2 + 2\n= ?\n"}], "stream": True}
    with pytest.raises(ChatError, match="standard input is empty"):
        chat(remote, "two", None, io.StringIO(" \n"), out, turns())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(401, json={"error": {"message": "No."}}), "No; pass a key with --key or GATEWAY_API_KEY"),
        (httpx.Response(502, text="<html>"), "HTTP 502"),
        (httpx.Response(302, headers={"location": "http://elsewhere"}), "HTTP 302"),
        (Pieces([b"data: <html>\n\n"]), "http://test/v1/chat/completions does not speak the OpenAI API"),
        (Pieces([httpx.ReadError("reset")]), "http://test/v1/chat/completions: reset"),
    ],
)
def test_refusals_in_one_line(answer: Pieces | httpx.Response, message: str) -> None:
    with pytest.raises(ChatError) as caught:
        Conversation(server(answer), "one", io.StringIO()).say("a")
    assert str(caught.value) == message


def test_unusable_addresses() -> None:
    with (
        pytest.raises(ChatError, match=r"no server answers at http://127\.0\.0\.1:9/v1/models"),
        Server("http://127.0.0.1:9", None) as remote,
    ):
        remote.models()
    with pytest.raises(ChatError), Server("ftp://nowhere", None) as remote:
        remote.models()


def test_a_server_without_models() -> None:
    empty = httpx.MockTransport(lambda _: httpx.Response(200, json={"data": []}))
    with pytest.raises(ChatError, match="the server has no models"):
        chat(Server("http://test/v1", None, empty), None, None, Terminal(), io.StringIO(), turns())
