"""A built-in stretch of voices that are nobody's in a session.

Where a lead-in holds the user's voice alone, nothing in it shows whether the provider tells voices
apart at all. This stretch does: it has two voices, a man's and a woman's in turn, so that one of
them is unlike whoever the user is.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from omi_rt.codecs.wav import WavAudio, convert, read_wav

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat

CONTRAST_SECONDS = 0.15, 4.55
"""Begin and end of the stretch in the recording: the first two sentences, one of each voice."""


@lru_cache(maxsize=8)
def contrast_pcm(audio_format: AudioFormat) -> bytes:
    """Return the stretch as linear16 in a session's format, on all channels."""
    recording = read_wav((resources.files("omi_rt.local") / "sample.wav").read_bytes())
    frame_bytes = 2 * recording.channels
    start, end = (round(each * recording.sample_rate) * frame_bytes for each in CONTRAST_SECONDS)
    stretch = WavAudio(recording.sample_rate, recording.channels, recording.pcm[start:end])
    return convert(stretch, audio_format.sample_rate, audio_format.channels).pcm
