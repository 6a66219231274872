"""Streams PCM through pipecat's Deepgram service; prints what came of it as JSON.

Run by the Python that has it: ``pipecat_service.py PCM URL``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pipecat.frames.frames import InputAudioRawFrame, TranscriptionFrame
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.tests.utils import SleepFrame, run_test

RATE = 16_000
PIECE = RATE // 10


async def main() -> None:
    path, url = sys.argv[1:]
    pcm = Path(path).read_bytes()  # noqa: ASYNC240 - before anything runs
    frames = [SleepFrame(1.0)]
    for offset in range(0, len(pcm), 2 * PIECE):
        frames += [
            InputAudioRawFrame(pcm[offset : offset + 2 * PIECE], RATE, 1),
            SleepFrame(0.1),
        ]
    frames.append(SleepFrame(2.0))
    service = DeepgramSTTService(api_key="sesame", base_url=url, sample_rate=RATE)
    down, _up = await run_test(service, frames_to_send=frames)
    said = [frame.text for frame in down if isinstance(frame, TranscriptionFrame)]
    print(json.dumps({"text": " ".join(said)}))


asyncio.run(main())
