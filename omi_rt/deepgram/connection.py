"""One live connection to Deepgram: the one file that imports trio-websocket.

The library makes the handshake, sends control messages, answers pings, closes, and reads whatever is
not a whole unfragmented text frame. Audio does not pass through it, and neither do Results: both are
framed and read below it, in `omi_rt.deepgram.transport`, because 20 ms of audio cost 45 µs to send
through the library and 12 µs below it, and a final takes three turns of the loop there and one here.

``open_connection`` owns everything that the library runs in the background, in a nursery of its own, and
turns its exceptions into ours. One task may send, and one other task may receive.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio
import trio_websocket

from omi_rt.core.deepgram import (
    Message,
    is_retryable_close,
    is_retryable_status,
    parse_message,
    retry_after_seconds,
)
from omi_rt.core.errors import (
    ProviderClosed,
    ProviderError,
    ProviderRefused,
    ProviderUnreachable,
)
from omi_rt.core.groups import first_error
from omi_rt.deepgram.transport import NETWORK_ERRORS, WatchedStream
from omi_rt.net.stream import open_tcp_stream
from omi_rt.net.tls import TLSStream

if TYPE_CHECKING:
    from omi_rt.deepgram.credentials import Credentials
    from omi_rt.light_event import LightEvent

Dial = Callable[[str], Awaitable[trio.abc.Stream]]
"""Opens a stream to the host of a ws(s) URL, TLS included."""

MAX_RESULT_BYTES = 1_048_576
"""Of one message; a final with 1,000 words takes 150 KB."""
RECEIVED_QUEUE_MESSAGES = 16
"""Of those that the library reads."""
CLOSE_SECONDS = 1.0
_MAX_REASON_CHARACTERS = 200
_NO_FRAME = 1006


class _HandshakeIsOver:
    """Stands in for wsproto's finished handshake, which ``WSConnection.events`` still asks for events.

    Nothing else asks it anything after the handshake (wsproto 1.2 and 1.3).
    """

    __slots__ = ()

    def events(self) -> tuple[()]:
        """Return nothing."""
        return ()


_HANDSHAKE_IS_OVER = _HandshakeIsOver()


class Connection:
    """An open connection. Made by `open_connection`."""

    __slots__ = (
        "_socket",
        "_stream",
        "request_id",
        "send_audio_nowait",
    )

    def __init__(self, socket: trio_websocket.WebSocketConnection, stream: WatchedStream) -> None:
        headers = {name.lower(): value for name, value in socket.handshake_headers}
        self._socket = socket
        self._stream = stream
        self.request_id = headers.get(b"dg-request-id", b"").decode("ascii", "replace")
        self.send_audio_nowait: Callable[[bytes], bool] = stream.send_audio_nowait
        """Sends audio if that needs no waiting, and returns whether it is done (`WatchedStream`).

        If it returns False, `send_audio` must follow at once. It may be called only while nobody else sends.
        """

    @property
    def has_failed_to_send(self) -> bool:
        """Whether a send met a broken connection. What had arrived can still be received."""
        return self._stream.send_failed

    async def send_audio(self, payload: bytes) -> None:
        """Send audio, or finish what `send_audio_nowait` could not. In all else it is like `send`."""
        # An empty binary frame is Deepgram's old way to end a stream.
        assert payload, "never send an empty frame"
        await self._stream.send_audio(payload)

    async def send(self, message: str) -> None:
        """Send a control message.

        A broken connection raises nothing here and shows in ``has_failed_to_send``, so that what the
        provider said before is still read. Cancelling this may leave half a frame on the wire, and the
        connection must then be left. The deadline of a send is the exchange's.
        """
        try:
            await self._socket.send_message(message)
        except trio_websocket.ConnectionClosed:
            self._stream.send_failed = True

    def pass_on(self, take: Callable[[Message, float], None]) -> Awaitable[None]:
        """Pass each message to ``take``, with the time, as it arrives; returns when `receive` is to be asked.

        A final is thus dealt with where it is noticed, without a switch of tasks. ``take`` must not
        wait; what it raises is raised here. Cancelling is safe: no message is lost.
        """
        return self._stream.pass_texts_on(parse_message, take)

    async def receive(self) -> Message:
        """Wait for the provider's next message. Cancelling is safe: none is lost.

        Raises:
            ProviderClosed: the connection ended; what arrived before was returned before.
        """
        text = await self._stream.receive_text()
        if text is not None:
            return parse_message(text)
        try:
            return parse_message(await self._socket.get_message())
        except trio_websocket.ConnectionClosed as closed:
            code = closed.reason.code if closed.reason is not None else _NO_FRAME
            reason = (closed.reason.reason or "") if closed.reason is not None else ""
            raise ProviderClosed(
                code, reason[:_MAX_REASON_CHARACTERS], retryable=is_retryable_close(code)
            ) from None


@asynccontextmanager
async def open_connection(
    url: str,
    credentials: Credentials,
    dial: Dial,
    within: float,
    dialling: trio.CancelScope | None = None,
) -> AsyncIterator[Connection]:
    """Dial ``url`` and hold the connection for the body.

    Leaving the body normally closes with a closing handshake, `CLOSE_SECONDS` at most; leaving it
    with an error or by cancellation drops the connection.

    Args:
        url: of the provider, with all parameters.
        credentials: for the provider.
        dial: opens the stream.
        within: seconds that dial and handshake may take.
        dialling: a scope of the caller's, entered for them; to cancel it gives the dial up.

    Raises:
        ProviderRefused: the upgrade was answered with an HTTP status.
        ProviderUnreachable: no connection within ``within`` seconds, none at all, or it was given up.
        ProviderClosed: the library's own reader failed while the body ran.
    """
    body_error: Exception | None = None
    library_error: Exception | None = None
    stream: WatchedStream | None = None
    try:
        async with trio.open_nursery() as nursery:
            limit = trio.CancelScope() if dialling is None else dialling
            limit.deadline = trio.current_time() + within
            with limit:
                authorization = await credentials.authorization()
                stream = watched = WatchedStream(await _dialled(dial, url), MAX_RESULT_BYTES)
                socket = await _handshake(nursery, stream, url, authorization)
            if limit.cancelled_caught:
                raise ProviderUnreachable(f"no connection within {within:g} s")
            # The body may last for days.
            del url, dialling, limit, authorization
            try:
                yield Connection(socket, watched)
            except Exception as error:  # noqa: BLE001 - raised again below, out of the nursery
                body_error = error
            else:
                watched.hand_over()
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await socket.aclose()
            nursery.cancel_scope.cancel()
    except* Exception as group:  # noqa: BLE001 - the seam: the library's background task ends here
        library_error = _as_provider_error(first_error(group))
    finally:
        if stream is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await trio.aclose_forcefully(stream)
    try:
        if (failure := body_error or library_error) is not None:
            raise failure
    finally:
        # Or each error would hold this frame, and the frame the error.
        failure = body_error = library_error = None


async def dial_tcp(url: str) -> trio.abc.Stream:
    """Open TCP, and TLS for wss, to the host of ``url``. Raises ``OSError`` or a Trio stream error."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = parts.scheme == "wss"
    stream = await open_tcp_stream(parts.hostname, parts.port or (443 if secure else 80))
    if not secure:
        return stream
    tls = TLSStream(stream, _tls_context(), parts.hostname)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Made once: reading the system's certificates stops the loop for 20 ms."""
    context = ssl.create_default_context()
    # Only TLS 1.2 has it: a write could then have to read first.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


async def _dialled(dial: Dial, url: str) -> trio.abc.Stream:
    host = urlsplit(url).netloc
    try:
        return await dial(url)
    except (OSError, *NETWORK_ERRORS) as error:
        raise ProviderUnreachable(f"cannot connect to {host}: {_dial_reason(error)}") from None


def _dial_reason(error: BaseException) -> str:
    """Return what the system said; Trio hides it behind a sentence on all addresses together."""
    if isinstance(error, BaseExceptionGroup):
        return _dial_reason(error.exceptions[0])
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        # Trio words an errno in its own way; the resolver's numbers are negative, its words good.
        said = os.strerror(error.errno) if error.errno > 0 else error.strerror
        return (said or "no connection").lower()
    return str(error) if error.__cause__ is None else _dial_reason(error.__cause__)


async def _handshake(
    nursery: trio.Nursery, stream: WatchedStream, url: str, authorization: str
) -> trio_websocket.WebSocketConnection:
    parts = urlsplit(url)
    headers = [(b"Authorization", authorization.encode())] if authorization else []
    socket: trio_websocket.WebSocketConnection | None = None
    # The library waits for ever where the server drops the connection before its answer.
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_cancel_when, stream.ended, waiting.cancel_scope)
        socket = await trio_websocket.wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # it takes any stream
            parts.netloc,
            f"{parts.path}?{parts.query}",
            extra_headers=headers,
            message_queue_size=RECEIVED_QUEUE_MESSAGES,
            max_message_size=MAX_RESULT_BYTES,
            receive_buffer_size=None,
        )
        waiting.cancel_scope.cancel()
    if socket is None:
        raise ProviderUnreachable("connection lost during the handshake")
    # What has parsed the handshake would stay for as long as the connection: 2.7 KB.
    socket._wsproto.handshake = _HANDSHAKE_IS_OVER  # type: ignore[assignment]  # noqa: SLF001
    return socket


async def _cancel_when(event: LightEvent, scope: trio.CancelScope) -> None:
    await event.wait()
    # A refusal and the end of the stream come together: the refusal is to be seen first.
    await trio.lowlevel.checkpoint()
    scope.cancel()


def _as_provider_error(error: Exception) -> ProviderError:
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, trio_websocket.ConnectionRejected):
        headers = {name.lower(): value for name, value in error.headers or ()}
        return ProviderRefused(
            error.status_code,
            retryable=is_retryable_status(error.status_code),
            error=_shown(headers.get(b"dg-error", b"")),
            request_id=_shown(headers.get(b"dg-request-id", b"")),
            retry_after=retry_after_seconds(_shown(headers.get(b"retry-after", b""))),
        )
    return ProviderClosed(_NO_FRAME, f"{type(error).__name__} in the protocol", retryable=True)


def _shown(value: bytes) -> str:
    return value.decode("ascii", "replace")[:_MAX_REASON_CHARACTERS]
