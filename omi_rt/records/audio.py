"""The audio of a record, as it comes: WAV, whose header is right after each call, or FLAC.

Everything here blocks, and raises ``OSError``.
"""

from __future__ import annotations

import os
import struct
import wave
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from omi_rt.codecs.recording import MAX_FLAC_CHANNELS, MAX_FLAC_RATE, FLACWriter, mend_flac
from omi_rt.core.records import AudioKind

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.core.audio import AudioFormat

WAV_HEADER_BYTES: Final = 44
"""Of a WAV file as the standard library writes it."""
_SAMPLE_BYTES: Final = 2


class AudioFile(Protocol):
    """One file of audio that grows."""

    def write(self, pcm: bytes) -> None:
        """Append s16le audio."""

    def close(self) -> None:
        """Close the file; what is there can be played, also where a write has failed."""


class WAVFile:
    """A WAV file. Its header is right after each `write`."""

    def __init__(self, path: Path, layout: AudioFormat) -> None:
        self._file = os.fdopen(_create(path), "w+b", buffering=0)
        self._writer = wave.open(self._file, "wb")  # noqa: SIM115 - it stays open
        self._writer.setparams((layout.channels, _SAMPLE_BYTES, layout.sample_rate, 0, "NONE", ""))

    def write(self, pcm: bytes) -> None:
        """See `AudioFile`."""
        self._writer.writeframes(pcm)

    def close(self) -> None:
        """See `AudioFile`."""
        with suppress(OSError):
            self._writer.close()
        with suppress(OSError):
            mend_wav(self._file.fileno())
        self._file.close()


class FLACFile:
    """A FLAC file, which says how long it is once it is closed or mended."""

    def __init__(self, path: Path, layout: AudioFormat) -> None:
        self._descriptor = _create(path)
        self._frame_bytes = layout.frame_bytes
        self._rest = b""
        self._whole_bytes = 0
        self._has_failed = False
        try:
            self._writer = FLACWriter(self._descriptor, layout.sample_rate, layout.channels)
        except OSError:
            os.close(self._descriptor)
            raise

    def write(self, pcm: bytes) -> None:
        """See `AudioFile`."""
        pcm = self._rest + pcm
        whole = len(pcm) // self._frame_bytes * self._frame_bytes
        self._rest = pcm[whole:]
        try:
            self._writer.write(pcm[:whole])
        except OSError:
            self._has_failed = True
            raise
        self._whole_bytes = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """See `AudioFile`."""
        with suppress(OSError):
            self._writer.close()
        if self._has_failed:
            # The last block is half there, and no decoder likes that.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._whole_bytes)
        with suppress(OSError):
            mend_flac(self._descriptor)
        os.close(self._descriptor)


def open_audio(path: Path, kind: AudioKind, layout: AudioFormat) -> AudioFile:
    """Begin a file at ``path``, which gets the suffix of its kind."""
    if kind is AudioKind.FLAC:
        return FLACFile(path, layout)
    return WAVFile(path, layout)


def possible_kind(kind: AudioKind, layout: AudioFormat) -> AudioKind:
    """Return the kind of file that can hold the audio: FLAC knows no more than eight channels."""
    fits = layout.channels <= MAX_FLAC_CHANNELS and layout.sample_rate <= MAX_FLAC_RATE
    return kind if fits else AudioKind.WAV


def mend_audio(descriptor: int) -> bool:
    """Let an audio file that a crash has cut off say how long it is; whether it said something else."""
    return mend_wav(descriptor) or mend_flac(descriptor)


def mend_wav(descriptor: int) -> bool:
    """Make the sizes in a WAV header those of the file; whether they were others."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, WAV_HEADER_BYTES, 0)
    if len(head) < WAV_HEADER_BYTES or head[:4] != b"RIFF" or head[36:40] != b"data":
        return False
    frame = max(1, struct.unpack("<H", head[32:34])[0])
    data = (size - WAV_HEADER_BYTES) // frame * frame
    right = struct.pack("<I", data + WAV_HEADER_BYTES - 8), struct.pack("<I", data)
    if (head[4:8], head[40:44]) == right:
        return False
    os.pwrite(descriptor, right[0], 4)
    os.pwrite(descriptor, right[1], 40)
    return True


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
