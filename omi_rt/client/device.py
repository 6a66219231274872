"""What a device sends, which is audio in its codec, cut into the codec's own frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.codecs.wav import WavAudio, convert

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_PER_SAMPLE: Final = 2
_MAX_CHANNELS: Final = 2


@frozen
class DeviceCodec:
    """How the Omi hardware sends one codec (``config.h`` and ``codec.c`` of its firmware)."""

    name: str
    """The value of the ``codec`` parameter."""
    sample_rate: int
    """The sample rate in Hz."""
    frame_samples: int
    """Samples of each channel in one message."""
    is_opus: bool


DEVICE_CODECS: Final = {
    codec.name: codec
    for codec in (
        DeviceCodec("opus", 16_000, 160, is_opus=True),
        DeviceCodec("opus_fs320", 16_000, 320, is_opus=True),
        DeviceCodec("pcm16", 16_000, 160, is_opus=False),
        DeviceCodec("pcm8", 8_000, 80, is_opus=False),
    )
}
"""All codecs, by their names."""


@frozen
class DeviceMessage:
    """One binary message."""

    payload: bytes
    end: int
    """Device samples (of each channel) from the beginning to the end of this message."""


@frozen
class DeviceAudio:
    """A recording, ready to be sent in a device's codec."""

    codec: DeviceCodec
    audio: WavAudio
    """The audio at the codec's rate."""

    @classmethod
    def from_wav(cls, audio: WavAudio, codec: DeviceCodec) -> DeviceAudio:
        """Convert a recording to the codec's rate. Mono and stereo stay, more becomes mono."""
        channels = audio.channels if audio.channels <= _MAX_CHANNELS else 1
        return cls(codec, convert(audio, codec.sample_rate, channels))

    @property
    def channels(self) -> int:
        """The number of channels, 1 or 2."""
        return self.audio.channels

    def messages(self) -> Iterator[DeviceMessage]:
        """Encode one message after another, each only when it is asked for.

        The last PCM message is as short as what is left. Opus ends with silence: up to a whole
        frame, and for as long as the codec holds audio back.

        Raises:
            OpusUnavailable: libopus is not installed.
        """
        pcm, frame_samples = self.audio.pcm, self.codec.frame_samples
        samples = self.audio.samples
        encoder: OpusEncoder | None = None
        if self.codec.is_opus:
            encoder = OpusEncoder(self.codec.sample_rate, self.channels)
            if samples:
                samples += encoder.lookahead
                samples += -samples % frame_samples
        sample_bytes = BYTES_PER_SAMPLE * self.channels
        for start in range(0, samples, frame_samples):
            end = min(start + frame_samples, samples)
            frame = pcm[start * sample_bytes : end * sample_bytes]
            if encoder is not None:
                frame = encoder.encode(frame.ljust((end - start) * sample_bytes, b"\0"))
            yield DeviceMessage(frame, end)
