"""WebSockets over any Trio stream, either side: the shell around `omi_rt.net.protocol`.

One task receives, anyone may queue, and what is queued is offered to the kernel at once. What that does
not take is sent by one more task, the writer. They never wait for each other: a peer that does not read
cannot keep pongs or a close frame from being seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum

import trio

from omi_rt.core.errors import PeerTooSlow
from omi_rt.net.poller import Kind, running_poller
from omi_rt.net.protocol import (
    WebSocketProtocol,
    ends_stream,
)
from omi_rt.net.stream import TCPStream
from omi_rt.net.tls import TLSStream
from omi_rt.net.turns import wait_turn

Take = Callable[[list[bytes | str], float], list[bytes | str] | None]
"""Takes messages at once and without waiting; returns None for more, else those that it leaves."""
TakeFrame = Callable[[bytes, float], list[bytes | str] | None]
"""Takes the one binary message of an ordinary read in the same way."""

MAX_MESSAGE_BYTES = 65_536
MAX_QUEUED_BYTES = 1_048_576
"""This much may wait for a peer that does not read: about an hour of segments."""
CLOSE_SECONDS = 5.0
ABORT_SECONDS = 1.0
ALLOWED_FRAMES_PER_SECOND = 200
"""Twice what the busiest device sends, which frames 10 ms of audio. Who sends more waits in line."""
ALLOWED_FRAMES_AT_ONCE = 500
"""This many frames may come at once after a pause; a device that was away for five seconds has as many."""
_BYTES_OF_A_FRAME = 8_192
"""A read counts as one frame for each of these bytes."""
STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream raises whose other side, or whose own, has gone."""


class Sending(Enum):
    """Who sends what is queued."""

    HELD = "held"
    """Nobody: it waits for `WebSocket.send_with`."""
    AT_ONCE = "at once"
    """Whoever queues it, as long as the kernel takes it."""
    BY_WRITER = "by writer"
    """The writer, which has been started and has not finished."""
    OVER = "over"
    """Nobody any more."""


class WebSocket:
    """One open WebSocket connection.

    ``send_with`` names who starts a writer, for anything to be sent; ``run_writer`` does both in a task
    that lives as long as the connection. A writer that waits for work takes 6 KiB, and to wake it takes
    a turn of the loop in which others are served first; so what is queued while there is no writer is
    offered to the kernel at once.
    """

    __slots__ = (
        "_allowance",
        "_allowed_at",
        "_ends_sending",
        "_has_rest",
        "_left",
        "_outgoing",
        "_protocol",
        "_queued_bytes",
        "_sending",
        "_sent",
        "_start_writer",
        "_stream",
        "_take",
        "_take_frame",
        "_tcp",
        "is_sending",
        "received_at",
    )

    def __init__(self, stream: trio.abc.Stream, protocol: WebSocketProtocol) -> None:
        self._stream = stream
        self._tcp = stream if isinstance(stream, TCPStream | TLSStream) else None
        self._protocol = protocol
        self._outgoing = bytearray()
        self._take: Take | None = None
        self._take_frame: TakeFrame | None = None
        """Those whom `receive` passes messages, while it waits."""
        self._left: list[bytes | str] | None = None
        """What they have left, which `receive` returns."""
        self._ends_sending = False
        """Whether the sending side ends after what is in the queue."""
        self._queued_bytes = 0
        self._has_rest = False
        """Whether the stream itself keeps a rest of what it was offered, as TLS does."""
        self._sending = Sending.HELD
        self._start_writer: Callable[[], object] = _start_nothing
        self._sent: trio.Event | None = None
        """Set when something has been sent, or nothing is any more, for who waits for that."""
        self.is_sending = False
        """Whether the writer is sending: a frame may be half on the wire, its rest nowhere else.

        (The rest of what was offered at once is the first in the queue.)
        """
        self.received_at = trio.current_time()
        """When anything last came from the peer (`trio.current_time`), pongs included."""
        self._allowance = ALLOWED_FRAMES_AT_ONCE
        """Frames that it may send before it has to wait in line."""
        self._allowed_at = self.received_at
        self._take_outgoing()

    async def receive(
        self, take: Take | None = None, take_frame: TakeFrame | None = None
    ) -> list[bytes | str]:
        """Wait for the peer's messages and return those that have arrived, at least one.

        With ``take`` and ``take_frame``, over TCP and TLS and where a poller runs, messages are passed to
        ``take`` as they arrive, with the time: to return them costs a switch of tasks. A read that is one
        whole binary frame, as nearly all are, is passed to ``take_frame`` instead. What they do not take,
        or nothing, is returned once they return a list.

        One read takes everything that the system holds: under load the batches grow, and the cost
        of a message falls. Of many messages the first `FRAMES_PER_STEP` are returned; the next call
        lets others go first. Cancelling this is safe: no message is lost.

        Raises:
            PeerClosed: the peer closed, or the network did, or it broke the protocol; what arrived
                before was returned before.
        """
        protocol, tcp = self._protocol, self._tcp
        if take is None or running_poller() is None:
            tcp = None
        try:
            while True:
                if protocol.has_more:
                    await self._let_others_go_first()
                messages = self._take_step()
                if messages:
                    return messages
                if protocol.has_more:
                    continue
                if not protocol.is_open:
                    raise protocol.closed()
                if tcp is None:
                    await self._feed()
                    continue
                await self._wait_in_line()
                self._take, self._take_frame = take, take_frame
                try:
                    await tcp.serve(self._take_data, Kind.DEVICE)
                except STREAM_ERRORS:
                    protocol.receive(b"")
                if self._left is not None:
                    return self._left
        finally:
            # Those who are passed the messages hold this connection: it must not hold them.
            self._take = self._take_frame = self._left = None

    @property
    def peer(self) -> str:
        """The address and port of the other side; empty where it has none, or has gone already."""
        return self._tcp.peer if self._tcp is not None else ""

    @property
    def has_more(self) -> bool:
        """Whether messages have arrived that the last `receive` has not returned."""
        return self._protocol.has_more

    @property
    def can_send(self) -> bool:
        """Whether anything is sent still: no more is when a send has met the loss of the connection."""
        return self._sending is not Sending.OVER

    @property
    def has_sent_all(self) -> bool:
        """Whether the system has taken all that was queued."""
        return self._queued_bytes == 0

    def send_nowait(self, message: str | bytes) -> None:
        """Queue one message. After the close, or once nothing is sent any more, this does nothing.

        Raises:
            PeerTooSlow: the peer has not read for so long that `MAX_QUEUED_BYTES` wait for it.
        """
        if self._sending is Sending.OVER:
            return
        if self._queued_bytes > MAX_QUEUED_BYTES:
            raise PeerTooSlow("the peer does not read what it is sent")
        frame = self._protocol.frame(message)
        if frame:
            self._offer(frame)

    async def drained(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` bytes are queued or under way, or nothing is sent any more.

        The peer decides how long that takes: the bound is the caller's. Cancelling is safe.
        """
        while self._queued_bytes >= below and self._sending is not Sending.OVER:
            await self._wait_for_sending()

    def ping_nowait(self) -> None:
        """Queue a protocol ping; the answer shows in ``received_at``."""
        self._protocol.ping()
        self._take_outgoing()

    def close_nowait(self, code: int, reason: str = "") -> None:
        """Queue the close frame, after all that was queued before. A second close does nothing."""
        self._protocol.close(code, reason)
        self._take_outgoing()

    def send_with(self, start_writer: Callable[[], object]) -> None:
        """Send what is queued from now on.

        Args:
            start_writer: starts a task that calls `write`; called whenever the kernel refuses data, or
                the sending side is to end, and no such task is left from before. It must not wait.
        """
        self._start_writer = start_writer
        if self._sending is Sending.HELD:
            self._sending = Sending.AT_ONCE
            data, self._outgoing = self._outgoing, bytearray()
            self._queued_bytes -= len(data)
            if data or self._ends_sending:
                self._offer(data)
                self._note_sent()

    async def write(self, send_timeout: float) -> bool:
        """Send what is queued; returns whether nothing is sent after it, as the end has been sent or met.

        The only task that waits for the stream to take anything. A cancelled or late send may leave
        half a frame on the wire: the connection is then good for nothing but `abort`.

        Raises:
            PeerTooSlow: a send took over ``send_timeout`` seconds.
        """
        after = Sending.OVER
        try:
            while self._outgoing or self._has_rest or self._ends_sending:
                data, self._outgoing = self._outgoing, bytearray()
                ends_sending = self._ends_sending
                if data or self._has_rest:
                    self.is_sending, self._has_rest = True, False
                    with trio.move_on_after(send_timeout) as limit:
                        await self._stream.send_all(data)
                    if limit.cancelled_caught:
                        raise PeerTooSlow(f"took no data for {send_timeout:g} s")
                    self.is_sending = False
                    self._queued_bytes -= len(data)
                    self._note_sent()
                if ends_sending:
                    if isinstance(self._stream, trio.abc.HalfCloseableStream):
                        await self._stream.send_eof()
                    return True
            after = Sending.AT_ONCE
        except STREAM_ERRORS:
            # The reader meets the same end and tells it.
            return True
        finally:
            self._sending = after
            self._note_sent()
        return False

    async def run_writer(self, send_timeout: float) -> None:
        """Be the writer whenever one is needed, until the closing handshake has sent its end.

        Raises:
            PeerTooSlow: a send took over ``send_timeout`` seconds.
        """
        wake = trio.Event()
        try:
            self.send_with(lambda: wake.set())
            while True:
                await wake.wait()
                wake = trio.Event()
                if await self.write(send_timeout):
                    return
        finally:
            self._sending = Sending.OVER
            self._note_sent()

    async def flush(self, send_timeout: float) -> None:
        """Send what is queued before ``run_writer`` runs, such as the answer to the upgrade.

        A cancelled or late send leaves the connection good for nothing but `abort`. A peer that is
        gone is told by the next `receive`.

        Raises:
            PeerTooSlow: the send took over ``send_timeout`` seconds.
        """
        data, self._outgoing = self._outgoing, bytearray()
        self.is_sending = True
        with trio.move_on_after(send_timeout) as limit, contextlib.suppress(*STREAM_ERRORS):
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            raise PeerTooSlow(f"took no data for {send_timeout:g} s")
        self.is_sending = False
        self._queued_bytes -= len(data)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close with ``code`` and wait for the peer's answer, `CLOSE_SECONDS` at most.

        What the peer had under way is read and thrown away; one that sends more than that, and no
        answer, is dropped.

        Cancelling this closes the stream at once. A writer can still be started, and nobody may be
        receiving.
        """
        self.close_nowait(code, reason)
        # Reading on until the end matters even after the peer's close frame: closing a socket with
        # unread data resets it, and the reset can overtake our own close frame.
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                while not (self._protocol.is_closed or self._protocol.is_flooded):
                    if self._protocol.has_more:
                        await self._let_others_go_first()
                    else:
                        await self._feed()
                    self._take_step()
                if not self._protocol.is_flooded:
                    while self._sending is not Sending.OVER:
                        await self._wait_for_sending()
        finally:
            # What was never sent, up to a megabyte, would stay until the collector comes by.
            self._outgoing = bytearray()
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await trio.aclose_forcefully(self._stream)

    async def abort(self, code: int, reason: str = "") -> None:
        """Close at once, when no writer is left: what is queued goes out if it can.

        Where a send was cut off, a close frame would come out as garbage and is left out. Bounded
        and shielded; closes the stream in any case.
        """
        self._sending = Sending.OVER
        self.close_nowait(code, reason)
        with trio.move_on_after(ABORT_SECONDS, shield=True):
            if not self.is_sending:
                with contextlib.suppress(*STREAM_ERRORS):
                    await self._stream.send_all(self._outgoing)
        self._outgoing = bytearray()
        await trio.aclose_forcefully(self._stream)

    async def _let_others_go_first(self) -> None:
        if self._queued_bytes >= MAX_QUEUED_BYTES:
            # Answers to pings are queued by reading: who does not read them is not read either.
            await self.drained(MAX_QUEUED_BYTES)
        if self._protocol.is_late:
            # Nobody wants what comes now: it may take as long as it likes.
            await wait_turn()
            return
        if self._allowance >= 0:
            await trio.lowlevel.checkpoint()
            return
        now = trio.current_time()
        more = int((now - self._allowed_at) * ALLOWED_FRAMES_PER_SECOND)
        self._allowance = min(self._allowance + more, ALLOWED_FRAMES_AT_ONCE)
        self._allowed_at = now
        if self._allowance < 0:
            self._allowance = max(self._allowance, -ALLOWED_FRAMES_AT_ONCE)
            await wait_turn()

    def _take_step(self) -> list[bytes | str]:
        messages = self._protocol.take_messages()
        self._allowance -= self._protocol.taken_frames
        if self._protocol.has_writes:
            self._take_outgoing()
        return messages

    def _take_data(self, data: bytes, now: float) -> bool:
        """Pass on what a read has brought; returns whether `receive` is to go on."""
        self.received_at = now
        protocol = self._protocol
        message = protocol.take_only(data)
        if message is not None:
            self._allowance -= 1
            take_frame = self._take_frame
            assert take_frame is not None, "with take there is take_frame as well"
            left = self._left = take_frame(message, now)
            return left is not None or self._allowance < 0
        self._allowance -= len(data) // _BYTES_OF_A_FRAME
        protocol.receive(data)
        messages = self._take_step()
        assert self._take is not None
        left = self._left = self._take(messages, now) if messages else None
        return (
            left is not None
            or protocol.has_more
            or not protocol.is_open
            or self._allowance < 0
            or self._queued_bytes >= MAX_QUEUED_BYTES
        )

    async def _wait_in_line(self) -> None:
        if self._allowance < 0 or self._protocol.is_late or self._queued_bytes >= MAX_QUEUED_BYTES:
            await self._let_others_go_first()

    async def _feed(self) -> None:
        await self._wait_in_line()
        try:
            data = await self._stream.receive_some()
        except STREAM_ERRORS:
            data = b""
        self.received_at = trio.current_time()
        self._allowance -= len(data) // _BYTES_OF_A_FRAME
        self._protocol.receive(data)

    def _take_outgoing(self) -> None:
        writes = self._protocol.take_writes()
        if not writes:
            return
        self._ends_sending = self._ends_sending or ends_stream(writes)
        self._offer(writes[0] if len(writes) == 1 else b"".join(writes))

    def _offer(self, data: bytes | bytearray) -> None:
        """Give data to the kernel where it may go at once; else queue it, and see to a writer."""
        rest: bytes | bytearray | memoryview = data
        if self._sending is Sending.AT_ONCE:
            if self._tcp is not None and not self._ends_sending:
                try:
                    left = self._tcp.send_nowait(data)
                except STREAM_ERRORS:
                    left = data  # the writer meets the same
                if left is None:
                    return
                rest = left
                self._has_rest = not rest
            self._sending = Sending.BY_WRITER
            self._outgoing += rest
            self._queued_bytes += len(rest)
            self._start_writer()
            return
        self._outgoing += rest
        self._queued_bytes += len(rest)

    async def _wait_for_sending(self) -> None:
        if self._sent is None:
            self._sent = trio.Event()
        await self._sent.wait()

    def _note_sent(self) -> None:
        if self._sent is not None:
            self._sent.set()
            self._sent = None


def _start_nothing() -> None:
    """Stand in for a writer before anything is sent."""
