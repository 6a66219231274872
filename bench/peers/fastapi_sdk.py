"""Peer (a): FastAPI, uvicorn and deepgram-sdk 3 with its threads: the shape of the original backend.

The SDK's client is synchronous: connecting and sending happen on the event loop's thread, results
arrive on a thread of the SDK's own and are handed to the loop with ``run_coroutine_threadsafe``.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import opuslib
import uvicorn
from deepgram import (
    DeepgramClient,
    DeepgramClientOptions,
    LiveOptions,
    LiveTranscriptionEvents,
)
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from bench.peers.common import (
    MAX_PACKET_SECONDS,
    OPUS_CODECS,
    deepgram_url,
    group_words,
    live_options,
    parse_port,
)

HEARTBEAT_SECONDS = 30.0

app = FastAPI()
deepgram = DeepgramClient(
    os.environ.get("DEEPGRAM_API_KEY", ""),
    DeepgramClientOptions(
        # The SDK takes http(s) for a base and makes ws(s) of it.
        url=deepgram_url().replace("ws", "http", 1),
        options={"keepalive": "true"},
    ),
)


@app.websocket("/listen")
async def listen(
    websocket: WebSocket,
    uid: str,
    language: str = "en",
    sample_rate: int = 8000,
    codec: str = "pcm8",
    channels: int = 1,
) -> None:
    """One session: the provider's client, and two tasks."""
    await websocket.accept()
    loop = asyncio.get_running_loop()

    def on_message(_client: Any, result: Any, **_: Any) -> None:
        segments = group_words(
            (word.speaker or 0, word.start, word.end, word.punctuated_word)
            for word in result.channel.alternatives[0].words
        )
        if segments:
            asyncio.run_coroutine_threadsafe(websocket.send_json(segments), loop)

    connection = deepgram.listen.websocket.v("1")
    connection.on(LiveTranscriptionEvents.Transcript, on_message)
    if not connection.start(LiveOptions(**live_options(language, sample_rate, channels))):
        await websocket.close(1011, "no provider")
        return

    decoder = opuslib.Decoder(sample_rate, channels) if codec in OPUS_CODECS else None
    room = int(sample_rate * MAX_PACKET_SECONDS)

    async def receive_audio() -> None:
        while True:
            data = await websocket.receive_bytes()
            if decoder is not None:
                data = decoder.decode(data, room)
            connection.send(data)

    async def send_heartbeat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await websocket.send_json({"type": "ping"})

    tasks = [asyncio.create_task(receive_audio()), asyncio.create_task(send_heartbeat())]
    try:
        await asyncio.gather(*tasks)
    except WebSocketDisconnect:
        pass
    finally:
        for task in tasks:
            task.cancel()
        connection.finish()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=parse_port(__doc__), log_level="warning")
