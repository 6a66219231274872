"""Webhooks, as far as they can be decided without waiting: addresses, signatures, what is tried again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlencode, urlsplit, urlunsplit

from attrs import frozen

SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES = range(24, 65)
"""Of a secret, by the scheme of Standard Webhooks."""
_NAT64 = IPv6Network("64:ff9b::/96")
MAX_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


@frozen
class AudioHook:
    """Where audio goes, and how much of it at once."""

    url: str
    seconds: float


def parse_audio_hook(text: str) -> AudioHook:
    """Read ``URL,SECONDS``; raises ``ValueError``."""
    url, _, seconds = text.rpartition(",")
    found = AudioHook(url, float(seconds))
    if not 1 <= found.seconds <= 60:
        raise ValueError
    return found


def parse_secret(text: str) -> bytes:
    """Read a secret, ``whsec_`` and base64; raises ``ValueError``."""
    if not text.startswith(SECRET_PREFIX):
        raise ValueError
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError from None
    if len(secret) not in SECRET_BYTES:
        raise ValueError
    return secret


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a signed message, by the scheme of Standard Webhooks.

    ``timestamp`` is in seconds since 1970, of this try: receivers refuse old ones.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{digest}",
    }


def with_query(url: str, **parameters: str) -> str:
    """Return ``url`` with more parameters in its query."""
    parts = urlsplit(url)
    query = "&".join(filter(None, [parts.query, urlencode(parameters)]))
    return urlunsplit(parts._replace(query=query))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, and of no private network."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        parsed = _address_within(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast


def _address_within(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 one stands for; None where it stands for itself."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def is_worth_another_try(status: int) -> bool:
    """Whether a receiver that answered so may take the message later."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS


def pause_before_retry(failures: int, spread: float) -> float:
    """Seconds to wait after so many failures; ``spread`` (0..1) shortens them by up to a half."""
    pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1))
    return pause * (1 - spread / 2)
