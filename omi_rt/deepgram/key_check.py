"""Whether Deepgram takes the key: one REST call, made before anybody speaks."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

import trio

from omi_rt.deepgram.credentials import rest_url
from omi_rt.net.http_client import HTTP_ERRORS, HTTPClient

KEY_PATH = "/v1/auth/token"
"""Deepgram documents it as the quick test of a key."""
KEY_CHECK_SECONDS = 3.0
"""A start may take so much longer where the network swallows what is sent."""
_LACKS_PERMISSION = "INSUFFICIENT_PERMISSIONS"
"""The other error of a 401: the key is a key, and this path is not for it."""


class KeyVerdict(Enum):
    """What the call showed."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"
    """Whoever answered does not judge keys, as a self-hosted Deepgram need not."""


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
