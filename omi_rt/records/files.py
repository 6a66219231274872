"""The files of a record: lines that are whole, and audio whose header is right, also after a crash."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import wave
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from omi_rt.core.records import FOLDER, NoRecord, Record, folder_of, read_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from pathlib import Path

    from omi_rt.core.observers import SessionFacts

LINES: Final = ".jsonl"
AUDIO: Final = ".wav"
_HEADER_BYTES: Final = 44
"""Of a WAV file as the standard library writes it."""
MAX_AUDIO_BYTES: Final = 0xFFFF_FFFF - 0x10_0000
"""Of one WAV file, whose sizes have 32 bits; what comes after goes into the next."""
_SAMPLE_BYTES: Final = 2
_DAY_SECONDS: Final = 86_400


class RecordFiles:
    """The open files of one session. Every method may block, and raises ``OSError``."""

    def __init__(self, root: Path, facts: SessionFacts) -> None:
        self._base = root / folder_of(facts.uid) / facts.id
        self._format = facts.audio_format
        self._lines: int | None = None
        self._size = 0
        self._audio: wave.Wave_write | None = None
        self._audio_file: FileIO | None = None
        self._audio_bytes = 0
        self._parts = 0

    def write_lines(self, data: bytes) -> None:
        """Append whole lines: all of them, or none where that fails."""
        if self._lines is None:
            self._base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._lines = os.open(self._base.with_suffix(LINES), flags, 0o600)
            # As long as it is held, no other process takes the record for one that was cut off.
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._lines, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._lines, self._size)
            raise
        self._size += len(data)

    def write_audio(self, pcm: bytes) -> None:
        """Append audio; the header is right after each call."""
        if self._audio is not None and self._audio_bytes + len(pcm) > MAX_AUDIO_BYTES:
            self.give_up_audio()
        if self._audio is None:
            self._parts += 1
            self._audio_bytes = 0
            suffix = AUDIO if self._parts == 1 else f".{self._parts}{AUDIO}"
            self._base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._base.with_suffix(suffix)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            self._audio_file = os.fdopen(descriptor, "w+b", buffering=0)
            self._audio = wave.open(self._audio_file, "wb")  # noqa: SIM115 - it stays open
            self._audio.setparams(
                (self._format.channels, _SAMPLE_BYTES, self._format.sample_rate, 0, "NONE", "")
            )
        self._audio.writeframes(pcm)
        self._audio_bytes += len(pcm)

    def give_up_audio(self) -> None:
        """Write no more audio; what is there gets a right header."""
        audio, self._audio = self._audio, None
        file, self._audio_file = self._audio_file, None
        if audio is not None:
            with suppress(OSError):
                audio.close()
        if file is not None:
            with suppress(OSError):
                mend_audio(file.fileno())
            file.close()

    def close(self) -> None:
        """Close the files."""
        self.give_up_audio()
        if self._lines is not None:
            os.close(self._lines)
            self._lines = None


def mend(root: Path) -> int:
    """Mend the records that an earlier process has left cut off; returns how many files that were."""
    mended = 0
    for path in _files(root):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if path.suffix == LINES and not _is_held(descriptor):
                    mended += _mend_lines(descriptor)
                elif path.suffix == AUDIO and not _is_running(path):
                    mended += mend_audio(descriptor)
            finally:
                os.close(descriptor)
    return mended


def mend_audio(descriptor: int) -> bool:
    """Make the sizes in a WAV header those of the file; whether they were others."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _HEADER_BYTES, 0)
    if len(head) < _HEADER_BYTES or head[:4] != b"RIFF" or head[36:40] != b"data":
        return False
    frame = max(1, struct.unpack("<H", head[32:34])[0])
    data = (size - _HEADER_BYTES) // frame * frame
    right = struct.pack("<I", data + _HEADER_BYTES - 8), struct.pack("<I", data)
    if (head[4:8], head[40:44]) == right:
        return False
    os.pwrite(descriptor, right[0], 4)
    os.pwrite(descriptor, right[1], 40)
    return True


def find_record(root: Path, session_id: str) -> Record:
    """Find the record of a session. Raises ``OSError``, or `NoRecord`: there is none, or it is broken."""
    if not session_id.isalnum():
        raise NoRecord("a session's id is 32 hexadecimal digits")
    for path in root.glob(f"*/{FOLDER}/{session_id}{LINES}"):
        return read_record(path.read_bytes())
    raise NoRecord("there is no record of that session")


def remove_old(root: Path, days: float, now: float | None = None) -> int:
    """Remove the files that nobody has written to for ``days``; returns how many."""
    limit = (time.time() if now is None else now) - days * _DAY_SECONDS
    removed = 0
    for path in _files(root):
        with suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed


def forget(root: Path, uid: str) -> int:
    """Remove all records of a uid; returns how many files. Raises ``OSError``."""
    folder = root / folder_of(uid)
    removed = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        path.unlink()
        removed += 1
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
    return removed


def _files(root: Path) -> Iterator[Path]:
    for path in root.glob(f"*/{FOLDER}/*"):
        if path.suffix in {LINES, AUDIO} and path.is_file() and not path.is_symlink():
            yield path


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_running(audio: Path) -> bool:
    """Whether the session of an audio file runs in another process."""
    lines = audio.parent / (audio.name.partition(".")[0] + LINES)
    try:
        descriptor = os.open(lines, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return _is_held(descriptor)
    finally:
        os.close(descriptor)


def _mend_lines(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    end, step = size, 65_536
    while end > 0:
        begin = max(0, end - step)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end == size:
        return False
    os.ftruncate(descriptor, end)
    return True
