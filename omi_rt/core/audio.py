"""Samples, bytes and seconds: the one place where they are turned into each other.

A *position* is a number of samples (per channel) of audio received since the session began: the
session clock. Only integers move it; seconds are made from it when JSON is written.
"""

from __future__ import annotations

from array import array

from attrs import define, frozen

BYTES_PER_SAMPLE = 2
"""linear16: signed 16 bit, little endian, channels interleaved."""


@frozen
class AudioFormat:
    """The format of a session's linear16 audio."""

    sample_rate: int
    """Samples a second and channel."""
    channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample on all channels."""
        return BYTES_PER_SAMPLE * self.channels

    def samples_in(self, payload: bytes) -> int:
        """Whole samples (per channel) that ``payload`` holds."""
        return len(payload) // (BYTES_PER_SAMPLE * self.channels)

    def samples(self, seconds: float) -> int:
        """The nearest whole number of samples."""
        return round(seconds * self.sample_rate)

    def seconds(self, samples: int) -> float:
        """The length of ``samples`` in seconds, rounded to a microsecond."""
        return round(samples / self.sample_rate, 6)

    def one_channel(self, payload: bytes, channel: int) -> bytes:
        """The samples of one channel alone."""
        return (
            payload
            if self.channels == 1
            else array("h", payload)[channel :: self.channels].tobytes()
        )

    def on_all_channels(self, payload: bytes) -> bytes:
        """The samples of one channel, on each of the session's."""
        if self.channels == 1:
            return payload
        voice = array("h", payload)
        interleaved = array("h", bytes(len(payload) * self.channels))
        for channel in range(self.channels):
            interleaved[channel :: self.channels] = voice
        return interleaved.tobytes()

    def silence(self, seconds: float) -> bytes:
        """Digital silence of that length."""
        return bytes(self.samples(seconds) * self.frame_bytes)


@define(unsafe_hash=True)
class AudioChunk:
    """A stretch of the session's audio.

    Nobody changes a chunk, but it is not declared frozen: that would cost 0.2 µs for each.
    """

    position: int
    """Session position of the first sample."""
    samples: int
    """Samples per channel."""
    payload: bytes
    """linear16."""

    def __repr__(self) -> str:
        return f"AudioChunk({self.position}..{self.end})"

    @property
    def end(self) -> int:
        """Session position just behind the last sample."""
        return self.position + self.samples
