"""Who a client is behind proxies: believed from listed addresses only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.forwarded import client_address, is_of_nobody_known, parse_networks
from omi_rt.net.protocol import ServerOpening

TRUSTED = parse_networks("10.0.0.0/8, 127.0.0.1, fd00::/8")


@pytest.mark.parametrize(
    ("peer", "header", "address"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "6.6.6.6, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.1.2.3", "10.9.9.9", "10.9.9.9"),
        ("10.1.2.3", "6.6.6.6, unknown", "10.1.2.3"),
        ("10.1.2.3", "6.6.6.6,", "10.1.2.3"),
        ("10.1.2.3", "198.51.100.1:4711", "198.51.100.1"),
        ("fd00::1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        ("::ffff:10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("", "198.51.100.1", ""),
    ],
)
def test_the_client_is_the_last_address_that_no_proxy_has(
    peer: str, header: str, address: str
) -> None:
    assert client_address(peer, header, TRUSTED) == address


@pytest.mark.parametrize(
    ("peer", "header", "is_unknown"),
    [
        ("127.0.0.1", "", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.1", "unknown, 198.51.100.1", False),
        ("127.0.0.1", "unknown", True),
        ("127.0.0.1", "unknown, 127.0.0.1", True),
        ("127.0.0.1", "198.51.100.1,", True),
        ("203.0.113.7", "127.0.0.1", True),
    ],
)
def test_nobody_knows_whose_a_request_is_where_its_proxy_does_not_say(
    peer: str, header: str, is_unknown: bool
) -> None:
    assert is_of_nobody_known(peer, header, TRUSTED) is is_unknown


@given(st.text(), st.ip_addresses().map(str))
def test_who_is_no_proxy_may_say_what_it_likes(header: str, peer: str) -> None:
    assert client_address(peer, header, ()) == peer


@given(st.text(alphabet="0123456789abcdef.:,[]% ", max_size=80))
def test_whatever_a_proxy_writes_raises_nothing(header: str) -> None:
    assert client_address("10.0.0.1", header, TRUSTED)


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "host", "10.0.0.0/8,,"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_networks(text)


def test_no_more_hops_are_looked_at_than_a_chain_of_proxies_has() -> None:
    for hops, address in ((31, "198.51.100.1"), (32, "10.9.9.9"), (100_000, "10.9.9.9")):
        header = "198.51.100.1" + ", 10.9.9.9" * hops
        assert client_address("10.1.2.3", header, TRUSTED) == address


def test_a_proxy_may_add_a_line_of_its_own_instead_of_an_address() -> None:
    head = (
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6, 198.51.100.1\r\n"
        b"Connection: keep-alive\r\nx-forwarded-for: 10.9.9.9\r\nConnection: Upgrade\r\n\r\n"
    )
    request = ServerOpening(1000).receive_head(head)
    assert request.is_upgrade
    assert client_address("10.1.2.3", request.headers["x-forwarded-for"], TRUSTED) == "198.51.100.1"
