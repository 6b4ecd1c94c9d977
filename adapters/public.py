"""What belongs to the public internet."""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from urllib.parse import unquote, urlsplit

# What Python's `is_global` of some version lets pass, or what leads back to an IPv4 address.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16"),
    )
)
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
# Names that nobody on the internet has.
_INSIDE = ("localhost", "internal", "local")


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet. One that wraps an IPv4 address never does."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and ip not in _PUBLIC_V6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _REFUSED)


def _as_resolved(host: str) -> str:
    """A host as those who follow addresses read it: what is escaped, other forms of letters and digits, other dots."""
    return unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").lower().rstrip(".")


def leads_inside(url: str) -> bool:
    """Whether a web address is none of the public internet by what it says. What a name leads to is not asked."""
    try:
        host = _as_resolved(urlsplit(url).hostname or "")
    except ValueError:
        return True
    if not host or host.rpartition(".")[2] in _INSIDE:
        return True
    try:
        # As resolvers read it: `2130706433`, `0x7f.1` and `127.1` are addresses too.
        return not is_public(socket.inet_ntoa(socket.inet_aton(host)))
    except (OSError, UnicodeError):
        return ":" in host and not is_public(host)
