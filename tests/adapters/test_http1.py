from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import httptools
import httpx
import pytest

from adapters import proxied
from adapters.bursts import Burst
from adapters.connection import Bounds, Connection, Timeouts
from adapters.errors import AdapterError, BrokeOff, Timeout, Unreachable
from adapters.http1 import Client, Keeping, Origin, interleaved, parse_url, render_head, translated
from tests.adapters.upstream import OK, Kept, Peer, answering, both_loops, client, head_of, run, upstream

Loop = Callable[[], asyncio.AbstractEventLoop]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_who_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        door = client()
        with pytest.raises(Unreachable) as refused:
            await door.wire(Origin("http", "127.0.0.1", free_port())).send(b"", b"", Kept())
        assert "127" not in refused.value.message
        loop = asyncio.get_running_loop()

        async def nowhere(*_: object, **__: object) -> list[object]:
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(loop, "getaddrinfo", nowhere, raising=False)
        with pytest.raises(Unreachable, match="no address"):
            await door.wire(Origin("http", "nowhere.invalid", 80)).send(b"", b"", Kept())
        await door.close()

    run(main(), asyncio.new_event_loop)


def test_who_does_not_shake_hands_is_late() -> None:
    """So that a client waits for one such target only once, and is told 504."""

    async def silent(peer: Peer) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        async with upstream(silent) as up:
            door = Client(proxies={}, timeouts=Timeouts(connect_s=0.05))
            with pytest.raises(Timeout, match="connection"):
                await door.wire(Origin("https", "127.0.0.1", up.port)).send(b"", b"", Kept())
            await door.close()

    run(main())


def test_a_second_address_helps_and_names_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def main() -> None:
        nonlocal asked
        door = client()
        async with upstream(answering(OK, close=True)) as up:

            async def found(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
                nonlocal asked
                asked += 1
                return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1", "::1")]

            loop = asyncio.get_running_loop()
            original = loop.create_connection
            monkeypatch.setattr(loop, "getaddrinfo", found)

            async def connect(factory: object, address: str, *args: object, **kwargs: object) -> object:
                if address != "127.0.0.1":
                    raise ConnectionRefusedError
                return await original(factory, address, *args, **kwargs)  # type: ignore[call-overload]

            monkeypatch.setattr(loop, "create_connection", connect)
            origin = Origin("http", "some.test", up.port)
            for _ in range(4):
                kept = Kept()
                await door.wire(origin).send(render_head("GET", "/", origin, []), b"", kept)
                assert kept.data == b"hello"
            assert asked == 1
            monkeypatch.setattr("adapters.http1.RESOLVED_S", -1.0)
            await door.wire(origin).send(render_head("GET", "/", origin, []), b"", Kept())
            assert asked == 2
            # Who answers no more keeps nobody from the addresses known last.
            monkeypatch.setattr("adapters.http1.RESOLVING_S", 0.01)
            monkeypatch.setattr(loop, "getaddrinfo", lambda *_, **__: asyncio.Event().wait())
            await door.wire(origin).send(render_head("GET", "/", origin, []), b"", kept := Kept())
            assert kept.data == b"hello"
        await door.close()

    run(main(), asyncio.new_event_loop)


def test_a_silent_address_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        door = client()
        async with upstream(answering(OK)) as up:
            loop = asyncio.get_running_loop()
            original = loop.create_connection

            async def found(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
                return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.1", "10.255.255.1")]

            async def connect(factory: object, address: str, *args: object, **kwargs: object) -> object:
                if address != "127.0.0.1":
                    await asyncio.Event().wait()
                return await original(factory, address, *args, **kwargs)  # type: ignore[call-overload]

            monkeypatch.setattr(loop, "getaddrinfo", found)
            monkeypatch.setattr(loop, "create_connection", connect)
            origin = Origin("http", "some.test", up.port)
            kept = Kept()
            await door.wire(origin).send(render_head("GET", "/", origin, []), b"", kept)
            assert kept.data == b"hello"
        await door.close()

    run(main(), asyncio.new_event_loop)


def test_a_connection_that_ends_before_it_is_used_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greets(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n")

    async def main() -> None:
        door = client(keeping=Keeping(connections_max=1))
        async with upstream(greets) as up:

            async def found(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
                return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
            origin = Origin("http", "some.test", up.port)
            for _ in range(3):
                with pytest.raises(BrokeOff):
                    await door.wire(origin).send(render_head("GET", "/", origin, []), b"", Kept())
            assert door.connections == 0
        await door.close()

    run(main(), asyncio.new_event_loop)


def test_who_gives_up_too_late_leaves_the_next_request_alone() -> None:
    class Line(asyncio.Transport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            pass

        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

    async def main() -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(loop, Bounds(), lambda connection, reusable: None, Burst())
        connection.connection_made(Line())
        first = asyncio.create_task(connection.run(b"1", Kept(), Timeouts()))
        await asyncio.sleep(0)
        kept = Kept()
        # All of this happens in one turn of the loop, before the first notices that it has its answer.
        loop.call_soon(connection.data_received, OK)
        second = asyncio.create_task(connection.run(b"2", kept, Timeouts()))
        loop.call_soon(first.cancel)
        await asyncio.wait([first])
        connection.data_received(OK)
        await second
        assert first.cancelled() and kept.data == b"hello"

    run(main(), asyncio.new_event_loop)


@pytest.mark.parametrize(("dead_s", "again"), [(20.0, True), (-1.0, False)])
def test_only_what_ends_at_once_is_sent_once_more(dead_s: float, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    async def main() -> None:
        monkeypatch.setattr("adapters.http1.DEAD_S", dead_s)
        door, kept = client(), Kept()
        async with upstream(script) as up:
            await door.wire(up.origin).send(head_of(up), b"{}", Kept())
            with nullcontext() if again else pytest.raises(BrokeOff):
                await door.wire(up.origin).send(head_of(up), b"{}", kept)
            assert (up.accepted, kept.data) == ((2, b"hello") if again else (1, b""))
        await door.close()

    run(main())


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    alternative = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = builder.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return cert, private


@both_loops
def test_tls_names_are_checked(tmp_path: Path, factory: Loop) -> None:
    cert, private = certificate(tmp_path, "good.test")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, private)

    async def main() -> None:
        trusting = client(context=lambda: ssl.create_default_context(cafile=str(cert)))
        wary = client()
        async with upstream(answering(OK), context=serving) as up:

            async def send(door: Client, host: str) -> bytes:
                origin = Origin("https", host, up.port, address="127.0.0.1")
                kept = Kept()
                await door.wire(origin).send(render_head("GET", "/", origin, []), b"", kept)
                return kept.data

            assert [await send(trusting, "good.test") for _ in range(2)] == [b"hello"] * 2
            assert up.accepted == 1
            with pytest.raises(Unreachable, match="certificate"):
                await send(trusting, "evil.test")
            with pytest.raises(Unreachable, match="certificate"):
                await send(wary, "good.test")

        async def plain_text(peer: Peer) -> None:
            await peer.send(OK)

        async with upstream(plain_text) as plain:
            with pytest.raises(Unreachable, match="TLS"):
                origin = Origin("https", "good.test", plain.port, address="127.0.0.1")
                await trusting.wire(origin).send(render_head("GET", "/", origin, []), b"", Kept())
        await trusting.close()
        await wary.close()

    run(main(), factory)


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://api.test/v1/", Origin("https", "api.test", 443), "/v1"),
        ("http://10.0.0.1:8080", Origin("http", "10.0.0.1", 8080), ""),
        ("http://[::1]:8080/x", Origin("http", "::1", 8080), "/x"),
    ],
)
def test_urls(url: str, origin: Origin, path: str) -> None:
    assert parse_url(url) == (origin, path)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.test",
        "//a.test",
        "https://",
        "https://u:p@a.test",
        "https://a.test/?q",
        "https://a.test/#f",
        "http://a b/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_url(url)


def test_authorities() -> None:
    assert Origin("http", "::1", 80).authority == "[::1]"
    assert Origin("https", "a.test", 443).authority == "a.test"
    assert Origin("https", "a.test", 80).authority == "a.test:80"


@pytest.mark.parametrize(("name", "value"), [("a", "b\r\nc: d"), ("a:", "b"), ("a b", "c"), ("a", "\x00")])
def test_headers_that_would_be_two_are_not_sent(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        render_head("GET", "/", Origin("http", "a.test", 80), [(name, value)])


def test_families_take_turns() -> None:
    assert interleaved(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]) == ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"]


def subclasses(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in subclasses(sub))]


@pytest.mark.parametrize("kind", [*subclasses(httpx.HTTPError), *subclasses(httpx.StreamError), httpx.InvalidURL])
def test_every_exception_of_httpx_is_mapped(kind: type[Exception]) -> None:
    raised = kind.__new__(kind)
    assert isinstance(proxied.translated(raised), AdapterError)


@pytest.mark.parametrize(
    "kind", [OSError, TimeoutError, ConnectionResetError, socket.gaierror, ssl.SSLError, UnicodeError]
)
def test_every_exception_of_a_connection_is_mapped(kind: type[Exception]) -> None:
    assert isinstance(translated(kind()), AdapterError)


def test_the_parser_raises_nothing_that_is_not_caught() -> None:
    from httptools.parser import errors as found

    kinds = [getattr(found, name) for name in found.__all__]
    assert all(issubclass(kind, httptools.HttpParserError | httptools.HttpParserUpgrade) for kind in kinds)


def test_a_bug_of_ours_stays_one() -> None:
    with pytest.raises(ZeroDivisionError):
        translated(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        proxied.translated(ZeroDivisionError())


def test_behind_a_proxy_a_connection_that_has_died_is_no_failure() -> None:
    requests: list[int] = []

    async def script(peer: Peer) -> None:
        """The first two connections die with a request that came; the first of these has been used before."""
        await peer.request()
        requests.append(len(requests))
        if len(requests) == 1:
            await peer.send(OK)
            await peer.request()
            requests.append(len(requests))
        elif len(requests) == 3:
            await peer.send(OK)

    async def main() -> None:
        async with upstream(script) as up:
            door = Client(proxies={"http": f"http://127.0.0.1:{up.port}"})
            origin = Origin("http", "far.test", 80)
            head = render_head("POST", "/v1/x", origin, [])
            for _ in range(2):
                kept = Kept()
                await door.wire(origin).send(head, b"{}", kept)
                assert (kept.status, kept.data) == (200, b"hello")
            with pytest.raises(BrokeOff):
                await door.wire(origin).send(head, b"{}", Kept())
            await door.close()
        assert len(requests) == 4

    run(main())


def test_a_proxy_of_the_environment_is_used() -> None:
    """The proxy is an upstream that is asked for absolute URLs."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        head, body = await peer.request()
        seen.append(head.split(b"\r\n")[0] + b" " + body)
        await peer.send(OK)

    async def main() -> None:
        async with upstream(script) as up:
            door = Client(proxies={"http": f"http://127.0.0.1:{up.port}"})
            origin = Origin("http", "far.test", 80)
            kept = Kept()
            await door.wire(origin).send(render_head("POST", "/v1/x", origin, []), b"{}", kept)
            assert (kept.status, kept.data) == (200, b"hello")
            assert seen == [b"POST http://far.test/v1/x HTTP/1.1 {}"]
            # One address of a name is reached without it.
            pinned = Origin("http", "far.test", up.port, "127.0.0.1")
            await door.wire(pinned).send(render_head("POST", "/v1/x", pinned, []), b"{}", kept)
            assert seen[1:] == [b"POST /v1/x HTTP/1.1 {}"]
            await door.close()
        lost = Client(proxies={"http": f"http://127.0.0.1:{free_port()}"})
        with pytest.raises(Unreachable):
            await lost.wire(origin).send(render_head("POST", "/v1/x", origin, []), b"{}", Kept())
        await lost.close()

    run(main())
