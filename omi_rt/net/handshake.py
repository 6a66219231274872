"""The handshakes that open a WebSocket over any Trio stream, of the server and of the client."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.net.protocol import ClientOpening, ServerOpening
from omi_rt.net.turns import wait_turn
from omi_rt.net.websocket import MAX_MESSAGE_BYTES, MAX_QUEUED_BYTES, STREAM_ERRORS, WebSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omi_rt.net.protocol import HTTPRequest

MAX_HEAD_BYTES = 16_384
"""An HTTP request head may have this length; nginx takes 8 KiB a line, Apache 8 KiB a field, Node 16 KiB
in all."""
DISCARD_SECONDS = 2.0
HANDSHAKE_SECONDS = 10.0
_TLS_HANDSHAKE = 0x16
"""The first byte of a TLS connection (RFC 8446, 5.1), and of no HTTP request."""


class ServerHandshake:
    """The request that came on an accepted stream, and the two ways to answer it."""

    def __init__(self, stream: trio.abc.Stream, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._stream = stream
        self._protocol = ServerOpening(max_message_bytes)
        self._rest = b""

    async def receive_request(self, within: float = HANDSHAKE_SECONDS) -> HTTPRequest:
        """Wait for the whole head of the request, ``within`` seconds at most.

        Cancelling this leaves the stream unusable.

        Raises:
            HandshakeFailed: the peer said nothing usable, or nothing, in time. Where it has a
                ``status``, an answer helps.
        """
        head = bytearray()
        with trio.move_on_after(within) as limit:
            while (end := head.find(b"\r\n\r\n")) < 0:
                if len(head) > MAX_HEAD_BYTES:
                    raise HandshakeFailed(
                        "the request head is too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                    )
                try:
                    data = await self._stream.receive_some()
                except STREAM_ERRORS:
                    data = b""
                if not data:
                    raise HandshakeFailed("closed before a whole request")
                head += data
                if head[0] == _TLS_HANDSHAKE:
                    # Its client would wait for an answer, and so would this.
                    raise HandshakeFailed("no TLS is spoken here", HTTPStatus.BAD_REQUEST)
        if limit.cancelled_caught:
            raise HandshakeFailed(f"no whole request within {within:g} s")
        # The protocol gets the head alone: frames that came with it wait until the 101 is queued.
        self._rest = bytes(head[end + 4 :])
        # A hundred requests at once are answered one by one, with the running sessions in between.
        await wait_turn()
        return self._protocol.receive_head(bytes(head[: end + 4]))

    def accept(self, headers: Mapping[str, str] | None = None) -> WebSocket:
        """Answer 101 with extra ``headers``; the WebSocket is open at once.

        Raises:
            HandshakeFailed: it is no proper upgrade; ``status`` is what to answer (426, 400, ...).
        """
        # Handed over, not kept: this object may live as long as the session, and its end may leave it
        # in a cycle until the next collection.
        rest, self._rest = self._rest, b""
        return WebSocket(self._stream, self._protocol.accept(headers or {}, rest))

    async def receive_body(self, size: int, within: float) -> bytes:
        """Read the ``size`` bytes of the request's body, ``within`` seconds at most.

        Cancelling this leaves the stream unusable.

        Raises:
            HandshakeFailed: the peer has gone, or did not send them in time (``status`` 408).
        """
        body = bytearray(self._rest)
        self._rest = b""
        with trio.move_on_after(within) as limit:
            while len(body) < size:
                try:
                    data = await self._stream.receive_some()
                except STREAM_ERRORS:
                    data = b""
                if not data:
                    raise HandshakeFailed("closed before a whole request")
                body += data
        if limit.cancelled_caught:
            raise HandshakeFailed(
                f"no whole request within {within:g} s", HTTPStatus.REQUEST_TIMEOUT
            )
        return bytes(body[:size])

    async def discard(self, size: int, within: float = DISCARD_SECONDS) -> None:
        """Read up to ``size`` bytes that nobody wants, after the answer, ``within`` seconds at most.

        To close a socket with unread data resets it, and the reset can overtake the answer.
        """
        left = size - len(self._rest)
        with trio.move_on_after(within), contextlib.suppress(*STREAM_ERRORS):
            while left > 0 and (data := await self._stream.receive_some()):
                left -= len(data)

    async def respond(
        self,
        status: int,
        body: str | bytes = b"",
        *,
        content_type: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
        within: float = HANDSHAKE_SECONDS,
    ) -> None:
        """Answer as plain HTTP and end the connection, within ``within`` seconds."""
        content = body.encode() if isinstance(body, str) else body
        fields = {"Content-Type": content_type, **(headers or {})}
        data = self._protocol.plain_response(status, content, fields)
        with trio.move_on_after(within), contextlib.suppress(*STREAM_ERRORS):
            await self._stream.send_all(data)


async def open_websocket(
    stream: trio.abc.Stream,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    within: float = HANDSHAKE_SECONDS,
) -> WebSocket:
    """Make the client's handshake for ``url`` over a connected ``stream``.

    Cancelling this leaves the stream unusable.

    Raises:
        HandshakeFailed: the server refused (``status``), or did not answer in time.
    """
    opening = ClientOpening(url, headers or {}, MAX_QUEUED_BYTES)
    with trio.move_on_after(within) as limit:
        try:
            await stream.send_all(opening.take_request())
            while opening.is_waiting:
                opening.receive(await stream.receive_some())
        except STREAM_ERRORS as error:
            raise HandshakeFailed("connection lost during the handshake") from error
    if limit.cancelled_caught:
        raise HandshakeFailed(f"no answer within {within:g} s")
    return WebSocket(stream, opening.opened())
