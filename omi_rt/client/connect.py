"""The client's way to a server: the URL, TCP, TLS and the WebSocket handshake."""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import SplitResult, urlencode, urlsplit, urlunsplit

import trio
from attrs import frozen

from omi_rt.core.errors import HandshakeFailed, OmiRtError
from omi_rt.core.groups import first_error
from omi_rt.net.handshake import open_websocket

if TYPE_CHECKING:
    from omi_rt.net.websocket import WebSocket

OpenStream: TypeAlias = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Connects to (host, port); raises `OSError` where nobody answers."""

CONNECT_SECONDS: Final = 10.0
"""TCP and TLS together may take this long, and the WebSocket handshake as long again."""
_PLAIN_TEXT: Final = {
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
}
"""The reasons that OpenSSL's versions give where the answer is not TLS."""
_IS_IT_TLS: Final = (
    "does the server speak TLS on this port? If not, use a URL that begins with ws://"
)
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


class StreamFailed(OmiRtError):
    """The recording could not be streamed to its end; the message is one clear line."""


@frozen
class ServerAddress:
    """Where a URL points to."""

    host: str
    port: int
    is_tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def server_address(url: str) -> ServerAddress:
    """Return where ``url`` points to.

    Raises:
        StreamFailed: ``url`` is not a ws:// or wss:// URL.
    """
    parts = _split(url)
    try:
        port = parts.port
    except ValueError:
        raise StreamFailed("the URL has an impossible port") from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise StreamFailed("the URL must look like ws://host:port/listen or wss://host/listen")
    return ServerAddress(
        parts.hostname,
        _DEFAULT_PORTS[parts.scheme] if port is None else port,
        is_tls=parts.scheme == "wss",
    )


def with_parameters(url: str, parameters: Mapping[str, str | int]) -> str:
    """Return ``url`` with ``parameters`` in its query instead of those of the same names.

    The rest of the query stays as it is written; a fragment is dropped, as RFC 6455, 3 asks for.

    Raises:
        StreamFailed: ``url`` is not a URL.
    """
    parts = _split(url)
    kept = [
        part for part in parts.query.split("&") if part and part.split("=")[0] not in parameters
    ]
    query = "&".join([*kept, urlencode(parameters)])
    return urlunsplit(parts._replace(query=query, fragment=""))


async def open_connection(
    url: str, open_stream: OpenStream, headers: Mapping[str, str] | None = None
) -> tuple[WebSocket, MeteredStream]:
    """Connect to ``url`` and make the handshakes, all of it bounded in time.

    Cancelling this closes what was opened.

    Raises:
        StreamFailed: nobody answered, the certificate is not trusted, or the server refused.
    """
    address = server_address(url)
    with trio.move_on_after(CONNECT_SECONDS) as limit:
        stream = await _open_transport(address, open_stream)
    if limit.cancelled_caught:
        hint = f"; {_IS_IT_TLS}" if address.is_tls else ""
        raise StreamFailed(
            f"cannot connect to {address}: no answer within {CONNECT_SECONDS:g} s{hint}"
        )
    metered = MeteredStream(stream)
    try:
        return await open_websocket(metered, url, headers=headers), metered
    except HandshakeFailed as error:
        await trio.aclose_forcefully(metered)
        raise StreamFailed(f"cannot open a WebSocket to {address}: {_refusal(error)}") from error
    except BaseException:
        await trio.aclose_forcefully(metered)
        raise


class MeteredStream(trio.abc.Stream):
    """A stream that tells when it is not sending, so that a paced sender can wait for its peer.

    It does not half close: after the closing handshake the server closes first (RFC 6455, 7.1.1).
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._idle = trio.Event()
        self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no ``send_all`` is under way. Cancelling this is safe."""
        while not self._idle.is_set():
            await self._idle.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as the stream below does."""
        self._idle = trio.Event()
        try:
            await self._stream.send_all(data)
        finally:
            self._idle.set()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream below does."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive as the stream below does."""
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close the stream below."""
        await self._stream.aclose()


async def _open_transport(address: ServerAddress, open_stream: OpenStream) -> trio.abc.Stream:
    try:
        stream = await open_stream(address.host, address.port)
    except OSError as error:
        raise StreamFailed(f"cannot connect to {address}: {_os_reason(error)}") from error
    if not address.is_tls:
        return stream
    tls = trio.SSLStream(
        stream,
        ssl.create_default_context(),
        server_hostname=address.host,
        https_compatible=True,
    )
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(tls)
        raise StreamFailed(f"cannot use TLS with {address}: {_tls_reason(error)}") from error
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise StreamFailed(f"this is not a URL: {error}") from None


def _os_reason(error: BaseException) -> str:
    """Return what the system said; Trio collects the errors of several addresses as the cause."""
    if isinstance(error, BaseExceptionGroup):
        return _os_reason(first_error(error))
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is `omi-rt serve` running there?"
    if isinstance(error, OSError) and error.errno:
        # Trio words an errno in its own way; the resolver's numbers are negative, its words good.
        said = os.strerror(error.errno) if error.errno > 0 else error.strerror
        return (said or "no connection").lower()
    return _os_reason(error.__cause__) if error.__cause__ is not None else "no connection"


def _tls_reason(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError) and cause.reason in _PLAIN_TEXT:
        return "the server does not speak TLS on this port; try a URL that begins with ws://"
    if isinstance(cause, ssl.SSLError) and cause.reason and not _is_an_end(cause):
        return cause.reason.lower().replace("_", " ")
    return f"connection lost during the handshake; {_IS_IT_TLS}"


def _is_an_end(error: ssl.SSLError) -> bool:
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def _refusal(error: HandshakeFailed) -> str:
    """Put a refusal into words, with the server's own words in it."""
    reason = "".join(c if c.isprintable() else " " for c in error.reason)
    text = f"{error}: {reason}" if reason else str(error)
    if error.retry_after is None:
        return text
    return f"{text}; try again in {error.retry_after} s"
