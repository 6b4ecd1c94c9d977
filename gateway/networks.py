"""Networks by CIDR, and whether an address is in one of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks:
    """A list of networks such as `10.0.0.0/8`, or of single addresses. ValueError names the first that is none."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._networks = tuple(parse_network(text) for text in texts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, address: object) -> bool:
        """Whether the address, or its text, is in any of them; what is no address is in none."""
        found = parse_address(address) if isinstance(address, str) else address
        return found is not None and any(found in network for network in self._networks)

    def covers(self, text: str) -> bool:
        """Whether the whole network of that text lies in one of these."""
        inner = parse_network(text)
        return any(_inside(inner, network) for network in self._networks)


def _inside(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def parse_network(text: str) -> Network:
    """The network of a text; ValueError says what it should look like."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"{text[:50]!r} is neither an address nor a network such as 10.0.0.0/8, whose last bits have to be zero"
        ) from None


def parse_address(text: str) -> Address | None:
    """The address of a text, None for any other text; one of IPv4 inside of IPv6 is the same as the plain one."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def client_address(peer: str, forwarded: Iterable[str], proxies: Networks) -> str:
    """Where a request came from: `peer`, or what proxies that are trusted say of it in `X-Forwarded-For`.

    Each proxy adds at the right whom it heard from, so the list is read from there, and what an untrusted peer wrote is
    not read at all. Empty when a trusted proxy names something that is no address.
    """
    address = peer
    hops = [hop for value in forwarded for hop in value.split(",")]
    while address in proxies and hops:
        found = _hop(hops.pop().strip())
        if found is None:
            return ""
        address = str(found)
    return address


def _hop(text: str) -> Address | None:
    """An entry of the list, which may have a port: `1.2.3.4:80` or `[::1]:80`."""
    if text.startswith("["):
        return parse_address(text[1:].partition("]")[0])
    host, colon, port = text.partition(":")
    return parse_address(host if colon and port.isdecimal() and "." in host else text)
