"""Profiles in a directory, which is the embedded default for use without a bucket."""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from omi_rt.files import replace_file
from omi_rt.profiles.store import (
    MAX_LISTED,
    StoredSample,
    StoreUnavailable,
    check_id,
    identity_in,
    people_prefix,
    sample_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

FILE_THREADS: Final = 4
"""Disks answer in microseconds, so more threads would only hold more audio at once."""
_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError)


class DirectoryProfileStore:
    """A `ProfileStore` below one folder, which need not exist before the first `put`.

    Files are written under a temporary name and renamed, so a reader sees the old content or the
    new one. A voice is personal: files and folders are readable by their owner alone, so whoever runs
    ``omi-rt profile`` must be the one who runs the server. File access has no time limit of its own; a
    network file system that hangs holds the threads of this store, and no others.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limiter = trio.CapacityLimiter(FILE_THREADS)

    async def list_samples(self, uid: str) -> list[StoredSample]:
        """See `ProfileStore`."""
        check_id(uid, "uid")
        return await self.run_blocking(lambda: self._list(uid))

    async def read(self, sample: StoredSample) -> bytes | None:
        """See `ProfileStore`."""
        return await self.run_blocking(lambda: self._read(sample))

    async def put(self, uid: str, person_id: str | None, wav: bytes) -> StoredSample:
        """See `ProfileStore`."""
        name = sample_name(uid, person_id)
        return await self._finish(lambda: self._put(uid, name, wav))

    async def delete(self, sample: StoredSample) -> bool:
        """See `ProfileStore`. Folders that this leaves empty go as well."""
        return await self._finish(lambda: self._delete(sample))

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """See `ProfileStore`."""
        return await trio.to_thread.run_sync(
            _guarded, function, abandon_on_cancel=True, limiter=self._limiter
        )

    async def aclose(self) -> None:
        """Do nothing, because no file stays open between two calls."""
        await trio.lowlevel.checkpoint()

    async def _finish(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(_guarded, function, limiter=self._limiter)

    def _list(self, uid: str) -> list[StoredSample]:
        names = list(itertools.islice(self._names(uid), MAX_LISTED + 1))
        if len(names) > MAX_LISTED:
            raise StoreUnavailable(f"over {MAX_LISTED} files are stored for one uid")
        return [sample for name in names if (sample := self._sample(uid, name)) is not None]

    def _names(self, uid: str) -> Iterator[str]:
        yield sample_name(uid, None)
        people = people_prefix(uid)
        for person in _entries(self._root / people):
            for file in _entries(self._root / people / person):
                yield f"{people}{person}/{file}"

    def _sample(self, uid: str, name: str) -> StoredSample | None:
        identity = identity_in(uid, name)
        if identity is None:
            return None
        try:
            status = (self._root / name).stat()
        except _NOT_THERE:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        updated = datetime.fromtimestamp(status.st_mtime, UTC)
        return StoredSample(uid, identity, name, _version(status), updated, status.st_size)

    def _read(self, sample: StoredSample) -> bytes | None:
        try:
            with (self._root / sample.name).open("rb") as file:
                if _version(os.fstat(file.fileno())) != sample.version:
                    return None
                return file.read()
        except _NOT_THERE:
            return None

    def _put(self, uid: str, name: str, wav: bytes) -> StoredSample:
        path = self._root / name
        replace_file(path, wav)
        sample = self._sample(uid, name)
        if sample is None:
            raise StoreUnavailable("the file was deleted while it was stored")
        return sample

    def _delete(self, sample: StoredSample) -> bool:
        path = self._root / sample.name
        try:
            path.unlink()
        except _NOT_THERE:
            return False
        with suppress(OSError):
            for folder in path.relative_to(self._root).parents[:-1]:
                (self._root / folder).rmdir()
        return True


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except _NOT_THERE:
        return []


def _version(status: os.stat_result) -> str:
    # File systems stamp times in steps of up to 4 ms, so two files of one size that are written right
    # after each other may differ in the inode alone.
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def _guarded(function: Callable[[], T]) -> T:
    try:
        return function()
    except OSError as error:
        raise StoreUnavailable(f"the profile folder: {error.strerror or 'failed'}") from error
