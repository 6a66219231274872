"""Streams PCM with livekit's Deepgram plugin; prints what came of it as JSON.

Run by the Python that has the plugin: ``livekit_plugin.py PCM URL``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp
from livekit import rtc
from livekit.agents import stt
from livekit.plugins import deepgram

RATE = 16_000
PIECE = RATE // 10


async def main() -> None:
    path, url = sys.argv[1:]
    pcm = Path(path).read_bytes()  # noqa: ASYNC240 - before anything runs
    said, speakers, events = [], [], []
    async with aiohttp.ClientSession() as session:
        engine = deepgram.STT(
            api_key="sesame",
            base_url=url.replace("ws", "http", 1) + "/v1/listen",
            model="nova-3",
            enable_diarization=True,
            http_session=session,
        )
        stream = engine.stream()

        async def listen() -> None:
            async for event in stream:
                events.append(event.type.name)
                if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                    said.append(event.alternatives[0].text)
                    speakers.append(event.alternatives[0].speaker_id)

        listening = asyncio.create_task(listen())
        for offset in range(0, len(pcm), 2 * PIECE):
            piece = pcm[offset : offset + 2 * PIECE]
            stream.push_frame(rtc.AudioFrame(piece, RATE, 1, len(piece) // 2))
            await asyncio.sleep(0.1)
        stream.end_input()
        await asyncio.wait_for(listening, 60)
        await engine.aclose()
    print(json.dumps({"text": " ".join(said), "speakers": speakers, "events": sorted(set(events))}))


asyncio.run(main())
