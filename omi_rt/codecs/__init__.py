"""Codecs turn what the device sends into interleaved s16le."""

from __future__ import annotations

from typing import Protocol

from omi_rt.codecs.g711 import NAMES as G711_CODECS
from omi_rt.codecs.g711 import G711Decoder
from omi_rt.codecs.opus import OpusDecoder
from omi_rt.codecs.pcm import PCMDecoder
from omi_rt.core.listen import OPUS_CODECS, PCM_CODECS


class AudioDecoder(Protocol):
    """What turns one device's messages into audio."""

    concealed_packets: int
    """The number of messages so far that could not be decoded."""
    failures_in_a_row: int
    """The number of messages since the last good one that could not be decoded."""

    def decode(self, message: bytes) -> bytes:
        """Return the interleaved s16le that ``message`` completes, perhaps none."""

    def cut(self) -> None:
        """Go on with what another connection sends, from a whole sample or packet on."""

    def close(self) -> None:
        """Free what the decoder holds. A second close does nothing."""


def open_decoder(codec: str, sample_rate: int, channels: int) -> AudioDecoder:
    """Return a decoder for one device's stream.

    Args:
        codec: one of `OPUS_CODECS`, `PCM_CODECS` or `G711_CODECS`.
        sample_rate: the rate in Hz; for Opus one of `omi_rt.core.listen.OPUS_SAMPLE_RATES`.
        channels: at least 1; for Opus at most 2.

    Raises:
        OpusUnavailable: libopus is not installed.
        ValueError: an argument is out of its range.
    """
    if codec in OPUS_CODECS:
        return OpusDecoder(sample_rate, channels)
    if codec in PCM_CODECS:
        return PCMDecoder(channels)
    if codec in G711_CODECS:
        return G711Decoder(codec, channels)
    raise ValueError(f"unknown codec {codec!r}")
