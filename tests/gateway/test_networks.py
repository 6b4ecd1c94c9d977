from __future__ import annotations

import pytest

from gateway.networks import Networks, client_address, parse_network


def test_addresses_in_networks() -> None:
    networks = Networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])
    for inside in ("10.1.2.3", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"):
        assert inside in networks
    for outside in ("11.0.0.1", "192.0.2.8", "2001:db9::1", "::ffff:11.0.0.1", "", "nonsense", "10.0.0.0/8", "10.1"):
        assert outside not in networks
    assert "127.0.0.1" not in Networks() and not Networks() and networks


def test_whole_networks_in_networks() -> None:
    networks = Networks(["10.0.0.0/8", "2001:db8::/32"])
    assert networks.covers("10.0.0.0/8") and networks.covers("10.9.0.0/16") and networks.covers("2001:db8::7")
    assert not networks.covers("0.0.0.0/0") and not networks.covers("10.0.0.0/7") and not networks.covers("::/0")


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0.0/8 ", "1.2.3"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8"):
        parse_network(text)


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.66, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.66", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::7]:80"], "2001:db8::7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["::ffff:10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9, unknown"], ""),
        ("10.0.0.1", [""], ""),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_only_proxies_that_are_trusted_say_where_a_request_comes_from(
    peer: str, forwarded: list[str], found: str
) -> None:
    assert client_address(peer, forwarded, Networks(["10.0.0.0/24"])) == found
