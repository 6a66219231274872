"""A plain client that loses nothing: what shows that the fake's faults can be survived.

It keeps all audio, and on a new connection sends again what lies behind the last word that it took.
What ends before the watermark of that moment was decided on an earlier connection. Everything else
is new unless it is the same word again. It is simple where it may be slow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow
from omi_rt.net.handshake import open_websocket
from tests.fake_client import CLOSE_STREAM, target

if TYPE_CHECKING:
    from omi_rt.fake import FakeDeepgram
    from omi_rt.net.websocket import WebSocket

RATE = 8000
STEP = 0.25
PATIENCE = 10.0
DEPTH = 2.0
SPEED = 1.25
SAME_SECONDS = 0.06
"""How far the times of a word may be off where it is told again."""
RECENT_SECONDS = 1.0
"""How far before the watermark a word that was taken may still be told again, or may reach over."""
REMEMBERED = 100


@frozen
class Taken:
    """A word, and which of its times can be trusted: those that lie inside its own final."""

    text: str
    start: float
    end: float
    trusts_start: bool
    trusts_end: bool

    def is_again(self, other: Taken) -> bool:
        """Whether this is the other word once more."""
        starts = self.trusts_start and other.trusts_start
        ends = self.trusts_end and other.trusts_end
        if not starts and not ends:
            starts = ends = True
        return (
            self.text == other.text
            and (not starts or abs(self.start - other.start) <= SAME_SECONDS)
            and (not ends or abs(self.end - other.end) <= SAME_SECONDS)
        )


class PatientClient:
    """Streams ``pcm`` at real time, through whatever comes."""

    def __init__(self, fake: FakeDeepgram, pcm: bytes, channels: int) -> None:
        self._fake = fake
        self._pcm = pcm
        self._channels = channels
        self._bytes_per_second = 2 * channels * RATE
        self._seconds = len(pcm) / self._bytes_per_second
        self._marks = [0.0] * channels
        self._done = False
        self._taken: list[list[Taken]] = [[] for _ in range(channels)]
        self.heard: list[list[str]] = [[] for _ in range(channels)]
        self.longest_backlog = 0.0

    async def run(self) -> None:
        """Connect, and connect again, until all is transcribed."""
        self._started = trio.current_time()
        failures = 0
        while not self._done:
            before = min(self._marks)
            async with trio.open_nursery() as nursery:
                await self._connect(nursery)
                nursery.cancel_scope.cancel()
            failures = 0 if min(self._marks) > before else failures + 1
            await trio.sleep(min(10.0, 0.5 * 2**failures) if failures else 0.1)

    async def _connect(self, nursery: trio.Nursery) -> None:
        query = {"channels": self._channels, "multichannel": str(self._channels > 1).lower()}
        try:
            stream = await self._fake.dialler(nursery)()
            try:
                websocket = await open_websocket(
                    stream,
                    "ws://fake" + target(**query),
                    headers={"Authorization": "Token key"},
                )
                await self._converse(websocket, min(map(self._origin, range(self._channels))))
            finally:
                await trio.aclose_forcefully(stream)
        except (HandshakeFailed, OSError):
            return

    def _origin(self, channel: int) -> float:
        """Where a channel must be heard again from: before the last word, and not within one."""
        mark, taken = self._marks[channel], self._taken[channel]
        if taken and taken[-1].end > mark - RECENT_SECONDS:
            return max(0.0, min(mark, taken[-1].start - 0.03))
        return max(0.0, mark - RECENT_SECONDS / 2)

    async def _converse(self, websocket: WebSocket, origin: float) -> None:
        self._sent = origin
        self._decided = list(self._marks)
        told_all = False
        try:
            async with trio.open_nursery() as nursery:
                self._patience = nursery.cancel_scope
                self._patience.deadline = trio.current_time() + 2 * PATIENCE
                nursery.start_soon(websocket.run_writer, PATIENCE)
                nursery.start_soon(self._send, websocket, origin)
                while True:
                    for message in await websocket.receive():
                        told_all |= self._take(message, origin)
        except* PeerClosed as group:
            # Results may come between Metadata and the close.
            codes = {error.code for error in group.exceptions if isinstance(error, PeerClosed)}
            self._done |= told_all and 1000 in codes
        except* PeerTooSlow:
            pass

    async def _send(self, websocket: WebSocket, origin: float) -> None:
        opened = trio.current_time()
        sent = origin
        while sent < self._seconds:
            await trio.sleep(STEP / 2)
            now = trio.current_time()
            allowed = origin + DEPTH + (now - opened) * SPEED
            until = min(now - self._started, self._seconds, allowed)
            self.longest_backlog = max(
                self.longest_backlog,
                min(now - self._started, self._seconds) - min(self._marks),
            )
            if until - sent >= STEP or until == self._seconds:
                websocket.send_nowait(self._pcm[self._byte(sent) : self._byte(until)])
                sent = self._sent = until
                await websocket.drained()
        websocket.send_nowait(CLOSE_STREAM)

    def _take(self, message: str | bytes, origin: float) -> bool:
        """Take a message; tell whether it says that all is told, or nearly."""
        try:
            data: Any = json.loads(message)
            kind = data["type"]
            if kind == "Metadata":
                # All that was sent is decided, also where the provider tells nothing of silence.
                return bool(abs(origin + data["duration"] - self._seconds) <= 0.5)
            if kind != "Results" or isinstance(message, bytes) or data["is_final"] is not True:
                return False
            channel = data["channel_index"][0]
            start = origin + data["start"]
            end = start + data["duration"]
            if not end >= 0.0:
                return False
            words = [
                Taken(
                    word["word"],
                    origin + word["start"],
                    origin + word["end"],
                    max(start, origin + 0.001) <= origin + word["start"],
                    origin + word["end"] <= end + 0.001,
                )
                for word in data["channel"]["alternatives"][0]["words"]
            ]
        except (ValueError, KeyError, TypeError, IndexError):
            return False
        for word in words:
            self._take_word(channel, word)
        if end > self._sent + 0.01:
            # It claims what it cannot have heard: what it has said is all that can be believed.
            end = max((word.end for word in words), default=0.0)
        if end > self._marks[channel]:
            self._marks[channel] = end
            self._patience.deadline = trio.current_time() + 2 * PATIENCE
            self._done |= min(self._marks) > self._seconds - 0.001
        return False

    def _take_word(self, channel: int, word: Taken) -> None:
        taken = self._taken[channel]
        if word.end > self._decided[channel] and not any(map(word.is_again, taken)):
            self.heard[channel].append(word.text)
            taken.append(word)
            del taken[:-REMEMBERED]

    def _byte(self, seconds: float) -> int:
        return round(seconds * RATE) * 2 * self._channels
