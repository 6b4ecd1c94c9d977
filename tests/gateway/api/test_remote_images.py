"""Images behind web addresses, without a network: names and answers are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpcore
import pytest

from adapters.errors import InvalidRequest
from adapters.public import is_public
from adapters.types import ChatRequest, ImagePart, ImageUrl, Message, TextPart
from gateway.api import remote_images
from gateway.api.remote_images import RemoteImages
from gateway.config import ImagesConfig

PUBLIC = "93.184.216.34"


def answer(body: bytes = b"png", status: str = "200 OK", **fields: str) -> bytes:
    head = {"content-type": "image/png", "content-length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


class Web(httpcore.AsyncNetworkBackend):
    """Names with their addresses, and what a host answers to any request; notes where connections go."""

    def __init__(self, names: dict[str, list[str]], answers: dict[str, bytes]) -> None:
        self._names = names
        self._answers = answers
        self._asked = ""
        self.connected: list[str] = []
        self.resolved: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        self._asked = host
        return self._names.get(host, [host])

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature.
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return httpcore.AsyncMockStream([self._answers[self._asked]])


def fetch(web: Web, url: str, *, remote: bool = True, hosts: tuple[str, ...] = (), bytes_max: int = 1024) -> ImagePart:
    async def run() -> ChatRequest:
        config = ImagesConfig(remote=remote, hosts=hosts, bytes_max=bytes_max)
        images = RemoteImages(config, resolve=web.resolve, network=web)
        return await images.fetched(ChatRequest("m", (Message("user", (TextPart("a"), ImageUrl(url))),)))

    content = asyncio.run(run()).messages[0].content
    assert isinstance(content, tuple) and isinstance(content[1], ImagePart)
    return content[1]


def refusal(web: Web, url: str, **settings: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        fetch(web, url, **settings)
    assert caught.value.param == "messages[0].content[1]"
    return caught.value.message


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1::1", "2a00:1450:4001:81b::200e"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


REFUSED = """\
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 169.254.169.254 169.254.170.2 172.16.0.1
172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1
239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:8.8.8.8
64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:0:53aa:64c:0:5efe:7f00:1 2001:db8::1 2001:10::1
2002:7f00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 localhost
"""


@pytest.mark.parametrize("address", REFUSED.split())
def test_all_other_addresses_are_refused_before_a_connection(address: str) -> None:
    assert not is_public(address)
    web = Web({"evil.example": [address], "mixed.example": [PUBLIC, address]}, {})
    assert "could not be fetched" in refusal(web, "https://evil.example/a.png")
    assert "could not be fetched" in refusal(web, "http://mixed.example/a.png")
    assert not web.connected


def test_an_image_is_fetched_from_the_address_that_was_checked() -> None:
    web = Web({"good.example": [PUBLIC]}, {"good.example": answer(b"an image")})
    assert fetch(web, "http://good.example/a.png?x=1") == ImagePart(b"an image", "image/png")
    assert (web.resolved, web.connected) == (["good.example"], [PUBLIC])


def test_nothing_is_fetched_unless_it_is_switched_on() -> None:
    web = Web({}, {})
    assert "data: URL" in refusal(web, "https://good.example/a.png", remote=False)
    assert not web.resolved


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://user@good.example/",
        "http://user:secret@good.example/",
        "http://good.example:22/",
        "https://good.example:80/",
        "http://good.example:99999/",
        "http:///a.png",
        "http://",
        "https://good.example@127.0.0.1/",
    ],
)
def test_bad_addresses_are_refused(url: str) -> None:
    web = Web({"good.example": [PUBLIC]}, {"good.example": answer()})
    refusal(web, url)
    assert not web.connected


@pytest.mark.parametrize(
    "target", ["http://inner.example/", "http://169.254.169.254/", "file:///etc/passwd", "ftp://x/"]
)
def test_a_redirect_is_checked_like_the_first_address(target: str) -> None:
    web = Web(
        {"good.example": [PUBLIC], "inner.example": ["10.0.0.1"]},
        {"good.example": answer(b"", "302 Found", location=target)},
    )
    refusal(web, "http://good.example/")
    assert web.connected == [PUBLIC]


def test_redirects_are_followed_and_bounded() -> None:
    names = {"a.example": [PUBLIC], "b.example": [PUBLIC]}
    good = Web(names, {"a.example": answer(b"", "301 Moved", location="//b.example/x"), "b.example": answer()})
    assert fetch(good, "http://a.example/").data == b"png"
    loop = Web(names, {"a.example": answer(b"", "301 Moved", location="http://a.example/x", connection="close")})
    refusal(loop, "http://a.example/")
    assert len(loop.connected) <= remote_images.REDIRECTS_MAX + 1


def test_only_listed_hosts_are_asked_when_there_is_a_list() -> None:
    names = {host: [PUBLIC] for host in ("cdn.example", "eu.cdn.example", "notcdn.example")}
    web = Web(names, dict.fromkeys(names, answer()))
    for host in ("cdn.example", "eu.cdn.example"):
        assert fetch(Web(names, dict.fromkeys(names, answer())), f"http://{host}/", hosts=("cdn.example",))
    assert "this host" in refusal(web, "http://notcdn.example/", hosts=("cdn.example",))
    assert not web.resolved


@pytest.mark.parametrize(
    "reply",
    [
        answer(content_type="text/html"),
        answer(content_type="image/svg+xml"),
        answer(content_encoding="gzip"),
        answer(status="404 Not Found"),
        answer(bytes(2000)),
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_small_image_is_refused(reply: bytes) -> None:
    refusal(Web({"good.example": [PUBLIC]}, {"good.example": reply}), "http://good.example/")


def test_no_more_is_fetched_than_a_request_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.dialects.openai_parts.IMAGES_BYTES_MAX", 150)
    web = Web({}, {PUBLIC: answer(b"x" * 100)})
    images = RemoteImages(ImagesConfig(remote=True), resolve=web.resolve, network=web)
    message = Message("user", (ImageUrl(f"http://{PUBLIC}/"),) * 2)
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(images.fetched(ChatRequest("m", (message, message))))
    assert (caught.value.param, len(web.connected)) == ("messages[0].content[1]", 2)


def test_where_messages_are_counted_otherwise_the_field_is_named() -> None:
    request = ChatRequest("m", (Message("user", (ImageUrl("https://example.com/a.png"),)),))
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(RemoteImages(ImagesConfig()).fetched(request, "input"))
    assert caught.value.param == "input"
