"""The stream below a connection to Deepgram."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from omi_rt.net.frames import TextFrames

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORK_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


RECEIVED_QUEUE_MESSAGES = 16


class WatchedStream(trio.abc.Stream):
    """The stream below the library: remembers a failed send, and tells when the peer has ended.

    Two send over it, the library and our audio; a frame that has begun keeps the other waiting.
    And two receive: plain text messages go to `receive_text`, the rest to the library.
    """

    __slots__ = (
        "_arrived",
        "_frames",
        "_is_sending",
        "_rest",
        "_send_at_once",
        "_stream",
        "_taken",
        "_waiting",
        "ended",
        "send_failed",
    )

    def __init__(self, stream: trio.abc.Stream, max_message_bytes: int) -> None:
        self._stream = stream
        self._frames = TextFrames(max_message_bytes)
        self._arrived = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()
        # Of TCP, not of TLS: what that sends is not what it is given.
        self._send_at_once = getattr(stream, "send_nowait", None)
        self._rest: bytes | memoryview = b""
        self._is_sending = False
        self._waiting = trio.lowlevel.ParkingLot()
        self.send_failed = False
        """Whether a send met a broken connection; later ones do nothing."""
        self.ended = trio.Event()
        """Set when nothing more will be received."""

    def send_nowait(self, frame: bytes) -> bool:
        """Send a frame if the kernel takes all of it now; the rest waits for `send_rest`."""
        if self._send_at_once is None or self._is_sending or self.send_failed:
            return False
        try:
            sent = self._send_at_once(frame)
        except NETWORK_ERRORS:
            self.send_failed = True
            return True
        if sent == len(frame):
            return True
        self._rest = memoryview(frame)[sent:]
        self._is_sending = True
        return False

    async def send_rest(self, make_frame: Callable[[bytes], bytes], payload: bytes) -> None:
        """Send what a `send_nowait` has left over, or else a new frame of ``payload``."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._is_sending = False
            await self.send_all(rest)
        else:
            await self.send_all(make_frame(payload))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as the stream below does, but raise nothing where it is broken."""
        while self._is_sending:
            await self._waiting.park()
        if self.send_failed:
            return
        self._is_sending = True
        try:
            await self._stream.send_all(data)
        except NETWORK_ERRORS:
            # The library would throw away what has arrived if it knew.
            self.send_failed = True
        self._is_sending = False
        self._waiting.unpark()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream below does."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_text(self) -> str | None:
        """Wait for the next message; None where the library has it, or knows why none comes.

        For one task. Cancelling is safe: no message is lost.
        """
        texts = self._frames.texts
        while not texts:
            if self._frames.is_over:
                return None
            await self._arrived.park()
        text = texts.popleft()
        self._taken.unpark()
        return text

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is for the library, as the stream below does."""
        frames = self._frames
        while True:
            while len(frames.texts) >= RECEIVED_QUEUE_MESSAGES:
                await self._taken.park()
            try:
                data = await self._stream.receive_some(max_bytes)
            except NETWORK_ERRORS:
                self._end()
                raise
            if not data:
                self._end()
                return data
            rest = frames.feed(data)
            if frames.texts or frames.is_over:
                self._arrived.unpark()
            if rest:
                return rest

    async def aclose(self) -> None:
        """Close the stream below."""
        self._end()
        await self._stream.aclose()

    def _end(self) -> None:
        self.ended.set()
        self._frames.is_over = True
        self._arrived.unpark()
