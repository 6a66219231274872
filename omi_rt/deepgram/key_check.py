"""Finding out whether Deepgram takes the key, by one REST call before anybody speaks."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

import trio

from omi_rt.deepgram.credentials import rest_url
from omi_rt.net.http_client import HTTP_ERRORS, HTTPClient

KEY_PATH = "/v1/auth/token"
"""Deepgram documents this path as the quick test of a key."""
KEY_CHECK_SECONDS = 3.0
"""The server's start takes at most this much longer where the network swallows what is sent."""
_LACKS_PERMISSION = "INSUFFICIENT_PERMISSIONS"
"""A 401 with this error means that the key is valid and merely may not use this path."""


class KeyVerdict(Enum):
    """What the call has shown."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """The server that answered does not judge keys; a self-hosted Deepgram need not do so."""


async def check_key(base: str, key: str, client: HTTPClient) -> tuple[KeyVerdict, str]:
    """Ask the Deepgram at ``base`` about ``key``, `KEY_CHECK_SECONDS` at most.

    Returns the verdict and what it rests on, which holds no secret. Cancelling is safe.
    """
    with trio.move_on_after(KEY_CHECK_SECONDS):
        try:
            response = await client.get(
                rest_url(base, KEY_PATH),
                headers={"Authorization": f"Token {key}", "Connection": "close"},
            )
        except HTTP_ERRORS as error:
            return KeyVerdict.UNREACHABLE, type(error).__name__
        basis = f"HTTP {response.status_code}"
        if response.is_success:
            return KeyVerdict.ACCEPTED, basis
        if (
            response.status_code == HTTPStatus.UNAUTHORIZED
            and _LACKS_PERMISSION not in response.text
        ):
            return KeyVerdict.REFUSED, basis
        return KeyVerdict.UNKNOWN, basis
    return KeyVerdict.UNREACHABLE, f"no answer within {KEY_CHECK_SECONDS:g} s"
