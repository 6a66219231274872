"""The HTTP client of the process: the one file that imports httpx."""

from __future__ import annotations

import ssl

import httpx
import trio

HTTPClient = httpx.AsyncClient
HTTPError = httpx.HTTPError
# Of the last two kinds are host names that the library takes for none, found when they are used.
HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
ANSWER_SECONDS = 5.0
"""A request may take so long to connect, and each read or write of it."""


def open_http_client() -> HTTPClient:
    """Return the process's HTTP client; close it with ``async with``."""
    return HTTPClient(
        timeout=httpx.Timeout(ANSWER_SECONDS),
        limits=httpx.Limits(max_connections=20, max_keepalive_connections=5),
    )


def cause_of(error: BaseException) -> str:
    """Say in a few words, and without an address, why a request came to nothing."""
    cause: BaseException | None = error
    while cause is not None:
        # The library says only that it could not connect, and so hides what its user has to mend.
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"no trusted certificate: {cause.verify_message.partition(',')[0]}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


async def fetch_bounded(client: HTTPClient, url: str, max_bytes: int) -> tuple[bytes, str, str]:
    """Fetch a document; returns its body, its ``Cache-Control``, and its ``Age``.

    Redirects are not followed. Cancelling this closes the connection.

    Raises:
        OSError: no usable answer came; the message names the cause, and no address.
    """
    try:
        async with client.stream("GET", url, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise OSError(f"HTTP {response.status_code}")
            body, headers = b"", response.headers
            # A loop that is left early would leave the library's generators to the collector: they
            # end where a cancellation passes through all of them.
            with trio.CancelScope() as scope:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > max_bytes:
                        scope.cancel()
            if scope.cancel_called:
                raise OSError(f"the answer has more than {max_bytes} bytes")
            return body, headers.get("cache-control", ""), headers.get("age", "")
    except HTTP_ERRORS as error:
        raise OSError(cause_of(error)) from None
