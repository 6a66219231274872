"""Audio that a device sends once more, and that is left out by its position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from omi_rt.codecs.opus import packet_samples
from omi_rt.core.audio import BYTES_PER_SAMPLE
from omi_rt.core.listen import OPUS_CODECS, PCM_CODECS

if TYPE_CHECKING:
    from omi_rt.core.listen import ListenRequest


class Resent(Protocol):
    """What is still to be left out of one connection's audio."""

    @property
    def is_over(self) -> bool:
        """Whether all that comes is new."""

    def rest_of(self, message: bytes) -> bytes | None:
        """Return what of ``message`` is new; None where nothing is."""


class ResentBytes:
    """Of a codec whose samples have one size: it is cut to the byte."""

    __slots__ = ("_bytes",)

    def __init__(self, size: int) -> None:
        self._bytes = size

    @property
    def is_over(self) -> bool:
        """Whether all that comes is new."""
        return self._bytes == 0

    def rest_of(self, message: bytes) -> bytes | None:
        """Return what of ``message`` is new; None where nothing is."""
        left_out = min(self._bytes, len(message))
        self._bytes -= left_out
        return message[left_out:] or None


class ResentPackets:
    """Of Opus: a packet is left out whole, without the decoder, where its middle was there before."""

    __slots__ = ("_sample_rate", "_samples")

    def __init__(self, samples: int, sample_rate: int) -> None:
        self._samples = samples
        self._sample_rate = sample_rate

    @property
    def is_over(self) -> bool:
        """Whether all that comes is new."""
        return self._samples <= 0

    def rest_of(self, message: bytes) -> bytes | None:
        """Return ``message`` if it is new, else None."""
        length = packet_samples(message, self._sample_rate)
        if self._samples * 2 < length:
            self._samples = 0
            return message
        self._samples -= length
        return None


def resent(request: ListenRequest, samples: int) -> Resent:
    """Leave out the first ``samples`` (per channel) of a connection's audio."""
    if request.codec in OPUS_CODECS:
        return ResentPackets(samples, request.sample_rate)
    sample_bytes = BYTES_PER_SAMPLE if request.codec in PCM_CODECS else 1
    return ResentBytes(samples * sample_bytes * request.channels)
