"""Profiles in Google Cloud Storage: the one file that imports ``google-cloud-storage``."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

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
    from collections.abc import Callable

T = TypeVar("T")

GCS_THREADS: Final = 8
"""There are fewer threads than connections that the client's pool keeps open, which are ten (the default
of ``requests``)."""
READ_SECONDS: Final = 4.0
"""The answer to a read is awaited for this long, which is less than a session waits for all its profiles."""
WRITE_SECONDS: Final = 20.0
"""The answer to a write is awaited for this long; 24 MiB take 13 s at 16 Mb/s, a slow home's upload."""
CLOSE_SECONDS: Final = 2.0
_CONTENT_TYPE: Final = "audio/wav"
_LISTED_FIELDS: Final = "items(name,generation,updated,size),nextPageToken"
# The client (3.17) looks up the bucket in a daemon thread of its own at the first use, for traces that
# nobody makes here, with a right (storage.buckets.get) that nothing else here needs.
_NO_BUCKET_LOOKUP: Final = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"


class _NotFound(StoreUnavailable):
    """The answer was HTTP 404, for the object or for the whole bucket."""


class GCSProfileStore:
    """A `ProfileStore` in a bucket, with application-default credentials.

    With ``STORAGE_EMULATOR_HOST`` (scheme included) in the environment the client talks to that
    host, without credentials. The library is imported and the client made at the first call: both
    take a thread some tenths of a second, and a server without a bucket needs neither.

    Calls run in threads, at most `GCS_THREADS` of them. A cancelled read leaves its thread behind;
    it ends within three times `READ_SECONDS`: tries begin for as long as that, and the last one may
    wait once to connect and once to read. A write is tried the same way in `WRITE_SECONDS`. Not in
    this count are what the library does on its own terms: DNS, and the search for credentials at
    the first call (where there are none, up to three tries of 3 s at Google's metadata server).
    """

    def __init__(
        self,
        bucket: str,
        *,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._bucket_name = bucket
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        self._limiter = trio.CapacityLimiter(GCS_THREADS)
        self._client: Any = None
        self._client_lock = threading.Lock()
        # This is set here and not where the client is made, in a thread, because setenv is not thread-safe.
        os.environ.setdefault(_NO_BUCKET_LOOKUP, "true")

    @property
    def threads(self) -> int:
        """The number of threads at work for this store now, the abandoned ones included."""
        return self._limiter.borrowed_tokens

    async def list_samples(self, uid: str) -> list[StoredSample]:
        """See `ProfileStore`. There is one request for each 1,000 objects."""
        check_id(uid, "uid")
        return await self._read(lambda bucket, limits: self._list(uid, bucket, limits))

    async def read(self, sample: StoredSample) -> bytes | None:
        """See `ProfileStore`."""

        def download(bucket: Any, limits: dict[str, Any]) -> bytes:
            blob = bucket.blob(sample.name, generation=int(sample.version))
            content: bytes = blob.download_as_bytes(**limits)
            return content

        try:
            return await self._read(download)
        except _NotFound:
            return None

    async def put(self, uid: str, person_id: str | None, wav: bytes) -> StoredSample:
        """See `ProfileStore`."""
        name = sample_name(uid, person_id)

        def upload(bucket: Any, limits: dict[str, Any]) -> StoredSample:
            blob = bucket.blob(name)
            blob.upload_from_string(wav, content_type=_CONTENT_TYPE, **limits)
            sample = _sample(uid, blob)
            assert sample is not None
            return sample

        return await self._write(upload)

    async def delete(self, sample: StoredSample) -> bool:
        """See `ProfileStore`."""
        try:
            await self._write(lambda bucket, limits: bucket.blob(sample.name).delete(**limits))
        except _NotFound:
            return False
        return True

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """See `ProfileStore`."""
        return await trio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._limiter
        )

    async def aclose(self) -> None:
        """Close the client's connections, within `CLOSE_SECONDS`."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await trio.to_thread.run_sync(
                self._close, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
            )

    async def _read(self, operation: Callable[[Any, dict[str, Any]], T]) -> T:
        return await self.run_blocking(lambda: self._call(operation, self._read_seconds))

    async def _write(self, operation: Callable[[Any, dict[str, Any]], T]) -> T:
        return await trio.to_thread.run_sync(
            self._call, operation, self._write_seconds, limiter=self._limiter
        )

    def _list(self, uid: str, bucket: Any, limits: dict[str, Any]) -> list[StoredSample]:
        blobs = bucket.client.list_blobs(
            bucket,
            prefix=f"{uid}/",
            # Names come in order, so this skips ``additional_profile_recordings``, of which the
            # backend keeps many.
            start_offset=people_prefix(uid),
            fields=_LISTED_FIELDS,
            max_results=MAX_LISTED + 1,
            **limits,
        )
        found = list(blobs)
        if len(found) > MAX_LISTED:
            raise StoreUnavailable(f"over {MAX_LISTED} objects are stored for one uid")
        return [sample for blob in found if (sample := _sample(uid, blob)) is not None]

    def _call(self, operation: Callable[[Any, dict[str, Any]], T], seconds: float) -> T:
        from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_delay(initial=0.2, maximum=1.0).with_timeout(seconds)
        try:
            bucket = self._open_client().bucket(self._bucket_name)
            return operation(bucket, {"timeout": (seconds, seconds), "retry": retry})
        except NotFound as error:
            raise _NotFound(f"{self._bucket_name}: HTTP 404, no such object or bucket") from error
        except GoogleAPICallError as error:
            raise StoreUnavailable(f"{self._bucket_name}: HTTP {error.code}") from error
        except (GoogleAPIError, GoogleAuthError, DataCorruption, InvalidResponse) as error:
            raise self._unavailable(error) from error
        except (OSError, ValueError) as error:
            # OSError is the root of what ``requests`` raises; ValueError is a bucket name or an
            # address that cannot be one.
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        # Only the class is named, because messages of these libraries quote addresses and file names.
        return StoreUnavailable(f"{self._bucket_name}: {type(error).__name__}")

    def _open_client(self) -> Any:
        from google.cloud import storage

        with self._client_lock:
            if self._client is None:
                # Objects belong to a bucket, not to a project. If none were named here, the client would
                # go looking for one, in the end by starting ``gcloud``.
                self._client = storage.Client(project=None)
            return self._client

    def _close(self) -> None:
        with self._client_lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def _sample(uid: str, blob: Any) -> StoredSample | None:
    identity = identity_in(uid, blob.name)
    if identity is None:
        return None
    return StoredSample(uid, identity, blob.name, str(blob.generation), blob.updated, blob.size)
