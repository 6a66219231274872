"""The files of a record: lines that are whole, and audio beside them, also after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from omi_rt.core.records import (
    FOLDER,
    LINES,
    SESSION_ID,
    SUFFIXES,
    AudioKind,
    NoRecord,
    Record,
    folder_of,
    read_record,
)
from omi_rt.records.audio import AudioFile, mend_audio, open_audio, possible_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from omi_rt.core.observers import SessionFacts

_T = TypeVar("_T")

MAX_AUDIO_BYTES: Final = 0xFFFF_FFFF - 0x10_0000
"""Of the samples in one file, as the sizes in WAV have 32 bits; what comes after goes into the next."""
_NEW: Final = ".new"
"""What a file of lines is called until it is locked."""
_NEW_SECONDS: Final = 3600.0
"""After which such a file was left by a crash."""
_FOLDER_TRIES: Final = 3
_DAY_SECONDS: Final = 86_400


class RecordFiles:
    """The open files of one session. Every method may block, and raises ``OSError``.

    Args:
        root: folder of all records.
        facts: of the session.
        kind: of the audio files; WAV is taken for audio that is not for FLAC.
    """

    def __init__(self, root: Path, facts: SessionFacts, kind: AudioKind = AudioKind.WAV) -> None:
        self.base = root / folder_of(facts.uid) / facts.id
        """The path of every file, but for its suffix."""
        self._format = facts.audio_format
        self._kind = possible_kind(kind, facts.audio_format)
        self._lines: int | None = None
        self._size = 0
        self._audio: AudioFile | None = None
        self._audio_bytes = 0
        self._parts = 0

    def write_lines(self, data: bytes) -> None:
        """Append whole lines: all of them, or none where that fails."""
        if self._lines is None:
            self._lines = self._open_lines()
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
        """Append audio; a file of which not even the beginning can be written is not left."""
        if self._audio is not None and self._audio_bytes + len(pcm) > MAX_AUDIO_BYTES:
            self.give_up_audio()
        if self._audio is None and self._is_removed:
            return
        if self._audio is None:
            self._parts += 1
            self._audio_bytes = 0
            suffix = self._kind.value if self._parts == 1 else f".{self._parts}{self._kind.value}"
            self._begin_audio(self.base.with_suffix(suffix), pcm)
        else:
            self._audio.write(pcm)
        self._audio_bytes += len(pcm)

    def _begin_audio(self, path: Path, pcm: bytes) -> None:
        try:
            self._audio = self._in_folder(lambda: open_audio(path, self._kind, self._format))
            self._audio.write(pcm)
        except OSError:
            self.give_up_audio()
            path.unlink(missing_ok=True)
            raise

    def give_up_audio(self) -> None:
        """Write no more audio; what is there can be played."""
        audio, self._audio = self._audio, None
        if audio is not None:
            audio.close()

    def close(self) -> None:
        """Close the files."""
        self.give_up_audio()
        if self._lines is not None:
            os.close(self._lines)
            self._lines = None

    @property
    def _is_removed(self) -> bool:
        """Whether somebody has removed the record while the session runs, so that it should not be kept."""
        return self._lines is not None and not os.fstat(self._lines).st_nlink

    def _open_lines(self) -> int:
        new, flags = self.base.with_suffix(_NEW), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = self._in_folder(lambda: os.open(new, flags, 0o600))
        try:
            # As long as it is held, nobody takes the record for one that was cut off: it has its name
            # only once it is.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.base.with_suffix(LINES))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _in_folder(self, open_file: Callable[[], _T]) -> _T:
        """Open a file in the folder of the uid, which somebody else may remove as long as it is empty."""
        for _ in range(_FOLDER_TRIES):
            self.base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return open_file()
        raise OSError(errno.ENOENT, "the folder is removed again and again")


def mend(root: Path) -> int:
    """Mend the records that an earlier process has left cut off; returns how many files that were."""
    mended = 0
    _remove_new(root)
    for path in _files(root):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                if path.suffix == LINES and not _is_held(descriptor):
                    mended += _mend_lines(descriptor)
                elif path.suffix != LINES and not _is_running(path):
                    mended += mend_audio(descriptor)
            finally:
                os.close(descriptor)
    return mended


def find_record(root: Path, session_id: str) -> Record:
    """Find the record of a session. Raises ``OSError``, or `NoRecord`: there is none, or it is broken."""
    if not SESSION_ID.fullmatch(session_id):
        raise NoRecord("a session's id is 32 hexadecimal digits")
    for path in root.glob(f"*/{FOLDER}/{session_id}{LINES}"):
        return read_record(path.read_bytes())
    raise NoRecord("there is no record of that session")


def find_left_over(root: Path) -> list[Path]:
    """Find the sessions that have files here and do not run; each is a path without a suffix."""
    bases = {path.parent / path.name.partition(".")[0] for path in _files(root)}
    return sorted(base for base in bases if not _is_running(base))


def files_of(base: Path) -> list[Path]:
    """Return the files of a session, the lines as the last."""
    found = [path for path in base.parent.glob(f"{base.name}.*") if path.suffix in SUFFIXES]
    return sorted(found, key=lambda path: (path.suffix == LINES, path.name))


def claim(base: Path) -> int | None:
    """Lock a session that does not run, so that nobody else takes it; None where somebody has.

    Closing the descriptor that is returned ends that.
    """
    lines = base.with_suffix(LINES)
    try:
        descriptor = os.open(lines, os.O_RDWR)
    except FileNotFoundError:
        # Nobody else has them either: lines are what a session begins with, and what goes last.
        return os.open(base.parent, os.O_RDONLY) if files_of(base) else None
    if _is_held(descriptor) or not os.fstat(descriptor).st_nlink:
        os.close(descriptor)
        return None
    return descriptor


def remove_old(root: Path, days: float, now: float | None = None) -> int:
    """Remove the files of sessions to which nobody has written for ``days``; returns how many.

    A session that runs, or is being uploaded, keeps them, however long it has had nothing to write.
    """
    limit = (time.time() if now is None else now) - days * _DAY_SECONDS
    written_at: dict[Path, float] = {}
    for path in _files(root):
        base = path.parent / path.name.partition(".")[0]
        with suppress(OSError):
            written_at[base] = max(written_at.get(base, 0.0), path.stat().st_mtime)
    removed = 0
    for base, at in written_at.items():
        if at < limit:
            with suppress(OSError):
                removed += _remove(base)
    return removed


def forget(root: Path, uid: str) -> int:
    """Remove all records of a uid; returns how many files. Raises ``OSError``."""
    folder = root / folder_of(uid)
    removed = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        # An upload or the retention may be quicker.
        with suppress(FileNotFoundError):
            path.unlink()
            removed += 1
    remove_if_empty(folder)
    return removed


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a uid's records where nothing is in it, and that of the uid."""
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()


def _files(root: Path) -> Iterator[Path]:
    for path in root.glob(f"*/{FOLDER}/*"):
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
            yield path


def _remove(base: Path) -> int:
    """Remove the files of a session that does not run; returns how many."""
    claimed = claim(base)
    if claimed is None:
        return 0
    try:
        files = files_of(base)
        for path in files:
            path.unlink(missing_ok=True)
    finally:
        os.close(claimed)
    remove_if_empty(base.parent)
    return len(files)


def _remove_new(root: Path) -> None:
    for path in root.glob(f"*/{FOLDER}/*{_NEW}"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _NEW_SECONDS:
                path.unlink()


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
