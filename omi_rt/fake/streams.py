"""A pair of connected streams in memory that push back as TCP does, on any clock.

Trio's own ``memory_stream_pair`` takes whatever it is sent, so code that never waits for its peer
looks right on it. Here a sender waits when ``capacity_bytes`` are under way, and the ends are TCP's:
a side that closes with unread data resets the connection, and what it had sent may be lost with it.
"""

from __future__ import annotations

from operator import index

import trio

DEFAULT_CAPACITY_BYTES = 65_536


class _Pipe:
    """One direction."""

    __slots__ = ("buffer", "capacity", "changed", "ended", "reset", "unread_forever")

    def __init__(self, capacity: int) -> None:
        self.buffer = bytearray()
        self.capacity = capacity
        self.changed = trio.lowlevel.ParkingLot()
        self.ended = False
        """Whether the sender has sent its end."""
        self.reset = False
        """Whether the sender has closed with data unread, so that this direction broke off."""
        self.unread_forever = False
        """Whether the receiver has closed."""


class BoundedStream(trio.abc.HalfCloseableStream):
    """One end of a `bounded_stream_pair`."""

    __slots__ = ("_closed", "_incoming", "_outgoing", "_receiving", "_sending")

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        self._sending = _Busy("sending")
        self._receiving = _Busy("receiving")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``, waiting for the peer to read. A cancelled send has sent a part.

        Raises:
            trio.BrokenResourceError: the peer closed.
            trio.ClosedResourceError: this end is closed, or has sent its end.
            trio.BusyResourceError: another task is sending.
        """
        with self._sending, memoryview(data) as view:
            await trio.lowlevel.checkpoint()
            pipe, sent = self._outgoing, 0
            while True:
                self._check_sending()
                room = pipe.capacity - len(pipe.buffer)
                if room > 0 and sent < len(view):
                    with view[sent : sent + room] as part:
                        pipe.buffer += part
                        sent += len(part)
                    pipe.changed.unpark_all()
                if sent == len(view):
                    return
                await pipe.changed.park()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Send what there is room for, as a socket does; return the rest, or None if all was sent.

        Raises as `send_all` does.
        """
        with self._sending:
            self._check_sending()
            pipe = self._outgoing
            room = max(0, pipe.capacity - len(pipe.buffer))
            pipe.buffer += data[:room]
            pipe.changed.unpark_all()
            return bytes(data[room:]) or None

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room. Raises as `send_all` does."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_sending()
            while len(self._outgoing.buffer) >= self._outgoing.capacity:
                await self._outgoing.changed.park()
                self._check_sending()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return what is there; ``b""`` after the peer's end.

        Cancelling this loses nothing.

        Raises:
            trio.BrokenResourceError: the peer reset the connection.
            trio.ClosedResourceError: this end is closed.
            trio.BusyResourceError: another task is receiving.
            ValueError: ``max_bytes`` is not positive.
        """
        if max_bytes is not None and index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            pipe = self._incoming
            # Where there is nothing yet, parking is the checkpoint, and a second would cost a turn of the loop.
            if pipe.buffer or pipe.reset or pipe.ended or self._closed:
                await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this end was closed")
                if pipe.buffer:
                    size = len(pipe.buffer) if max_bytes is None else max_bytes
                    data = bytes(pipe.buffer[:size])
                    del pipe.buffer[:size]
                    pipe.changed.unpark_all()
                    return data
                if pipe.reset:
                    raise trio.BrokenResourceError("the peer reset the connection")
                if pipe.ended:
                    return b""
                await pipe.changed.park()

    async def send_eof(self) -> None:
        """End the sending side; the peer gets ``b""`` after the rest. A second end does nothing.

        Raises:
            trio.ClosedResourceError: this end is closed.
            trio.BusyResourceError: another task is sending.
        """
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this end was closed")
            self._outgoing.ended = True
            self._outgoing.changed.unpark_all()

    async def aclose(self) -> None:
        """Close at once, under cancellation too. With unread data it is a reset."""
        if not self._closed:
            self._closed = True
            incoming, outgoing = self._incoming, self._outgoing
            if incoming.buffer:
                outgoing.reset = True
                outgoing.buffer.clear()
            incoming.buffer.clear()
            incoming.unread_forever = True
            outgoing.ended = True
            incoming.changed.unpark_all()
            outgoing.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def _check_sending(self) -> None:
        if self._closed or self._outgoing.ended:
            raise trio.ClosedResourceError("this end was closed for sending")
        if self._outgoing.unread_forever:
            raise trio.BrokenResourceError("the peer closed")


def bounded_stream_pair(
    capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
) -> tuple[BoundedStream, BoundedStream]:
    """Make two connected streams with room for ``capacity_bytes`` each way, at least 1."""
    if capacity_bytes < 1:
        raise ValueError("a stream needs room for a byte")
    there, back = _Pipe(capacity_bytes), _Pipe(capacity_bytes)
    return BoundedStream(back, there), BoundedStream(there, back)


class _Busy:
    """Keeps two tasks from doing the same thing at once."""

    __slots__ = ("_taken", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(f"another task is {self._what}")
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False
