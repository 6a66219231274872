"""WAV files in memory: read, convert, write. The one file that imports ``soxr``.

Everything is interleaved signed 16 bit little-endian ("s16le") once it is read, the format that the
rest of the package speaks.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import soxr
from attrs import field, frozen

from omi_rt.core.audio import BYTES_PER_SAMPLE
from omi_rt.core.errors import OmiRtError

if TYPE_CHECKING:
    from collections.abc import Iterator

FloatSamples: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"

SAMPLE_RATES: Final = range(1_000, 384_001)
"""Only these are taken for real sample rates, in Hz; a header of 1 Hz would turn a small file into hours."""

_HEADER_BYTES: Final = 44
_OPEN_ENDED: Final = 0x7FFF_0000
"""From this size on a chunk's end is unknown: into a pipe ffmpeg writes 0xFFFFFFFF, sox 0x7FFFF000,
arecord 0x7FFFFFFF or so."""
_PCM: Final = 0x0001
_EXTENSIBLE: Final = 0xFFFE
# The tail that every sub-format GUID has when its first two bytes are an old format tag
# (Microsoft, "Multiple channel audio data and WAVE files", 2001).
_SUBFORMAT_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
_TAG_NAMES: Final = {
    0x0002: "ADPCM",
    0x0003: "floating point",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0055: "MP3",
}


class WavError(OmiRtError):
    """The bytes are not a WAV file that can be read; the message is one clear line."""


class NotWav(WavError):
    """The bytes are something else altogether."""


class NotLinearPCM(WavError):
    """The bytes are a WAV file of a codec that is not read here."""


@frozen
class WavAudio:
    """Audio in memory."""

    sample_rate: int
    """The sample rate in Hz."""
    channels: int
    """The number of channels, at least 1."""
    pcm: bytes = field(repr=False)
    """Interleaved s16le, whole sample frames only."""

    @property
    def samples(self) -> int:
        """Samples in each channel."""
        return len(self.pcm) // (BYTES_PER_SAMPLE * self.channels)

    @property
    def seconds(self) -> float:
        """How long the audio plays, in seconds."""
        return self.samples / self.sample_rate


@frozen
class _Format:
    channels: int
    sample_rate: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.bits // 8


def read_wav(data: bytes) -> WavAudio:
    """Read a RIFF WAV file of linear PCM with 8, 16, 24 or 32 bits and any number of channels.

    More than 16 bits are cut to the upper 16. Of a file that ends early the whole sample frames
    that are there are taken; `missing_wav_share` tells how much is missing.

    Raises:
        WavError: the data is something else; the message says what.
    """
    if not _is_wav(data):
        raise NotWav("not a WAV file (no RIFF WAVE header)")
    wav_format: _Format | None = None
    for name, body, size in _chunks(data):
        if name == b"fmt ":
            wav_format = _read_format(data[body : body + size])
        elif name == b"data":
            if wav_format is None:
                raise WavError("the WAV file has audio before its format")
            there = len(data) - body
            size = there if _is_open_ended(data, size) else min(size, there)
            whole = data[body : body + size - size % wav_format.frame_bytes]
            pcm = _to_s16le(whole, wav_format.bits)
            return WavAudio(wav_format.sample_rate, wav_format.channels, pcm)
    cut_off = ": it is truncated" if _riff_size(data) > len(data) - 8 else ""
    raise WavError(f"the WAV file has no audio (no data chunk){cut_off}")


def missing_wav_share(data: bytes) -> float:
    """Return the share of its audio, 0 to 1, that a WAV file of any codec announces and does not have.

    A writer to a pipe does not know the size and announces the largest, or 0; nothing follows from that.
    """
    for name, body, size in _chunks(data) if _is_wav(data) else ():
        if name == b"data":
            if _is_open_ended(data, size) or not size:
                return 0.0
            return max(0, size - (len(data) - body)) / size
    return 0.0


def convert(audio: WavAudio, sample_rate: int, channels: int) -> WavAudio:
    """Return ``audio`` at another rate (soxr, high quality) or channel count.

    Mono is duplicated into every channel; several channels are averaged into one, and from there
    into as many as asked for. What already fits is returned as it is, sample for sample.
    """
    if (sample_rate, channels) == (audio.sample_rate, audio.channels):
        return audio
    integers = np.frombuffer(audio.pcm, "<i2").reshape(-1, audio.channels)
    samples: FloatSamples = integers.astype(np.float32)
    if channels != audio.channels:
        samples = samples.mean(axis=1, keepdims=True, dtype=np.float32)
    if sample_rate != audio.sample_rate and len(samples):
        samples = soxr.resample(samples, audio.sample_rate, sample_rate, quality="HQ")
    if channels != samples.shape[1]:
        samples = samples.repeat(channels, axis=1)
    # Resampling overshoots at full scale, so the result is clipped.
    rounded = np.clip(np.rint(samples), -32_768, 32_767).astype("<i2")
    return WavAudio(sample_rate, channels, rounded.tobytes())


def write_wav(audio: WavAudio) -> bytes:
    """Return ``audio`` as a 16 bit PCM WAV file.

    Raises:
        WavError: it is over the 4 GiB that the format can name.
    """
    if len(audio.pcm) > 0xFFFF_FFFF - _HEADER_BYTES:
        raise WavError("a WAV file cannot hold over 4 GiB")
    frame_bytes = BYTES_PER_SAMPLE * audio.channels
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        _HEADER_BYTES - 8 + len(audio.pcm),
        b"WAVE",
        b"fmt ",
        16,
        _PCM,
        audio.channels,
        audio.sample_rate,
        audio.sample_rate * frame_bytes,
        frame_bytes,
        16,
        b"data",
        len(audio.pcm),
    )
    return header + audio.pcm


def _is_wav(data: bytes) -> bool:
    return len(data) >= 12 and data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def _riff_size(data: bytes) -> int:
    (size,) = struct.unpack_from("<I", data, 4)
    return int(size)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, where its body begins, and the size that it announces."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _is_open_ended(data: bytes, size: int) -> bool:
    """Whether the data chunk's size is what a writer leaves that could not seek back to it."""
    return size >= _OPEN_ENDED or (size == 0 and _riff_size(data) in (0, _HEADER_BYTES - 8))


def _read_format(body: bytes) -> _Format:
    if len(body) < 16:
        raise WavError("the WAV file has a broken format chunk")
    tag, channels, sample_rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 40 and body[26:40] == _SUBFORMAT_TAIL:
        (tag,) = struct.unpack_from("<H", body, 24)
    if tag != _PCM:
        name = _TAG_NAMES.get(tag, f"format {tag:#06x}")
        raise NotLinearPCM(f"the WAV file holds {name}, not linear PCM")
    if bits not in {8, 16, 24, 32}:
        raise WavError(f"the WAV file has {bits} bits per sample, not 8, 16, 24 or 32")
    if channels < 1:
        raise WavError("the WAV file has no channels")
    if sample_rate not in SAMPLE_RATES:
        raise WavError(f"the WAV file has a sample rate of {sample_rate} Hz")
    wav_format = _Format(channels, sample_rate, bits)
    if frame_bytes != wav_format.frame_bytes:
        raise WavError("the WAV file contradicts itself about the size of a sample frame")
    return wav_format


def _to_s16le(data: bytes, bits: int) -> bytes:
    if bits == 16:
        return data
    if bits == 8:
        # This is the one width that WAV stores unsigned.
        centred = np.frombuffer(data, np.uint8).astype(np.int16) - 128
        return (centred * 256).astype("<i2").tobytes()
    octets = np.frombuffer(data, np.uint8).reshape(-1, bits // 8)
    return octets[:, -BYTES_PER_SAMPLE:].tobytes()
