"""Peer (d): picows on uvloop with no structure at all: the floor in Python.

Callbacks that write straight to the other socket. There is no task per session once it runs, no
backpressure, no deadline and no error handling beyond closing the other side.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import parse_qs, urlsplit

import orjson
import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    ws_connect,
    ws_create_server,
)

from bench.peers.common import (
    CLOSE_STREAM,
    OPUS_CODECS,
    OpusDecoder,
    authorization,
    deepgram_url,
    listen_url,
    parse_port,
    segments_of,
)

TLS = ssl.create_default_context() if deepgram_url().startswith("wss") else None
# Looked up once: an attribute of an Enum class costs more than a name.
_BINARY, _TEXT, _CLOSE = WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CLOSE


class Device(WSListener):
    """The device's side of a session."""

    def __init__(self, request: WSUpgradeRequest) -> None:
        query = {
            key: values[-1]
            for key, values in parse_qs(urlsplit(request.path.decode()).query).items()
        }
        rate, channels = int(query.get("sample_rate", "8000")), int(query.get("channels", "1"))
        self._url = listen_url(query.get("language", "en"), rate, channels)
        self._decoder = OpusDecoder(rate, channels) if query.get("codec") in OPUS_CODECS else None
        self._provider: WSTransport | None = None
        self._early: list[bytes] = []
        self._dialling: asyncio.Task[None] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._dialling = asyncio.create_task(self._dial(transport))

    async def _dial(self, device: WSTransport) -> None:
        try:
            provider, _ = await ws_connect(
                lambda: Provider(device),
                self._url,
                ssl_context=TLS,
                extra_headers=authorization(),
            )
        except Exception:
            device.disconnect()
            raise
        for data in self._early:
            provider.send(_BINARY, data)
        self._early.clear()
        self._provider = provider

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is _BINARY:
            audio = (
                frame.get_payload_as_memoryview()
                if self._decoder is None
                else self._decoder.decode(frame.get_payload_as_bytes())
            )
            if self._provider is None:
                self._early.append(bytes(audio))
            else:
                self._provider.send(_BINARY, audio)
        elif frame.msg_type is _CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        if self._provider is not None:
            self._provider.send(_TEXT, CLOSE_STREAM)


class Provider(WSListener):
    """The provider's side of a session."""

    def __init__(self, device: WSTransport) -> None:
        self._device = device

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is _TEXT:
            segments = segments_of(orjson.loads(frame.get_payload_as_memoryview()))
            if segments:
                self._device.send(_TEXT, orjson.dumps(segments))
        elif frame.msg_type is _CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._device.disconnect()


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await ws_create_server(Device, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(parse_port(__doc__)))
