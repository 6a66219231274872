"""The stream below a connection to Deepgram."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import trio

from omi_rt.light_event import LightEvent
from omi_rt.net.frames import TextFrames
from omi_rt.net.poller import Kind, running_poller
from omi_rt.net.protocol import client_binary_frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NETWORK_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)
T = TypeVar("T")
TEXTS_PER_STEP = 16
"""This many of the messages that came at once are taken before other sessions get a turn: they take some
5 ms."""
MAX_LIBRARY_BYTES = 65_536
"""At most this much may wait for the library."""


class WatchedStream(trio.abc.Stream):
    """The stream below the library: remembers a failed send, and tells when the peer has ended.

    Two send over it, the library and our audio; a frame that has begun keeps the other waiting.

    And two receive. The library reads the answer to the handshake; from then on `receive_text` reads,
    takes the plain text messages, which are all that comes while all is well, and leaves the rest to
    the library; after `hand_over` the library reads again. So a final is with whoever waits for it
    in one turn of the loop, where the library needs three.
    """

    __slots__ = (
        "_for_library",
        "_frames",
        "_given",
        "_is_for_library",
        "_is_sending",
        "_on_text",
        "_rest",
        "_send_at_once",
        "_stream",
        "_waiting",
        "ended",
        "send_failed",
    )

    def __init__(self, stream: trio.abc.Stream, max_message_bytes: int) -> None:
        self._stream = stream
        self._frames = TextFrames(max_message_bytes)
        self._given = 0
        self._for_library = b""
        self._is_for_library = LightEvent()
        """Set, and replaced, when the library may have something to read."""
        self._send_at_once = getattr(stream, "send_nowait", None)
        self._rest: bytes | bytearray | memoryview | None = None
        self._is_sending = False
        self._on_text: tuple[Callable[[str], Any], Callable[[Any, float], None]] | None = None
        """``parse`` and ``take`` of `pass_texts_on`, while that waits."""
        self._waiting: trio.lowlevel.ParkingLot | None = None
        """Where who wants to send waits for a frame that is half sent."""
        self.send_failed = False
        """Whether a send met a broken connection; later ones do nothing."""
        self.ended = LightEvent()
        """Set when nothing more will be received."""

    def send_audio_nowait(self, payload: bytes) -> bool:
        """Send audio if that needs no waiting; returns whether it is done.

        If it returns False, `send_audio` must follow at once, because a part of the frame may be on the
        wire. It may be called only while nobody else sends.
        """
        send_at_once = self._send_at_once
        if send_at_once is None or self._is_sending or self.send_failed:
            return False
        try:
            self._rest = send_at_once(client_binary_frame(payload))
        except NETWORK_ERRORS:
            self.send_failed = True
            return True
        self._is_sending = self._rest is not None
        return not self._is_sending

    async def send_audio(self, payload: bytes) -> None:
        """Send what a `send_audio_nowait` has left over, or else a new frame of ``payload``."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            self._is_sending = False
            await self.send_all(rest)
        else:
            await self.send_all(client_binary_frame(payload))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as the stream below does, but raise nothing where it is broken."""
        while self._is_sending:
            if self._waiting is None:
                self._waiting = trio.lowlevel.ParkingLot()
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
        if self._waiting is not None:
            self._waiting.unpark()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream below does."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_text(self) -> str | None:
        """Wait for the next message; None where the library has it, or knows why none comes.

        For one task, after the handshake. Cancelling is safe: no message is lost.
        """
        frames = self._frames
        if self._given == TEXTS_PER_STEP and frames.texts:
            self._given = 0
            await trio.lowlevel.checkpoint()
        while not frames.texts:
            if frames.is_over:
                return None
            self._given = 0
            try:
                data = await self._stream.receive_some()
            except NETWORK_ERRORS:
                data = b""
            self._feed(data)
        self._given += 1
        return frames.texts.pop(0)

    async def pass_texts_on(
        self, parse: Callable[[str], T], take: Callable[[T, float], None]
    ) -> None:
        """Pass each message, as ``parse`` reads it, to ``take`` with the time as it arrives.

        Nothing else may take messages meanwhile. Returns at once where no poller runs, and when
        `receive_text` is to be asked. What the two raise is raised here; they must not wait. Cancelling
        is safe.
        """
        frames, serve = self._frames, getattr(self._stream, "serve", None)
        if serve is None or running_poller() is None or frames.texts or frames.is_over:
            return
        self._on_text = parse, take
        try:
            with suppress(*NETWORK_ERRORS):
                await serve(self._take_data, Kind.PROVIDER)
        finally:
            # They hold this stream: it must not hold them.
            self._on_text = None

    def _take_data(self, data: bytes, now: float) -> bool:
        """Pass on what a read has brought; returns whether `receive_text` is to be asked."""
        assert self._on_text is not None
        frames, (parse, take) = self._frames, self._on_text
        text = frames.take_only(data)
        if text is not None:
            take(parse(text), now)
            return False
        self._feed(data)
        for _ in range(TEXTS_PER_STEP):
            if not frames.texts:
                return frames.is_over
            take(parse(frames.texts.pop(0)), now)
        return bool(frames.texts) or frames.is_over

    def _feed(self, data: bytes | bytearray) -> None:
        if data:
            self._for_library += self._frames.feed(data)
        if not data or len(self._for_library) > MAX_LIBRARY_BYTES:
            # At the end the library will meet the same, and say what it means. Where it cannot get
            # rid of its pongs, it knows to read no further.
            self.hand_over()
        if self._for_library:
            self._wake_library()

    def hand_over(self) -> None:
        """Let the library read from here on. Nobody may be reading in `receive_text`."""
        self._for_library += self._frames.give_up()
        self._wake_library()

    def _wake_library(self) -> None:
        self._is_for_library.set()
        self._is_for_library = LightEvent()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is for the library."""
        frames = self._frames
        while True:
            if self._for_library:
                data, self._for_library = self._for_library, b""
                return data
            if frames.has_head and not frames.is_over:
                await self._is_for_library.wait()
                continue
            try:
                received = await self._stream.receive_some(max_bytes)
            except NETWORK_ERRORS:
                self.ended.set()
                raise
            if not received:
                self.ended.set()
                return received
            self._for_library += frames.feed(received)

    async def aclose(self) -> None:
        """Close the stream below."""
        self.ended.set()
        self.hand_over()
        await self._stream.aclose()
