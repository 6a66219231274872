"""A plain client that loses nothing: what shows that the fake's faults can be survived.

It keeps all audio from the last final on, sends it again on a new connection, and takes a word by
the side of the watermark on which its middle lies. It is simple where it may be slow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow
from omi_rt.net.websocket import WebSocket, open_websocket
from tests.fake_client import CLOSE_STREAM, target

if TYPE_CHECKING:
    from omi_rt.fake import FakeDeepgram

RATE = 8000
STEP = 0.25
PATIENCE = 10.0
DEPTH = 2.0
SPEED = 1.25


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
                await self._converse(websocket, min(self._marks))
            finally:
                await trio.aclose_forcefully(stream)
        except (HandshakeFailed, OSError):
            return

    async def _converse(self, websocket: WebSocket, origin: float) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._patience = nursery.cancel_scope
                self._patience.deadline = trio.current_time() + 2 * PATIENCE
                nursery.start_soon(websocket.run_writer, PATIENCE)
                nursery.start_soon(self._send, websocket, origin)
                while True:
                    for message in await websocket.receive():
                        self._take(message, origin)
        except* (PeerClosed, PeerTooSlow):
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
                sent = until
                await websocket.drained()
        websocket.send_nowait(CLOSE_STREAM)

    def _take(self, message: str | bytes, origin: float) -> None:
        try:
            data: Any = json.loads(message)
            kind = data["type"]
            if kind == "Metadata":
                # All that was sent is decided, also where the provider tells nothing of silence.
                self._done |= abs(origin + data["duration"] - self._seconds) <= 0.5
            if kind != "Results" or isinstance(message, bytes) or data["is_final"] is not True:
                return
            channel = data["channel_index"][0]
            words = data["channel"]["alternatives"][0]["words"]
            end = origin + data["start"] + data["duration"]
            if not end >= 0.0:
                return
            for word in words:
                middle = origin + (word["start"] + word["end"]) / 2
                if middle >= self._marks[channel]:
                    self.heard[channel].append(word["word"])
        except (ValueError, KeyError, TypeError, IndexError):
            return
        if end > self._marks[channel]:
            self._marks[channel] = end
            self._patience.deadline = trio.current_time() + 2 * PATIENCE
            self._done |= min(self._marks) > self._seconds - 0.001

    def _byte(self, seconds: float) -> int:
        return round(seconds * RATE) * 2 * self._channels
