"""Profiles in Google Cloud Storage."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from omi_rt.bucket import READ_SECONDS, WRITE_SECONDS, Bucket, BucketUnavailable
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

    from omi_rt.bucket import StoredObject

T = TypeVar("T")

_CONTENT_TYPE: Final = "audio/wav"


class GCSProfileStore:
    """A `ProfileStore` in a bucket; `omi_rt.bucket.Bucket` says how that is reached, and for how long.

    Args:
        bucket: its name.
        read_seconds: for the answer to a read.
        write_seconds: for the answer to a write.
    """

    def __init__(
        self,
        bucket: str,
        *,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._bucket = Bucket(bucket, read_seconds=read_seconds, write_seconds=write_seconds)

    @property
    def threads(self) -> int:
        """The number of threads at work for this store now, the abandoned ones included."""
        return self._bucket.threads

    async def list_samples(self, uid: str) -> list[StoredSample]:
        """See `ProfileStore`. There is one request for each 1,000 objects."""
        check_id(uid, "uid")
        with _as_a_store():
            found = await self._bucket.list_objects(
                f"{uid}/",
                MAX_LISTED + 1,
                # Names come in order, so this skips ``additional_profile_recordings``, of which the
                # backend keeps many.
                start_offset=people_prefix(uid),
            )
        if len(found) > MAX_LISTED:
            raise StoreUnavailable(f"over {MAX_LISTED} objects are stored for one uid")
        return [sample for each in found if (sample := _sample(uid, each)) is not None]

    async def read(self, sample: StoredSample) -> bytes | None:
        """See `ProfileStore`."""
        with _as_a_store():
            return await self._bucket.read(sample.name, sample.version)

    async def put(self, uid: str, person_id: str | None, wav: bytes) -> StoredSample:
        """See `ProfileStore`."""
        name = sample_name(uid, person_id)
        with _as_a_store():
            sample = _sample(uid, await self._bucket.put(name, wav, _CONTENT_TYPE))
        assert sample is not None
        return sample

    async def delete(self, sample: StoredSample) -> bool:
        """See `ProfileStore`."""
        with _as_a_store():
            return await self._bucket.delete(sample.name)

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """See `ProfileStore`."""
        return await self._bucket.run_blocking(function)

    async def aclose(self) -> None:
        """Close the client's connections, within `omi_rt.bucket.CLOSE_SECONDS`."""
        await self._bucket.aclose()


@contextmanager
def _as_a_store() -> Iterator[None]:
    try:
        yield
    except BucketUnavailable as error:
        raise StoreUnavailable(str(error)) from error


def _sample(uid: str, found: StoredObject) -> StoredSample | None:
    identity = identity_in(uid, found.name)
    if identity is None:
        return None
    return StoredSample(uid, identity, found.name, found.version, found.updated, found.size)
