"""Deepgram's credentials: the key itself, or a short-lived token for each dial."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit

from omi_rt.core.deepgram import is_retryable_status, retry_after_seconds
from omi_rt.core.errors import ProviderRefused, ProviderUnreachable
from omi_rt.net.http_client import HTTPError

if TYPE_CHECKING:
    from omi_rt.net.http_client import HTTPClient

GRANT_PATH = "/v1/auth/grant"
_MAX_SHOWN_CHARACTERS = 200


class Credentials(Protocol):
    """The source of the ``Authorization`` header of a dial."""

    is_renewable: bool
    """Whether a 401 may pass with the next header."""

    async def authorization(self) -> str:
        """Return the header's value, or "" where no header is to be sent. Cancelling is safe."""


class APIKey:
    """A key that goes into every dial as it is."""

    is_renewable = False

    def __init__(self, key: str) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "APIKey(...)"

    async def authorization(self) -> str:
        """Return ``Token KEY``, or "" for a self-hosted Deepgram that asks for no key."""
        return f"Token {self._key}" if self._key else ""


class GrantedToken:
    """A fresh token from ``/v1/auth/grant`` for each dial; Deepgram checks it at the dial only."""

    is_renewable = True

    def __init__(self, key: str, base: str, client: HTTPClient) -> None:
        self._url = rest_url(base, GRANT_PATH)
        self._key = key
        self._client = client

    def __repr__(self) -> str:
        return "GrantedToken(...)"

    async def authorization(self) -> str:
        """Fetch a token, within the client's own time limit.

        Raises:
            ProviderRefused: the grant was refused.
            ProviderUnreachable: no usable answer came.
        """
        try:
            response = await self._client.post(
                self._url, headers={"Authorization": f"Token {self._key}"}, json={}
            )
        except HTTPError as error:
            raise ProviderUnreachable(f"no token: {type(error).__name__}") from None
        if response.status_code != HTTPStatus.OK:
            raise ProviderRefused(
                response.status_code,
                retryable=is_retryable_status(response.status_code),
                error=response.headers.get("dg-error", "grant refused")[:_MAX_SHOWN_CHARACTERS],
                request_id=response.headers.get("dg-request-id", "")[:_MAX_SHOWN_CHARACTERS],
                retry_after=retry_after_seconds(response.headers.get("retry-after", "")),
            )
        try:
            token = response.json()["access_token"]
        except (ValueError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not token.isascii():
            raise ProviderUnreachable("no token: the grant's answer holds none")
        return f"Bearer {token}"


def rest_url(base: str, path: str) -> str:
    """Return the address of ``path`` in the REST API of the Deepgram whose live API is at ``base``."""
    parts = urlsplit(base)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, path, "", ""))
