"""Codecs turn what the device sends into interleaved s16le."""

from __future__ import annotations

from typing import Protocol

from omi_rt.codecs.opus import OpusDecoder
from omi_rt.codecs.pcm import PCMDecoder

OPUS_CODECS = frozenset({"opus", "opus_fs320"})
"""Bare Opus packets. A packet says itself how long it is, so the two names mean the same here."""

PCM_CODECS = frozenset({"pcm16", "linear16", "pcm8"})
"""s16le at the declared rate. The 8 of ``pcm8`` names 8 kHz, not the depth (the Omi firmware's
``config.h`` and its app agree on that)."""

_FAKE_PONG = b"\x8a\x00"


class AudioDecoder(Protocol):
    """What turns one device's messages into audio."""

    concealed_packets: int
    """The number of messages so far that could not be decoded."""
    failures_in_a_row: int
    """The number of messages since the last good one that could not be decoded."""

    def decode(self, message: bytes) -> bytes:
        """Return the interleaved s16le that ``message`` completes, perhaps none."""

    def close(self) -> None:
        """Free what the decoder holds. A second close does nothing."""


def open_decoder(codec: str, sample_rate: int, channels: int) -> AudioDecoder:
    """Return a decoder for one device's stream.

    Args:
        codec: one of `OPUS_CODECS` or `PCM_CODECS`.
        sample_rate: the rate in Hz; for Opus one of `omi_rt.codecs.opus.SAMPLE_RATES`.
        channels: at least 1; for Opus at most 2.

    Raises:
        OpusUnavailable: libopus is not installed.
        ValueError: an argument is out of its range.
    """
    if codec in OPUS_CODECS:
        return OpusDecoder(sample_rate, channels)
    if codec in PCM_CODECS:
        return PCMDecoder(channels)
    raise ValueError(f"unknown codec {codec!r}")


def is_fake_pong(message: bytes) -> bool:
    """Whether a binary message is the Omi app's answer to a text ping, not audio.

    Builds since February 2025 send the two bytes of an empty pong frame as a message of their own
    (``pure_socket.dart``). libopus takes them for 10 ms of audio; in PCM they are a click. Longer or
    other short messages are left alone: Opus has legal packets of one and two bytes.
    """
    return message == _FAKE_PONG
