"""Records in Google Cloud Storage, under the names that they have in a directory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import trio

from omi_rt.bucket import Bucket, BucketUnavailable
from omi_rt.core.records import (
    FOLDER,
    LINES,
    SESSION_ID,
    NoRecord,
    Record,
    folder_of,
    is_file_of_record,
    read_record,
)

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.bucket import StoredObject
    from omi_rt.core.records import BucketPlace

DELETES_AT_ONCE: Final = 4
_CONTENT_TYPES: Final = {
    LINES: "application/x-ndjson",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
}


class RecordBucket:
    """The records at one place. All methods raise `omi_rt.bucket.BucketUnavailable`."""

    def __init__(self, place: BucketPlace) -> None:
        self._prefix = place.prefix
        self._bucket = Bucket(place.bucket)
        self._limiter = trio.CapacityLimiter(1)

    async def put(self, path: Path) -> None:
        """Upload a file of a record, ``…/{uid}/sessions/{file}``, in the place of an earlier one.

        Raises ``OSError`` where the file cannot be opened. Cancelling leaves the bucket as it was, or
        with the whole file.
        """
        file = await trio.to_thread.run_sync(path.open, "rb", limiter=self._limiter)
        with file:
            await self._bucket.put_file(self._name(path), file, _CONTENT_TYPES[path.suffix])

    async def delete(self, path: Path) -> None:
        """Delete what `put` has uploaded of a file."""
        await self._bucket.delete(self._name(path))

    async def find_record(self, session_id: str) -> Record:
        """Find the record of a session.

        Raises:
            NoRecord: there is none, or it is broken.
        """
        if not SESSION_ID.fullmatch(session_id):
            raise NoRecord("a session's id is 32 hexadecimal digits")
        name, page = f"{session_id}{LINES}", None
        while True:
            found, page = await self._list("", f"*/{FOLDER}/{name}", page)
            for each in found:
                if each.name.endswith(f"/{name}"):
                    content = await self._bucket.read(each.name, each.version)
                    if content is not None:
                        return read_record(content)
            if page is None:
                raise NoRecord("there is no record of that session")

    async def forget(self, uid: str) -> int:
        """Delete all records of a uid; returns how many files."""
        removed, page = 0, None
        while True:
            found, page = await self._list(f"{folder_of(uid)}/", None, page)
            removed += await self._delete(found)
            if page is None:
                return removed

    async def remove_old(self, days: float, now: datetime | None = None) -> int:
        """Delete the files that were uploaded more than ``days`` ago; returns how many."""
        limit = (datetime.now(UTC) if now is None else now) - timedelta(days=days)
        removed, page = 0, None
        while True:
            found, page = await self._list("", f"*/{FOLDER}/*", page)
            removed += await self._delete([each for each in found if each.updated < limit])
            if page is None:
                return removed

    async def aclose(self) -> None:
        """Close the connections, within `omi_rt.bucket.CLOSE_SECONDS`."""
        await self._bucket.aclose()

    def _name(self, path: Path) -> str:
        return self._prefix + "/".join(path.parts[-3:])

    async def _list(
        self, begin: str, glob: str | None, page: str | None
    ) -> tuple[list[StoredObject], str | None]:
        """List a page of files of records: others' objects may be in the same bucket."""
        begin = self._prefix + begin
        pattern = None if glob is None else self._prefix + glob
        found, following = await self._bucket.list_page(begin, pattern, page)
        ours = [each for each in found if is_file_of_record(each.name.removeprefix(self._prefix))]
        return ours, following

    async def _delete(self, objects: list[StoredObject]) -> int:
        """Delete objects, a few at once; returns how many there were to delete."""
        deleted, problem = 0, None
        limiter = trio.CapacityLimiter(DELETES_AT_ONCE)

        async def delete(name: str) -> None:
            nonlocal deleted, problem
            async with limiter:
                try:
                    was_there = await self._bucket.delete(name)
                except BucketUnavailable as error:
                    problem = error
                    nursery.cancel_scope.cancel()
                else:
                    deleted += was_there

        async with trio.open_nursery() as nursery:
            for each in objects:
                nursery.start_soon(delete, each.name)
        if problem is not None:
            raise problem
        return deleted
