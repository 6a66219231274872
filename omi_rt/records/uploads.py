"""Takes records to a bucket when their sessions have ended; until then they are in a directory, the spool."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from omi_rt.bucket import BucketUnavailable
from omi_rt.log import get_logger
from omi_rt.records.files import claim, files_of, find_left_over, remove_if_empty

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from omi_rt.metrics import Metrics
    from omi_rt.records.bucket import RecordBucket

_T = TypeVar("_T")

UPLOADS_AT_ONCE: Final = 4
"""Sessions, of which each uploads one file after another."""
MAX_TRIES: Final = 5
PAUSE_SECONDS: Final = (2.0, 60.0)
"""The first pause after a failure; each further one trebles it up to the second."""
MAX_WAITING: Final = 10_000
"""Sessions that this process has in mind at once; the others are found again in the spool."""
LAST_SECONDS: Final = 10.0
"""When the server ends: for what is still to be uploaded. The rest is there at the next start."""


class Uploads:
    """The uploads of one server. ``upload_all`` must run for any to be made.

    A session's files are removed from the spool one by one as they have been uploaded, the lines as the
    last. What cannot be uploaded stays there, until `find` is called again.

    Args:
        spool: directory of the records.
        store: where they go.
        metrics: of the server.
        random: spreads the retries.
    """

    def __init__(self, spool: Path, store: RecordBucket, metrics: Metrics, random: Random) -> None:
        self._spool = spool
        self._store = store
        self._metrics = metrics
        self._random = random
        self._waiting: set[Path] = set()
        self._told: set[Path] = set()
        self._slots = trio.CapacityLimiter(UPLOADS_AT_ONCE)
        self._limiter = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None
        self._ending = trio.Event()
        metrics.records_waiting.set_function(lambda: len(self._waiting))

    def add(self, base: Path) -> None:
        """Upload the session with this path, which has no suffix, once it is its turn."""
        if self._nursery is None or base in self._waiting or len(self._waiting) >= MAX_WAITING:
            return
        self._waiting.add(base)
        self._nursery.start_soon(self._upload, base)

    async def find(self) -> None:
        """Add whatever the spool has of sessions that do not run."""
        for base in await self._in_thread(lambda: find_left_over(self._spool)):
            self.add(base)

    async def upload_all(
        self, *, task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Upload what is added, until what was started with is called; then `LAST_SECONDS` more."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started(self._ending.set)
            await self._ending.wait()
            self._nursery = None
            nursery.cancel_scope.deadline = trio.current_time() + LAST_SECONDS

    async def _upload(self, base: Path) -> None:
        """Upload a session, again if it fails; what fails in the end is counted, and told once."""
        try:
            for failures in range(1, MAX_TRIES + 1):
                try:
                    async with self._slots:
                        await self._send(base)
                except (BucketUnavailable, OSError) as error:
                    problem = error
                else:
                    self._told.discard(base)
                    return
                if self._ending.is_set():
                    break
                if failures < MAX_TRIES:
                    await self._pause(failures)
            self._metrics.record_uploads.labels("failed").inc()
            if base not in self._told and len(self._told) < MAX_WAITING:
                self._told.add(base)
                get_logger().error(
                    "record_not_uploaded",
                    session=base.name,
                    reason=_reason(problem),
                    meaning="it is kept in the spool, and tried again within the hour",
                )
        finally:
            self._waiting.discard(base)

    async def _pause(self, failures: int) -> None:
        first, longest = PAUSE_SECONDS
        pause = min(longest, first * 3.0 ** (failures - 1)) * self._random.uniform(0.5, 1.0)
        with trio.move_on_after(pause):
            await self._ending.wait()

    async def _send(self, base: Path) -> None:
        """Upload the files of a session that nobody else has, and remove them here.

        Raises:
            BucketUnavailable: a file could not be uploaded.
            OSError: a file could not be read.
        """
        claimed = await self._in_thread(partial(claim, base))
        if claimed is None:
            return
        try:
            for path in await self._in_thread(partial(files_of, base)):
                await self._store.put(path)
                if not await self._in_thread(partial(_remove, path)):
                    # Somebody has removed it meanwhile, so that it should not be kept.
                    await self._store.delete(path)
            self._metrics.record_uploads.labels("uploaded").inc()
            await self._in_thread(partial(remove_if_empty, base.parent))
        finally:
            os.close(claimed)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(function, limiter=self._limiter)


def _remove(path: Path) -> bool:
    """Remove a file; whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _reason(error: BucketUnavailable | OSError) -> str:
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    return str(error)
