"""WebSockets over any Trio stream: a thin shell around the sans-I/O protocol of ``websockets``.

The one file that imports ``websockets``. Both sides are here: the server's, which the devices meet
(and, in ``fake`` and ``local``, Deepgram clients), and the client's, for ``omi-rt stream``.

One task receives, one task runs the writer, anyone may queue. The three never wait for each other:
a peer that does not read can not keep pongs or a close frame from being seen.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from http import HTTPStatus

import trio
from attrs import frozen
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import CLOSED, OPEN, SEND_EOF, Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow

MAX_MESSAGE_BYTES = 65_536
MAX_QUEUED_BYTES = 1_048_576
"""What may wait for a peer that does not read: about an hour of segments."""
MAX_HEAD_BYTES = 16_384
"""Of an HTTP request head; nginx takes 8 KiB a line, Apache 8 KiB a field, Node 16 KiB in all."""
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 5.0
ABORT_SECONDS = 1.0

# The library logs every connection at INFO; ours are logged by the session, once.
_silent = logging.getLogger("omi_rt.websocket")
_silent.setLevel(logging.CRITICAL + 1)
_BINARY, _TEXT, _CONT, _CLOSE = Opcode.BINARY, Opcode.TEXT, Opcode.CONT, Opcode.CLOSE


@frozen
class HTTPRequest:
    """The head of a request, before it is known to be an upgrade."""

    method: str
    target: str
    """Path and query, as they stand in the request line."""
    headers: Mapping[str, str]
    """Names in lower case; of a repeated field the last value."""
    is_upgrade: bool


class WebSocket:
    """One open WebSocket connection.

    ``run_writer`` must run, in the connection's nursery, for anything to be sent.
    """

    __slots__ = (
        "_fragments",
        "_fragments_are_text",
        "_outgoing",
        "_protocol",
        "_queued_bytes",
        "_stream",
        "_wake_writer",
        "_writer_done",
        "is_sending",
        "received_at",
    )

    def __init__(self, stream: trio.abc.Stream, protocol: Protocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._outgoing: list[bytes] = []
        self._queued_bytes = 0
        self._fragments: list[bytes] | None = None
        self._fragments_are_text = False
        self._wake_writer = trio.Event()
        self._writer_done = trio.Event()
        self.is_sending = False
        """Whether a send is under way: a frame may be half on the wire."""
        self.received_at = trio.current_time()
        """When anything last came from the peer (`trio.current_time`), pongs included."""
        self._take_outgoing()

    async def receive(self) -> list[bytes | str]:
        """Wait for the peer's messages and return all that have arrived, at least one.

        One read takes everything that the system holds: under load the batches grow, and the cost
        of a message falls. Cancelling this is safe: no message is lost.

        Raises:
            PeerClosed: the peer closed, or the network did, or it broke the protocol; what arrived
                before was returned before.
        """
        while True:
            messages = self._messages()
            if messages:
                return messages
            if self._protocol.state is not OPEN:
                raise self._closed()
            await self._feed()

    def send_nowait(self, message: str | bytes) -> None:
        """Queue one message; the writer sends it. After the close this does nothing.

        Raises:
            PeerTooSlow: the peer has not read for so long that `MAX_QUEUED_BYTES` wait for it.
        """
        if self._protocol.state is not OPEN:
            return
        if self._queued_bytes > MAX_QUEUED_BYTES:
            raise PeerTooSlow("the peer does not read what it is sent")
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._take_outgoing()

    def ping_nowait(self) -> None:
        """Queue a protocol ping, which every peer must answer (RFC 6455, 5.5.3)."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._take_outgoing()

    def close_nowait(self, code: int, reason: str = "") -> None:
        """Queue the close frame, after all that was queued before. A second close does nothing."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, _shortened(reason))
            self._take_outgoing()

    async def run_writer(self, send_timeout: float) -> None:
        """Send what is queued, until the closing handshake has sent its end.

        The only writer of the stream. A cancelled or late send may leave half a frame on the wire,
        so the stream is closed with it.

        Raises:
            PeerTooSlow: a send took over ``send_timeout`` seconds.
        """
        try:
            while True:
                await self._wake_writer.wait()
                self._wake_writer = trio.Event()
                data, ends = self._take_writes()
                if data:
                    self.is_sending = True
                    with trio.move_on_after(send_timeout) as limit:
                        await self._stream.send_all(data)
                    if limit.cancelled_caught:
                        raise PeerTooSlow(f"took no data for {send_timeout:g} s")
                    self.is_sending = False
                    self._queued_bytes -= len(data)
                if ends:
                    if isinstance(self._stream, trio.abc.HalfCloseableStream):
                        await self._stream.send_eof()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The reader meets the same end and tells it.
            return
        finally:
            self._writer_done.set()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with ``code`` and wait for the peer's answer, `CLOSE_SECONDS` at most.

        Safe under cancellation: then the bound holds all the same and the stream is closed.
        ``run_writer`` must still be running.
        """
        self.close_nowait(code, reason)
        # Reading on until the end matters even after the peer's close frame: closing a socket with
        # unread data resets it, and the reset can overtake our own close frame.
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            while self._protocol.state is not CLOSED:
                await self._feed()
            await self._writer_done.wait()
        await trio.aclose_forcefully(self._stream)

    async def abort(self, code: int, reason: str = "") -> None:
        """Close at once, when ``run_writer`` no longer runs: what is queued goes out if it can.

        Where a send was cut off, a close frame would come out as garbage and is left out. Bounded
        and shielded; closes the stream in any case.
        """
        self.close_nowait(code, reason)
        with trio.move_on_after(ABORT_SECONDS, shield=True):
            if not self.is_sending:
                data, _ends = self._take_writes()
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_all(data)
        await trio.aclose_forcefully(self._stream)

    async def _feed(self) -> None:
        try:
            data = await self._stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        self.received_at = trio.current_time()
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        if self._protocol.writes:
            self._take_outgoing()

    def _messages(self) -> list[bytes | str]:
        messages: list[bytes | str] = []
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            opcode = event.opcode
            if opcode is _BINARY and event.fin:
                messages.append(bytes(event.data))
            elif opcode is _TEXT and event.fin:
                messages.append(bytes(event.data).decode("utf-8", "replace"))
            elif opcode is _BINARY or opcode is _TEXT:
                self._fragments = [bytes(event.data)]
                self._fragments_are_text = opcode is _TEXT
            elif opcode is _CONT and self._fragments is not None:
                self._fragments.append(bytes(event.data))
                if event.fin:
                    whole = b"".join(self._fragments)
                    self._fragments = None
                    messages.append(
                        whole.decode("utf-8", "replace") if self._fragments_are_text else whole
                    )
        return messages

    def _take_outgoing(self) -> None:
        for data in self._protocol.data_to_send():
            self._outgoing.append(data)
            self._queued_bytes += len(data)
        if self._outgoing:
            self._wake_writer.set()

    def _take_writes(self) -> tuple[bytes, bool]:
        """Return what to send now, and whether the sending side ends after it."""
        writes, self._outgoing = self._outgoing, []
        return b"".join(writes), SEND_EOF in writes

    def _closed(self) -> PeerClosed:
        protocol = self._protocol
        if protocol.close_rcvd is not None:
            return PeerClosed(protocol.close_rcvd.code, protocol.close_rcvd.reason)
        if protocol.close_sent is not None:
            return PeerClosed(protocol.close_sent.code, protocol.close_sent.reason)
        return PeerClosed(CloseCode.ABNORMAL_CLOSURE, "connection lost")


class ServerHandshake:
    """The request that came on an accepted stream, and the two ways to answer it."""

    def __init__(self, stream: trio.abc.Stream, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._stream = stream
        self._protocol = ServerProtocol(max_size=max_message_bytes, logger=_silent)
        self._rest = b""
        self._request: Request | None = None

    async def receive_request(self, within: float = HANDSHAKE_SECONDS) -> HTTPRequest:
        """Wait for the whole head of the request, ``within`` seconds at most.

        Cancelling this leaves the stream unusable.

        Raises:
            HandshakeFailed: the peer said nothing usable, or nothing, in time.
        """
        head = bytearray()
        with trio.move_on_after(within) as limit:
            while (end := head.find(b"\r\n\r\n")) < 0:
                if len(head) > MAX_HEAD_BYTES:
                    raise HandshakeFailed("the request head is too long")
                try:
                    data = await self._stream.receive_some()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not data:
                    raise HandshakeFailed("closed before a whole request")
                head += data
        if limit.cancelled_caught:
            raise HandshakeFailed(f"no whole request within {within:g} s")
        # The parser gets the head alone: frames that came with it wait until the 101 is queued.
        self._rest = bytes(head[end + 4 :])
        self._protocol.receive_data(bytes(head[: end + 4]))
        events = self._protocol.events_received()
        if not events or not isinstance(events[0], Request):
            raise HandshakeFailed("not an HTTP request")
        request = self._request = events[0]
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        return HTTPRequest(
            method=request.method,
            target=request.path,
            headers=headers,
            is_upgrade="upgrade" in headers.get("connection", "").lower(),
        )

    def accept(self, headers: Mapping[str, str] | None = None) -> WebSocket:
        """Answer 101 with extra ``headers``; the WebSocket is open at once.

        Raises:
            HandshakeFailed: it is no proper upgrade; ``status`` is what to answer (426, 400, ...).
        """
        assert self._request is not None
        response = self._protocol.accept(self._request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            raise HandshakeFailed("no proper WebSocket upgrade", response.status_code)
        for name, value in (headers or {}).items():
            response.headers[name] = value
        self._protocol.send_response(response)
        if self._rest:
            self._protocol.receive_data(self._rest)
        return WebSocket(self._stream, self._protocol)

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
        fields = Headers(
            {
                "Content-Type": content_type,
                "Content-Length": str(len(content)),
                "Connection": "close",
            }
        )
        for name, value in (headers or {}).items():
            fields[name] = value
        head = b"" if self._request is None or self._request.method != "HEAD" else None
        response = Response(status, HTTPStatus(status).phrase, fields, content)
        data = response.serialize() if head is not None else response.serialize()[: -len(content)]
        with trio.move_on_after(within):
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return


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
    protocol = ClientProtocol(parse_uri(url), max_size=MAX_QUEUED_BYTES, logger=_silent)
    request = protocol.connect()
    for name, value in (headers or {}).items():
        request.headers[name] = value
    protocol.send_request(request)
    with trio.move_on_after(within) as limit:
        try:
            await stream.send_all(b"".join(protocol.data_to_send()))
            while protocol.state is not OPEN and protocol.handshake_exc is None:
                data = await stream.receive_some()
                if data:
                    protocol.receive_data(data)
                else:
                    protocol.receive_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise HandshakeFailed("connection lost during the handshake") from error
    if limit.cancelled_caught:
        raise HandshakeFailed(f"no answer within {within:g} s")
    if isinstance(protocol.handshake_exc, InvalidStatus):
        status = protocol.handshake_exc.response.status_code
        raise HandshakeFailed(f"refused with HTTP {status}", status)
    if protocol.handshake_exc is not None:
        raise HandshakeFailed(f"no WebSocket server: {_reason(protocol.handshake_exc)}")
    return WebSocket(stream, protocol)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, InvalidHandshake) else type(error).__name__


def _shortened(reason: str) -> str:
    """Cut to the 123 bytes that a close frame has room for (RFC 6455, 5.5)."""
    return reason.encode()[:123].decode("utf-8", "ignore")
