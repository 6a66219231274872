"""Recordings of any usual kind, read in memory, and FLAC, written as it comes.

This is the one file that imports ``soundfile``. Linear PCM in WAV is read by `omi_rt.codecs.wav`; everything
else by libsndfile, which the library carries with it. It is imported only where a recording needs it.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define, frozen

from omi_rt.codecs.wav import (
    SAMPLE_RATES,
    NotLinearPCM,
    NotWav,
    WavAudio,
    missing_wav_share,
    read_wav,
)
from omi_rt.core.audio import BYTES_PER_SAMPLE
from omi_rt.core.errors import OmiRtError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omi_rt.codecs.wav import FloatSamples

MAX_BYTES: Final = 1 << 30
"""A file may be this large, which is 9 hours of 16 kHz mono as WAV."""
MAX_DECODED_BYTES: Final = 1 << 31
"""The decoded audio may be this large, which is 3 hours of 44.1 kHz stereo."""
_BLOCK_FRAMES: Final = 4_096
_UNKNOWN_FRAMES: Final = 1 << 40
"""Where a file does not say how many frames it has, libsndfile says this number or more."""
_TOLERANCE_SECONDS: Final = 0.1
"""Formats that count in packets announce up to one packet too much."""
_MOST_TAG_BYTES: Final = 1_024
"""A decoder may leave this much unread at the end of an MP3 file; the usual tag has 128 bytes."""
_EXACT_SUBTYPES: Final = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
"""These are libsndfile's names of codecs that can be read from anywhere; FLAC is PCM to it."""
_HOW_TO_CONVERT: Final = "convert it, for example with: ffmpeg -i FILE talk.wav"
MAX_FLAC_CHANNELS: Final = 8
MAX_FLAC_RATE: Final = 655_350
_FLAC_HEADER: Final = b"fLaC"
_FLAC_COUNT_AT: Final = 21
"""Where a FLAC file's number of frames is: the lower 36 bits of five bytes (RFC 9639, 8.2)."""
_FLAC_COUNT_BITS: Final = 36
_OGG_PAGE: Final = b"OggS"
_OGG_HEADER_BYTES: Final = 27
_OGG_LAST_PAGE: Final = 0x04


class RecordingError(OmiRtError):
    """The bytes are not a recording that can be read; the message is one clear line."""


class FLACWriter:
    """Writes one FLAC file as its audio comes; what is written needs no more memory.

    Every method blocks, and raises ``OSError``. Until `close` the file does not say how long it is, and
    may lack the last 4,096 frames: `mend_flac` puts right what a crash has left so.

    Args:
        descriptor: of an empty file that can be read and written; it is not closed here.
        sample_rate: in Hz, at most `MAX_FLAC_RATE`.
        channels: at most `MAX_FLAC_CHANNELS`.
    """

    def __init__(self, descriptor: int, sample_rate: int, channels: int) -> None:
        import soundfile

        self._errors = soundfile.SoundFileError
        try:
            self._file: Any = soundfile.SoundFile(
                descriptor, "w", sample_rate, channels, "PCM_16", format="FLAC", closefd=False
            )
        except self._errors:
            raise _not_written() from None

    def write(self, pcm: bytes) -> None:
        """Append s16le audio."""
        try:
            self._file.buffer_write(pcm, dtype="int16")
        except self._errors:
            raise _not_written() from None

    def close(self) -> None:
        """Write what is still held back, and how long the audio is."""
        try:
            self._file.close()
        except self._errors:
            raise _not_written() from None


def mend_flac(descriptor: int) -> bool:
    """Write into a FLAC file how many frames it has, where it does not say; whether it did not.

    The file is decoded for that, a block at a time. A file that is no FLAC is left alone. Raises
    ``OSError``.
    """
    head = os.pread(descriptor, _FLAC_COUNT_AT + 5, 0)
    if len(head) < _FLAC_COUNT_AT + 5 or not head.startswith(_FLAC_HEADER):
        return False
    field = int.from_bytes(head[_FLAC_COUNT_AT:])
    if field % (1 << _FLAC_COUNT_BITS):
        return False
    count = _count_frames(descriptor)
    if not count:
        return False
    os.pwrite(descriptor, (field + count).to_bytes(5), _FLAC_COUNT_AT)
    return True


def _count_frames(descriptor: int) -> int:
    """Count the frames that can be decoded; 0 where none can."""
    import soundfile

    count = 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    # Without a length the end of the file is an error as well.
    with suppress(soundfile.SoundFileError), soundfile.SoundFile(descriptor, closefd=False) as file:
        for block in _read_blocks(file):
            count += len(block)
    return count


def _not_written() -> OSError:
    # libsndfile does not say what the system has answered.
    return OSError(errno.EIO, "the audio cannot be written")


@frozen
class Recording:
    """A recording, as far as it is there."""

    audio: WavAudio
    shortfall: str = ""
    """What to say of a file that is not whole, after its name; empty where nothing is missing."""


@define
class _Decoded:
    audio: WavAudio
    announced_seconds: float | None
    """The length that the file claims; None where it claims none."""
    is_damaged: bool
    """Whether the decoder gave up."""


def read_recording(data: bytes) -> Recording:
    """Read a recording: WAV of any codec, FLAC, MP3, Ogg Vorbis or Opus, and what else libsndfile knows.

    Of a file that ends early, what is there is taken, and ``shortfall`` tells that the rest is missing.

    Raises:
        RecordingError: it cannot be read; the message says what would help.
        WavError: it is a broken WAV file.
    """
    share = missing_wav_share(data)
    try:
        audio = read_wav(data)
    except (NotWav, NotLinearPCM):
        return _decode_any(data, share)
    whole_seconds = _whole_seconds(audio.seconds, share)
    return Recording(audio, _shortfall(audio.seconds, whole_seconds, is_cut=share > 0))


def _decode_any(data: bytes, missing_share: float) -> Recording:
    whole_pages, is_cut = _whole_ogg_pages(data)
    decoded = _decode(whole_pages)
    seconds, announced = decoded.audio.seconds, decoded.announced_seconds
    if is_cut:
        announced = None
    elif missing_share:
        announced = _whole_seconds(seconds, missing_share)
    elif announced is not None and announced - seconds < _TOLERANCE_SECONDS:
        announced = seconds
    elif announced is not None and _is_mp3(data) and not _mp3_counts(data):
        # The announced length is only an estimate, made from the first frames and the size.
        announced = seconds
    is_cut = is_cut or missing_share > 0
    shortfall = _shortfall(seconds, announced, is_cut=is_cut, is_damaged=decoded.is_damaged)
    return Recording(decoded.audio, shortfall)


def _whole_seconds(seconds: float, missing_share: float) -> float:
    return seconds / (1 - missing_share) if missing_share < 1 else seconds


def _shortfall(
    seconds: float, announced: float | None, *, is_cut: bool = False, is_damaged: bool = False
) -> str:
    if announced is not None and announced > seconds:
        there = f"{seconds:.1f} of {announced:.1f} s are there"
        return f"is truncated or damaged: {there}" if is_damaged else f"is truncated: {there}"
    if is_damaged:
        return f"is truncated or damaged: {seconds:.1f} s are there"
    return f"is truncated: {seconds:.1f} s are there" if is_cut else ""


def _decode(data: bytes) -> _Decoded:
    import soundfile

    stream = io.BytesIO(data)
    with _silence_of_decoders():
        try:
            file: Any = soundfile.SoundFile(stream)
        except soundfile.SoundFileError as error:
            raise RecordingError(_unreadable(error)) from error
        with file:
            rate, channels = file.samplerate, file.channels
            announced = file.frames if file.frames < _UNKNOWN_FRAMES else None
            if rate not in SAMPLE_RATES:
                raise RecordingError(f"the recording has a sample rate of {rate} Hz")
            _check_size((announced or 0) * channels * BYTES_PER_SAMPLE)
            pcm, is_damaged = bytearray(), False
            # The library seeks after each read, and by a seek a lossy codec loses what it carries over.
            is_lossless = file.subtype.startswith(_EXACT_SUBTYPES) or announced is None
            blocks = _read_blocks(file) if is_lossless else _read_at_once(file)
            try:
                for block in blocks:
                    pcm += _to_s16le(block)
                    _check_size(len(pcm))
            except soundfile.SoundFileError:
                is_damaged = True
    unread_bytes = len(data) - stream.tell()
    if is_damaged and announced is None and not unread_bytes:
        # Without a number of samples the end of the file is an error, too.
        is_damaged = False
    if is_damaged and not pcm:
        raise RecordingError(f"the recording is damaged: {_HOW_TO_CONVERT}")
    audio = WavAudio(rate, channels, bytes(pcm))
    if _is_mp3(data) and unread_bytes > _MOST_TAG_BYTES:
        # libsndfile stops where it has guessed that a stream of varying bit rate ends.
        raise RecordingError(
            f"only {audio.seconds:.1f} s of the recording can be decoded: {_HOW_TO_CONVERT}"
        )
    return _Decoded(audio, None if announced is None else announced / rate, is_damaged)


def _read_blocks(file: Any) -> Iterator[FloatSamples]:
    """Yield what there is, block by block, and before an error what the decoder had until then.

    Raises ``SoundFileError``, and returns where the file ends.
    """
    block = np.empty((_BLOCK_FRAMES, file.channels), np.float32)
    while True:
        block.fill(np.nan)
        try:
            count = len(file.read(out=block))
        except Exception:
            # The library does not say how much it had, but those samples are no longer what was filled in.
            yield block[: int((~np.isnan(block[:, 0])).sum())]
            raise
        if not count:
            return
        yield block[:count]


def _read_at_once(file: Any) -> Iterator[FloatSamples]:
    samples = file.read(out=np.zeros((file.frames, file.channels), np.float32))
    for start in range(0, len(samples), _BLOCK_FRAMES):
        yield samples[start : start + _BLOCK_FRAMES]


def _to_s16le(block: FloatSamples) -> bytes:
    scaled = np.nan_to_num(np.clip(block, -1.0, 1.0)) * np.float32(32_768)
    rounded: bytes = np.minimum(np.rint(scaled), 32_767).astype("<i2").tobytes()
    return rounded


def _check_size(size: int) -> None:
    if size > MAX_DECODED_BYTES:
        raise RecordingError(f"the recording decodes to over {MAX_DECODED_BYTES} bytes")


def _unreadable(error: Any) -> str:
    said = str(getattr(error, "error_string", "")).strip().rstrip(".").lower()
    return (
        f"this is not a recording that can be read ({said or 'unknown format'}): {_HOW_TO_CONVERT}"
    )


def _whole_ogg_pages(data: bytes) -> tuple[bytes, bool]:
    """Return an Ogg file up to its last whole page, and whether it ends before its end.

    libsndfile takes nothing at all of a file that ends within a page. Other formats are left alone.
    """
    if not data.startswith(_OGG_PAGE):
        return data, False
    start = data.rfind(_OGG_PAGE)
    table = data[start + _OGG_HEADER_BYTES :]
    count = data[start + _OGG_HEADER_BYTES - 1] if table else 0
    sizes = table[:count]
    if not table or len(sizes) < count or len(table) < count + sum(sizes):
        return data[:start] or data, True
    return data, not data[start + 5] & _OGG_LAST_PAGE


def _is_mp3(data: bytes) -> bool:
    return data.startswith((b"ID3", b"\xff"))


def _mp3_counts(data: bytes) -> bool:
    """Whether an MP3 file says how many frames it has, in its first frame."""
    start = 0
    if data.startswith(b"ID3") and len(data) >= 10:
        a, b, c, d = data[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    first = data[start : start + 2_048]
    return b"Xing" in first or b"Info" in first


@contextmanager
def _silence_of_decoders() -> Iterator[None]:
    """Let what libmpg123 writes to standard error go nowhere: it does so for sound files, too."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, nowhere):
            with suppress(OSError):
                os.close(descriptor)
