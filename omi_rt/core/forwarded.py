"""Who a client is behind proxies, as far as they are believed."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

Network: TypeAlias = "IPv4Network | IPv6Network"
MAX_HOPS = 32
"""Of a chain of proxies; what is further away is not looked at."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read addresses and networks such as ``10.0.0.0/8``, separated by commas.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(ip_network(part.strip()) for part in text.split(","))


def client_address(peer: str, forwarded_for: str, trusted: Iterable[Network]) -> str:
    """Return the address of whoever speaks.

    Each trusted proxy has put the address before it at the end of ``X-Forwarded-For``: so it is read
    from its end, up to the first address that is no trusted proxy's. What lies before that anybody
    may have made up.

    Args:
        peer: the address that the connection comes from; empty where it is not known.
        forwarded_for: the header's value; empty where there is none.
        trusted: whom to believe.
    """
    return _follow(peer, forwarded_for, tuple(trusted))[0]


def is_trusted(peer: str, trusted: Iterable[Network]) -> bool:
    """Whether what ``peer`` says of others is believed."""
    return _is_in(peer, tuple(trusted))


def is_of_nobody_known(peer: str, forwarded_for: str, trusted: Iterable[Network]) -> bool:
    """Whether nobody knows whose a request is: its proxy is not believed, or names no address."""
    networks = tuple(trusted)
    if not forwarded_for:
        return False
    return not _is_in(peer, networks) or not _follow(peer, forwarded_for, networks)[1]


def _follow(peer: str, forwarded_for: str, networks: tuple[Network, ...]) -> tuple[str, bool]:
    """Return the first address that is no trusted proxy's, or else the last, and whether each was one."""
    address = peer
    hops = forwarded_for.split(",")[::-1][:MAX_HOPS] if forwarded_for else []
    for hop in hops:
        if not _is_in(address, networks):
            break
        found = _parse(hop.strip())
        if found is None:
            return address, False
        address = str(found)
    return address, True


def is_loopback_address(host: str) -> bool:
    """Whether a numeric address can be reached from this machine alone."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(
        parsed.version == network.version and parsed in network for network in networks
    )


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, also with a port, as some proxies write it."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed
