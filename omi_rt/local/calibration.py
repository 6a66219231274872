"""What it costs on this machine to recognise a second of speech: measured, on the recorded sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from omi_rt.codecs.wav import convert, read_wav
from omi_rt.local import pipe
from omi_rt.local.pool import start_worker
from omi_rt.local.resampler import MODEL_RATE
from omi_rt.local.sample import sample_wav
from omi_rt.local.wire import ListenParameters

if TYPE_CHECKING:
    from omi_rt.local.choice import Choice

CALIBRATION_SECONDS = 60.0
"""The measurement takes no longer; it takes 3 s on an idle core."""
_PARAMETERS = ListenParameters(
    sample_rate=MODEL_RATE,
    channels=1,
    multichannel=False,
    diarize=True,
    punctuate=False,
    filler_words=False,
)


async def measure_speech_share(choice: Choice) -> float | None:
    """Return the seconds of processor time that a second of speech takes; None if that failed.

    A worker of its own does the work, with the model loaded before it counts. Cancelling ends it.

    Raises:
        RecogniserError: the worker did not get ready, or took nothing.
    """
    with sample_wav() as path:
        audio = convert(read_wav(path.read_bytes()), MODEL_RATE, 1).pcm
    frames = pipe.open_frame(_PARAMETERS, "calibration") + b"".join(pipe.audio_frames(audio))
    progress: pipe.Progress | None = None
    worker = await start_worker(choice)
    try:
        with trio.move_on_after(CALIBRATION_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.send, frames + pipe.frame(pipe.Kind.END))
                while (line := await worker.receive_line()) is not None:
                    progress = pipe.parse_progress(line) or progress
            if progress is not None and progress.worked_seconds > 0.0:
                return progress.cpu_seconds / progress.worked_seconds
        return None
    finally:
        await worker.aclose()
