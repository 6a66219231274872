"""A client of the embedded recogniser, for its tests."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio
from attrs import define, field

from omi_rt.codecs.wav import WavAudio, convert, read_wav
from omi_rt.core.errors import PeerClosed
from omi_rt.local.sample import sample_wav
from omi_rt.net.handshake import open_websocket
from omi_rt.net.stream import open_tcp_stream
from omi_rt.net.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLOSE_STREAM = '{"type":"CloseStream"}'
FINALIZE = '{"type":"Finalize"}'
KEEP_ALIVE = '{"type":"KeepAlive"}'
DEFAULTS = {"encoding": "linear16", "sample_rate": 16_000, "diarize": "true", "punctuate": "true"}
MESSAGE_BYTES = 3_200
PATIENCE = 60.0
"""Seconds: more than any bound of the server's own."""


@define
class Client:
    """One connection; collects what it is sent."""

    websocket: WebSocket
    messages: list[dict[str, Any]] = field(factory=list)

    def send(self, *messages: bytes | str) -> None:
        for message in messages:
            self.websocket.send_nowait(message)

    async def send_audio(self, audio: bytes) -> None:
        """Send audio in messages of a tenth of a second, as fast as it is taken."""
        for begin in range(0, len(audio), MESSAGE_BYTES):
            self.send(audio[begin : begin + MESSAGE_BYTES])
            await self.websocket.drained(MESSAGE_BYTES)

    async def receive(self, kind: str) -> dict[str, Any]:
        """Wait until a message of this type comes, and return it."""
        seen = len(self.messages)
        with trio.fail_after(PATIENCE):
            while True:
                for message in self.messages[seen:]:
                    if message["type"] == kind:
                        return message
                seen = len(self.messages)
                self.messages += map(json.loads, await self.websocket.receive())

    async def read_to_end(self, within: float = PATIENCE) -> PeerClosed:
        """Collect until the server closes."""
        with trio.fail_after(within):
            try:
                while True:
                    self.messages += map(json.loads, await self.websocket.receive())
            except PeerClosed as closed:
                return closed

    @property
    def results(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == "Results"]

    @property
    def transcript(self) -> str:
        texts = (result["channel"]["alternatives"][0]["transcript"] for result in self.results)
        return " ".join(filter(None, texts))


@asynccontextmanager
async def connected(stream: trio.abc.Stream, url: str, **query: Any) -> AsyncIterator[Client]:
    """Open a connection over ``stream``; closed at the end."""
    target = f"{url}/v1/listen?{urlencode(DEFAULTS | query)}"
    websocket = await open_websocket(stream, target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(websocket.run_writer, PATIENCE)
        try:
            yield Client(websocket)
        finally:
            with trio.move_on_after(10, shield=True):
                await websocket.aclose()


@asynccontextmanager
async def listening(url: str, **query: Any) -> AsyncIterator[Client]:
    """Open a connection to ``ws://127.0.0.1:PORT``; closed at the end."""
    stream = await open_tcp_stream("127.0.0.1", port_of(url))
    async with stream, connected(stream, url, **query) as client:
        yield client


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def sample(sample_rate: int = 16_000, channels: int = 1) -> WavAudio:
    """Return the recorded sample, converted."""
    with sample_wav() as path:
        return convert(read_wav(path.read_bytes()), sample_rate, channels)
