"""Profiles in memory, with faults on request.

They are for sessions on a virtual clock, where no thread may be used.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import trio
from attrs import define, field

from omi_rt.profiles.store import StoredSample, check_id, identity_in, sample_name

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


@define
class MemoryProfileStore:
    """A `ProfileStore` whose blocking functions run in the calling task.

    Each write is one second later than the one before, whatever the clock says.
    """

    delay: float = 0.0
    """Seconds before each answer; with ``math.inf`` none comes."""
    failure: Exception | None = None
    """The error that every call raises while it is set."""
    listings: int = 0
    """How often `list_samples` was called."""
    reads: int = 0
    """How often `read` was called."""
    _objects: dict[str, tuple[StoredSample, bytes]] = field(factory=dict, repr=False)
    _writes: int = 0

    async def list_samples(self, uid: str) -> list[StoredSample]:
        """See `ProfileStore`."""
        check_id(uid, "uid")
        self.listings += 1
        await self._answer()
        return [sample for sample, _ in self._objects.values() if sample.uid == uid]

    async def read(self, sample: StoredSample) -> bytes | None:
        """See `ProfileStore`."""
        self.reads += 1
        await self._answer()
        stored, wav = self._objects.get(sample.name, (None, b""))
        return wav if stored == sample else None

    async def put(self, uid: str, person_id: str | None, wav: bytes) -> StoredSample:
        """See `ProfileStore`."""
        name = sample_name(uid, person_id)
        await self._answer()
        return self.put_nowait(uid, name, wav)

    def put_nowait(self, uid: str, name: str, wav: bytes) -> StoredSample:
        """Store under any name that the layout knows, as another writer of the bucket may."""
        identity = identity_in(uid, name)
        assert identity is not None, name
        self._writes += 1
        updated = _EPOCH + timedelta(seconds=self._writes)
        sample = StoredSample(uid, identity, name, str(self._writes), updated, len(wav))
        self._objects[name] = sample, wav
        return sample

    async def delete(self, sample: StoredSample) -> bool:
        """See `ProfileStore`."""
        await self._answer()
        return self._objects.pop(sample.name, None) is not None

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run ``function`` at once, in this task."""
        await trio.lowlevel.checkpoint()
        return function()

    async def aclose(self) -> None:
        """Do nothing, because there is nothing to close."""
        await trio.lowlevel.checkpoint()

    async def _answer(self) -> None:
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
