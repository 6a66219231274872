"""Which web pages may open a session: the ``Origin`` that a browser sends with an upgrade.

Browsers let any page open a WebSocket to any server, and leave it to the server to look at the
``Origin`` (RFC 6455, 10.2). Devices and programs send none.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Collection

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


@frozen
class Origin:
    """Scheme, host and port, all in lower case; a default port is written out."""

    scheme: str
    host: str
    port: int | None = None


ANY = Origin("*", "*")
"""Stands for every origin in a list of those that are allowed."""


def parse_origin(text: str) -> Origin | None:
    """Read an ``Origin`` as RFC 6454 writes it; None for ``null`` and for whatever is not an origin."""
    scheme, separator, authority = text.strip().lower().partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return None
    place = _split_authority(authority)
    if place is None:
        return None
    host, port = place
    return Origin(scheme, host, _DEFAULT_PORTS.get(scheme) if port is None else port)


def is_allowed(
    origin: str | None,
    host: str | None,
    allowed: Collection[Origin],
    *,
    is_loopback: bool = False,
) -> bool:
    """Decide whether an upgrade may open a session.

    Args:
        origin: the request's ``Origin``; None where it has none, as from a device.
        host: the request's ``Host``. A page of the same origin may come in.
        allowed: the other origins that may come in.
        is_loopback: whether the connection came in over the loopback interface. A page whose name
            was made to point there (DNS rebinding) looks as if it were of the same origin, so a
            name in plain HTTP counts only if it is listed.
    """
    if origin is None or ANY in allowed:
        return True
    parsed = parse_origin(origin)
    if parsed is None:
        return False
    if parsed in allowed:
        return True
    if is_loopback and parsed.scheme == "http" and not _is_local_name(parsed.host):
        return False
    place = _split_authority((host or "").strip().lower())
    if place is None:
        return False
    name, port = place
    return (name, _DEFAULT_PORTS.get(parsed.scheme) if port is None else port) == (
        parsed.host,
        parsed.port,
    )


def _is_local_name(host: str) -> bool:
    """Whether no name server has a say in what ``host`` stands for."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split_authority(text: str) -> tuple[str, int | None] | None:
    """Split host and port; None where there is anything else, or no host."""
    if not text or any(character in text for character in "/?#@\\ \t"):
        return None
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if not host else (host, port)
