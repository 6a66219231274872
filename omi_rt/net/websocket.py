"""WebSockets over any Trio stream, either side: the shell around `omi_rt.net.wire`.

One task receives, one task runs the writer, anyone may queue. The three never wait for each other:
a peer that does not read can not keep pongs or a close frame from being seen.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import HandshakeFailed, PeerTooSlow
from omi_rt.net.stream import TCPStream
from omi_rt.net.wire import ClientWire, HTTPRequest, ServerWire, Wire, ends_stream

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MESSAGE_BYTES = 65_536
MAX_QUEUED_BYTES = 1_048_576
"""What may wait for a peer that does not read: about an hour of segments."""
MAX_HEAD_BYTES = 16_384
"""Of an HTTP request head; nginx takes 8 KiB a line, Apache 8 KiB a field, Node 16 KiB in all."""
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 5.0
ABORT_SECONDS = 1.0
_STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


class WebSocket:
    """One open WebSocket connection.

    ``run_writer`` must run, in the connection's nursery, for anything to be sent. While it has
    nothing to do, what is queued is offered to the kernel at once: to wake it takes a turn of the
    loop, in which others are served first.
    """

    __slots__ = (
        "_is_writer_idle",
        "_outgoing",
        "_queued_bytes",
        "_sent",
        "_stream",
        "_tcp",
        "_wake_writer",
        "_wire",
        "_writer_done",
        "is_sending",
        "received_at",
    )

    def __init__(self, stream: trio.abc.Stream, wire: Wire) -> None:
        self._stream = stream
        self._tcp = stream if isinstance(stream, TCPStream) else None
        self._wire = wire
        self._outgoing: list[bytes] = []
        self._queued_bytes = 0
        self._is_writer_idle = False
        self._wake_writer = trio.Event()
        self._writer_done = trio.Event()
        self._sent = trio.Event()
        self.is_sending = False
        """Whether the writer is sending: a frame may be half on the wire, its rest nowhere else.

        (The rest of what was offered at once is the first in the queue.)
        """
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
            messages = self._wire.take_messages()
            if messages:
                return messages
            if not self._wire.is_open:
                raise self._wire.closed()
            await self._feed()

    def expect_data(self) -> None:
        """Let the next `receive` read before it waits: after a rest there is data, most likely."""
        if self._tcp is not None:
            self._tcp.expect_data()

    def send_nowait(self, message: str | bytes) -> None:
        """Queue one message; the writer sends it. After the close this does nothing.

        Raises:
            PeerTooSlow: the peer has not read for so long that `MAX_QUEUED_BYTES` wait for it.
        """
        if self._queued_bytes > MAX_QUEUED_BYTES:
            raise PeerTooSlow("the peer does not read what it is sent")
        self._wire.send(message)
        self._take_outgoing()

    async def drained(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` bytes are queued or under way, or nothing is sent any more.

        The peer decides how long that takes: the bound is the caller's. Cancelling is safe.
        """
        while self._queued_bytes >= below and not self._writer_done.is_set():
            await self._sent.wait()

    def ping_nowait(self) -> None:
        """Queue a protocol ping; the answer shows in ``received_at``."""
        self._wire.ping()
        self._take_outgoing()

    def close_nowait(self, code: int, reason: str = "") -> None:
        """Queue the close frame, after all that was queued before. A second close does nothing."""
        self._wire.close(code, reason)
        self._take_outgoing()

    async def run_writer(self, send_timeout: float) -> None:
        """Send what is queued, until the closing handshake has sent its end.

        The only task that waits for the stream to take anything; what is queued while it is idle is
        offered to the kernel by whoever queues it. A cancelled or late send may leave half a frame on the wire:
        the connection is then good for nothing but `abort`.

        Raises:
            PeerTooSlow: a send took over ``send_timeout`` seconds.
        """
        try:
            while True:
                self._is_writer_idle = not self._outgoing
                await self._wake_writer.wait()
                self._is_writer_idle = False
                self._wake_writer = trio.Event()
                writes, self._outgoing = self._outgoing, []
                data = b"".join(writes)
                if data:
                    self.is_sending = True
                    with trio.move_on_after(send_timeout) as limit:
                        await self._stream.send_all(data)
                    if limit.cancelled_caught:
                        raise PeerTooSlow(f"took no data for {send_timeout:g} s")
                    self.is_sending = False
                    self._queued_bytes -= len(data)
                    self._sent.set()
                    self._sent = trio.Event()
                if ends_stream(writes):
                    if isinstance(self._stream, trio.abc.HalfCloseableStream):
                        await self._stream.send_eof()
                    return
        except _STREAM_ERRORS:
            # The reader meets the same end and tells it.
            return
        finally:
            self._is_writer_idle = False
            self._writer_done.set()
            self._sent.set()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with ``code`` and wait for the peer's answer, `CLOSE_SECONDS` at most.

        Cancelling this closes the stream at once. ``run_writer`` must still be running, and nobody
        may be receiving.
        """
        self.close_nowait(code, reason)
        # Reading on until the end matters even after the peer's close frame: closing a socket with
        # unread data resets it, and the reset can overtake our own close frame.
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                while not self._wire.is_closed:
                    await self._feed()
                await self._writer_done.wait()
        finally:
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await trio.aclose_forcefully(self._stream)

    async def abort(self, code: int, reason: str = "") -> None:
        """Close at once, when ``run_writer`` no longer runs: what is queued goes out if it can.

        Where a send was cut off, a close frame would come out as garbage and is left out. Bounded
        and shielded; closes the stream in any case.
        """
        self.close_nowait(code, reason)
        with trio.move_on_after(ABORT_SECONDS, shield=True):
            if not self.is_sending:
                with contextlib.suppress(*_STREAM_ERRORS):
                    await self._stream.send_all(b"".join(self._outgoing))
        await trio.aclose_forcefully(self._stream)

    async def _feed(self) -> None:
        if self._queued_bytes >= MAX_QUEUED_BYTES:
            # Answers to pings are queued by reading: who does not read them is not read either.
            await self.drained(MAX_QUEUED_BYTES)
        try:
            data = await self._stream.receive_some()
        except _STREAM_ERRORS:
            data = b""
        self.received_at = trio.current_time()
        if not self._wire.receive(data):
            self._take_outgoing()

    def _take_outgoing(self) -> None:
        writes = self._wire.take_writes()
        if not writes:
            return
        if self._is_writer_idle and self._tcp is not None and not ends_stream(writes):
            data = b"".join(writes)
            try:
                rest = self._tcp.send_nowait(data)
            except _STREAM_ERRORS:
                rest = data  # the writer meets the same
            if rest is None:
                return
            writes = [bytes(rest)]
        self._is_writer_idle = False
        self._outgoing += writes
        self._queued_bytes += sum(map(len, writes))
        self._wake_writer.set()


class ServerHandshake:
    """The request that came on an accepted stream, and the two ways to answer it."""

    def __init__(self, stream: trio.abc.Stream, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._stream = stream
        self._wire = ServerWire(max_message_bytes)
        self._rest = b""

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
                except _STREAM_ERRORS:
                    data = b""
                if not data:
                    raise HandshakeFailed("closed before a whole request")
                head += data
        if limit.cancelled_caught:
            raise HandshakeFailed(f"no whole request within {within:g} s")
        # The protocol gets the head alone: frames that came with it wait until the 101 is queued.
        self._rest = bytes(head[end + 4 :])
        return self._wire.receive_head(bytes(head[: end + 4]))

    def accept(self, headers: Mapping[str, str] | None = None) -> WebSocket:
        """Answer 101 with extra ``headers``; the WebSocket is open at once.

        Raises:
            HandshakeFailed: it is no proper upgrade; ``status`` is what to answer (426, 400, ...).
        """
        return WebSocket(self._stream, self._wire.accept(headers or {}, self._rest))

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
        data = self._wire.plain_response(status, content, fields)
        with trio.move_on_after(within), contextlib.suppress(*_STREAM_ERRORS):
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
    wire = ClientWire(url, headers or {}, MAX_QUEUED_BYTES)
    with trio.move_on_after(within) as limit:
        try:
            await stream.send_all(wire.take_request())
            while wire.is_waiting:
                wire.receive(await stream.receive_some())
        except _STREAM_ERRORS as error:
            raise HandshakeFailed("connection lost during the handshake") from error
    if limit.cancelled_caught:
        raise HandshakeFailed(f"no answer within {within:g} s")
    return WebSocket(stream, wire.opened())
