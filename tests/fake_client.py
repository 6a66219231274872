"""A small, well-behaved client of the fake Deepgram, over bounded streams in memory."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio
from attrs import define, field

from omi_rt.core.errors import PeerClosed
from omi_rt.net.handshake import open_websocket
from omi_rt.net.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from omi_rt.fake import FakeDeepgram

CLOSE_STREAM = '{"type":"CloseStream"}'
KEEP_ALIVE = '{"type":"KeepAlive"}'
FINALIZE = '{"type":"Finalize"}'

QUERY: dict[str, Any] = {
    "language": "en",
    "sample_rate": 8000,
    "encoding": "linear16",
    "channels": 1,
    "punctuate": "true",
    "no_delay": "true",
    "endpointing": 100,
    "interim_results": "false",
    "smart_format": "true",
    "profanity_filter": "false",
    "diarize": "true",
    "filler_words": "false",
    "multichannel": "false",
    "model": "nova-2-general",
}
"""The documented configuration."""


def target(**query: Any) -> str:
    """Path and query; a parameter that is None is left out."""
    values = {name: value for name, value in {**QUERY, **query}.items() if value is not None}
    return "/v1/listen?" + urlencode(values, doseq=True)


@define
class Client:
    """One connection and all that came on it."""

    websocket: WebSocket
    stream: trio.abc.HalfCloseableStream
    rate: int
    frame_bytes: int
    messages: list[Any] = field(factory=list)
    raw: list[str | bytes] = field(factory=list)
    closed: PeerClosed | None = None
    times: list[float] = field(factory=list)
    """When each message came."""
    ended: trio.Event = field(factory=trio.Event)

    async def read(self) -> None:
        """Collect what comes until the end."""
        try:
            while True:
                for message in await self.websocket.receive():
                    self.raw.append(message)
                    try:
                        self.messages.append(json.loads(message))
                    except ValueError:
                        self.messages.append(None)
                    self.times.append(trio.current_time())
        except PeerClosed as closed:
            self.closed = closed
            self.ended.set()

    async def speak(self, pcm: bytes, *, message_seconds: float = 0.25, speed: float = 1.0) -> None:
        """Send audio at real time, or ``speed`` times as fast, waiting where the fake does not read."""
        size = round(message_seconds * self.rate) * self.frame_bytes
        started = trio.current_time()
        for number, begin in enumerate(range(0, len(pcm), size), start=1):
            await trio.sleep_until(started + number * message_seconds / speed)
            await self.websocket.drained()
            self.websocket.send_nowait(pcm[begin : begin + size])

    def say(self, message: str | bytes) -> None:
        """Send one message."""
        self.websocket.send_nowait(message)

    async def finish(self, within: float = 30.0) -> None:
        """Send CloseStream and wait for the end."""
        self.say(CLOSE_STREAM)
        await self.until_closed(within)

    async def until_closed(self, within: float = 30.0) -> None:
        """Wait for the end."""
        with trio.fail_after(within):
            await self.ended.wait()

    @property
    def results(self) -> list[dict[str, Any]]:
        """The Results messages."""
        return [
            message
            for message in self.messages
            if isinstance(message, dict) and "channel_index" in message
        ]

    def words(self, channel: int = 0) -> list[dict[str, Any]]:
        """All words of a channel."""
        return [
            word
            for result in self.results
            if result["channel_index"][0] == channel
            for word in result["channel"]["alternatives"][0]["words"]
        ]

    def heard(self, channel: int = 0) -> list[str]:
        """The plain words of a channel."""
        return [word["word"] for word in self.words(channel)]

    @property
    def metadata(self) -> dict[str, Any]:
        """The only Metadata message."""
        (message,) = [message for message in self.messages if message["type"] == "Metadata"]
        assert isinstance(message, dict)
        return message


@asynccontextmanager
async def connected(fake: FakeDeepgram, **query: Any) -> AsyncIterator[Client]:
    """Connect to ``fake``; at the end close, and take the server's side down.

    Raises:
        HandshakeFailed: the upgrade was refused.
    """
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        try:
            websocket = await open_websocket(
                stream, "ws://fake" + target(**query), headers={"Authorization": "Token key"}
            )
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        values = {**QUERY, **query}
        client = Client(websocket, stream, values["sample_rate"], 2 * values["channels"])
        async with trio.open_nursery() as writers:
            writers.start_soon(websocket.run_writer, 30.0)
            async with trio.open_nursery() as readers:
                readers.start_soon(client.read)
                yield client
                readers.cancel_scope.cancel()
            await websocket.aclose()
            writers.cancel_scope.cancel()
        # The server's side has its own deadlines; this is for when they fail.
        nursery.cancel_scope.deadline = trio.current_time() + 300.0
