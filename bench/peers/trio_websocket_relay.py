"""Peer (c): trio-websocket on both sides, the plain way: a nursery with a task for each direction."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import orjson
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
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

if TYPE_CHECKING:
    from collections.abc import Callable

HEARTBEAT_SECONDS = 30.0

TLS = ssl.create_default_context() if deepgram_url().startswith("wss") else None


async def listen(request: WebSocketRequest) -> None:
    """One session: the first side that leaves, ends it."""
    query = {key: values[-1] for key, values in parse_qs(urlsplit(request.path).query).items()}
    sample_rate = int(query.get("sample_rate", "8000"))
    channels = int(query.get("channels", "1"))
    decoder = OpusDecoder(sample_rate, channels) if query.get("codec") in OPUS_CODECS else None
    url = listen_url(query.get("language", "en"), sample_rate, channels)
    device = await request.accept()
    async with (
        open_websocket_url(url, ssl_context=TLS, extra_headers=headers()) as provider,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(forward_audio, device, provider, decoder, nursery.cancel_scope.cancel)
        nursery.start_soon(return_segments, device, provider, nursery.cancel_scope.cancel)
        nursery.start_soon(send_heartbeat, device)


def headers() -> list[tuple[bytes, bytes]]:
    """The provider's headers in the form that the library wants."""
    return [(name.encode(), value.encode()) for name, value in authorization().items()]


async def forward_audio(
    device: WebSocketConnection,
    provider: WebSocketConnection,
    decoder: OpusDecoder | None,
    end_session: Callable[[], None],
) -> None:
    """Send each frame of the device to the provider until the device leaves."""
    try:
        while True:
            data = await device.get_message()
            if isinstance(data, str):
                continue
            await provider.send_message(data if decoder is None else bytes(decoder.decode(data)))
    except ConnectionClosed:
        if not provider.closed:
            await provider.send_message(CLOSE_STREAM)
    end_session()


async def return_segments(
    device: WebSocketConnection, provider: WebSocketConnection, end_session: Callable[[], None]
) -> None:
    """Send the segments of each final to the device until either side leaves."""
    try:
        while True:
            segments = segments_of(orjson.loads(await provider.get_message()))
            if segments:
                await device.send_message(orjson.dumps(segments).decode())
    except ConnectionClosed:
        end_session()


async def send_heartbeat(device: WebSocketConnection) -> None:
    """Tell the device at the interval that the session lives."""
    while True:
        await trio.sleep(HEARTBEAT_SECONDS)
        await device.send_message('{"type":"ping"}')


if __name__ == "__main__":
    port = parse_port(__doc__)
    trio.run(partial(serve_websocket, listen, "127.0.0.1", port, ssl_context=None))
