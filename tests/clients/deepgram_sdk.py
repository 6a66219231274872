"""Streams PCM with Deepgram's official Python SDK; prints what came of it as JSON, a line for each URL.

Run by the Python that has the SDK: ``deepgram_sdk.py SPEED PCM URL...``. All URLs are streamed to at
the same time.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from deepgram import AsyncDeepgramClient
from deepgram.core.events import EventType
from deepgram.environment import DeepgramClientEnvironment

RATE = 16_000
PIECE_SECONDS = 0.1


async def stream(url: str, pcm: bytes, speed: float) -> dict:
    environment = DeepgramClientEnvironment(
        base=url.replace("ws", "http", 1), production=url, agent="ws://x", agent_rest="http://x"
    )
    client = AsyncDeepgramClient(api_key="sesame", environment=environment)
    messages, errors, closes = [], [], []
    async with client.listen.v1.connect(
        model="nova-3",
        encoding="linear16",
        sample_rate=RATE,
        punctuate=True,
        diarize=True,
        interim_results=True,
        endpointing=300,
        keyterm=["Omi", "real time"],
    ) as socket:
        socket.on(EventType.MESSAGE, messages.append)
        socket.on(EventType.ERROR, lambda error: errors.append(repr(error)))
        socket.on(EventType.CLOSE, closes.append)
        listening = asyncio.create_task(socket.start_listening())
        loop = asyncio.get_running_loop()
        await socket.send_keep_alive()
        size, started = int(2 * RATE * PIECE_SECONDS), loop.time()
        for number, offset in enumerate(range(0, len(pcm), size)):
            await asyncio.sleep(started + number * PIECE_SECONDS / speed - loop.time())
            await socket.send_media(pcm[offset : offset + size])
        await socket.send_finalize()
        await socket.send_close_stream()
        await asyncio.wait_for(listening, 60)
    finals = [m for m in messages if m.type == "Results" and m.is_final]
    words = [word for m in finals for word in m.channel.alternatives[0].words]
    return {
        "words": [word.word for word in words],
        "starts": [word.start for word in words],
        "speakers": [word.speaker for word in words],
        "types": sorted({type(message).__name__ for message in messages}),
        "request_ids": sorted(
            {m.metadata.request_id for m in finals}
            | {m.request_id for m in messages if m.type == "Metadata"}
        ),
        "from_finalize": sum(bool(message.from_finalize) for message in finals),
        "interims": sum(m.type == "Results" and not m.is_final for m in messages),
        "duration": next(m.duration for m in messages if m.type == "Metadata"),
        "last": messages[-1].type,
        "errors": errors,
        "closes": len(closes),
    }


async def main() -> None:
    speed, pcm, *urls = sys.argv[1:]
    audio = Path(pcm).read_bytes()  # noqa: ASYNC240 - before anything runs
    for result in await asyncio.gather(*(stream(url, audio, float(speed)) for url in urls)):
        print(json.dumps(result))


asyncio.run(main())
