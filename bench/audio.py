"""The audio that is sent: linear16 frames that carry a marker, and Opus packets made beforehand."""

from __future__ import annotations

import ctypes
from struct import Struct

import numpy as np
import opuslib.api
import opuslib.api.encoder
from attrs import frozen

SAMPLE_RATE = 16_000
BYTES_PER_SAMPLE = 2
BYTES_PER_SECOND = SAMPLE_RATE * BYTES_PER_SAMPLE

MAGIC = b"\x7f\x80omiRT\x01"
"""How a frame of linear16 begins. The tone that fills the rest stays far below these values."""
MARKER = Struct("<8sII")
"""Magic, stream, sequence number of the frame in its stream."""

_OPUS_APPLICATION_RESTRICTED_LOWDELAY = 2051
_OPUS_SET_BITRATE = 4002
_OPUS_BITRATE = 32_000
"""As the devices do it: CELT only, 32 kb/s, variable (``facts/omi.md`` 1.3)."""
_OPUS_PACKETS = 100
_MAX_PACKET_BYTES = 1_275


@frozen
class Framing:
    """How a device cuts its audio into messages."""

    codec: str
    """``linear16`` or ``opus``."""
    frame_ms: int

    @property
    def frame_bytes(self) -> int:
        """Of one frame as linear16."""
        return self.frame_ms * SAMPLE_RATE // 1000 * BYTES_PER_SAMPLE

    @property
    def is_marked(self) -> bool:
        """Whether the marker arrives at the provider: Opus loses it."""
        return self.codec == "linear16"

    @property
    def query(self) -> str:
        """The parameters of ``/listen`` that say it."""
        codec = "pcm16"
        if self.codec == "opus":
            codec = "opus_fs320" if self.frame_ms == 20 else "opus"
        return f"codec={codec}&sample_rate={SAMPLE_RATE}&channels=1"


def make_tone(samples: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """A quiet tone with a few harmonics, whose strength rises and falls as speech does."""
    time = np.arange(samples) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * 180 * n * time) / n for n in (1, 2, 3, 5, 8))
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * time)
    return (3_000 * tone * envelope).astype(np.int16)


def make_frame(framing: Framing) -> bytearray:
    """One frame of linear16 with room for the marker at its start."""
    return bytearray(make_tone(framing.frame_bytes // BYTES_PER_SAMPLE).tobytes())


def make_packets(framing: Framing) -> list[bytes]:
    """A run of Opus packets, to be sent in a circle."""
    samples = framing.frame_bytes // BYTES_PER_SAMPLE
    encoder = opuslib.api.encoder.create_state(
        SAMPLE_RATE, 1, _OPUS_APPLICATION_RESTRICTED_LOWDELAY
    )
    ctl = opuslib.api.libopus.opus_encoder_ctl
    ctl(encoder, _OPUS_SET_BITRATE, ctypes.c_int(_OPUS_BITRATE))
    audio = make_tone(samples * _OPUS_PACKETS).tobytes()
    step = framing.frame_bytes
    packets = [
        opuslib.api.encoder.encode(encoder, audio[at : at + step], samples, _MAX_PACKET_BYTES)
        for at in range(0, len(audio), step)
    ]
    opuslib.api.encoder.destroy(encoder)
    return packets


def token_of(number: int) -> str:
    """What the device of a stream shows where there is a login."""
    return f"bench-token-of-stream-{number}"
