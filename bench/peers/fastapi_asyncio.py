"""Peer (b): FastAPI and uvicorn on uvloop, and the provider's client by hand on asyncio ``websockets``.

The best that the original's shape can do: no threads, no blocking call, the fast decoder, a fast JSON
library, no compression, the sans-I/O protocol where uvicorn offers it.
"""

from __future__ import annotations

import asyncio
import ssl

import orjson
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

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

HEARTBEAT_SECONDS = 30.0

app = FastAPI()
TLS = ssl.create_default_context() if deepgram_url().startswith("wss") else None


@app.websocket("/listen")
async def listen(
    websocket: WebSocket,
    uid: str,
    language: str = "en",
    sample_rate: int = 8000,
    codec: str = "pcm8",
    channels: int = 1,
) -> None:
    """One session: a task for each direction; the first that ends, ends it."""
    await websocket.accept()
    decoder = OpusDecoder(sample_rate, channels) if codec in OPUS_CODECS else None
    async with connect(
        listen_url(language, sample_rate, channels),
        additional_headers=authorization(),
        compression=None,
        ssl=TLS,
    ) as provider:
        tasks = [
            asyncio.create_task(forward_audio(websocket, provider, decoder)),
            asyncio.create_task(return_segments(websocket, provider)),
            asyncio.create_task(send_heartbeat(websocket)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def forward_audio(
    websocket: WebSocket, provider: ClientConnection, decoder: OpusDecoder | None
) -> None:
    """Send each frame of the device to the provider until the device leaves."""
    try:
        while True:
            data = await websocket.receive_bytes()
            await provider.send(data if decoder is None else decoder.decode(data))
    except WebSocketDisconnect:
        await provider.send(CLOSE_STREAM)
    except ConnectionClosed:
        pass


async def return_segments(websocket: WebSocket, provider: ClientConnection) -> None:
    """Send the segments of each final to the device until the provider leaves."""
    async for message in provider:
        segments = segments_of(orjson.loads(message))
        if segments:
            await websocket.send_text(orjson.dumps(segments).decode())


async def send_heartbeat(websocket: WebSocket) -> None:
    """Tell the device at the interval that the session lives."""
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        await websocket.send_text('{"type":"ping"}')


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=parse_port(__doc__),
        loop="uvloop",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        log_level="warning",
    )
