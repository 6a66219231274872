"""Google Cloud Storage: the one file that imports ``google-cloud-storage``."""

from __future__ import annotations

import os
import threading
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import frozen

from omi_rt.core.errors import OmiRtError

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
CHUNK_BYTES: Final = 8_388_608
"""A file is uploaded in requests of this size, each of which is read into memory and has
`WRITE_SECONDS`."""
_LISTED_FIELDS: Final = "items(name,generation,updated,size),nextPageToken"
# The client (3.17) looks up the bucket in a daemon thread of its own at the first use, for traces that
# nobody makes here, with a right (storage.buckets.get) that nothing else here needs.
_NO_BUCKET_LOOKUP: Final = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"


class BucketUnavailable(OmiRtError):
    """The bucket cannot be reached, refuses, or takes too long; the message holds no secret."""


class ObjectNotFound(BucketUnavailable):
    """The answer was HTTP 404, for the object or for the whole bucket."""


@frozen
class StoredObject:
    """One object, known by its metadata."""

    name: str
    version: str
    """Its generation: it differs from that of any earlier content under the same name."""
    updated: datetime
    """When it was last written; the time is aware, in UTC."""
    size: int
    """The size in bytes."""


class Bucket:
    """A bucket, with application-default credentials.

    With ``STORAGE_EMULATOR_HOST`` (scheme included) in the environment the client talks to that
    host, without credentials. The library is imported and the client made at the first call: both
    take a thread some tenths of a second, and a server without a bucket needs neither.

    Calls run in threads, at most `GCS_THREADS` of them. A cancelled read leaves its thread behind;
    it ends within three times ``read_seconds``: tries begin for as long as that, and the last one may
    wait once to connect and once to read. A write is tried the same way in ``write_seconds``. Not in
    this count are what the library does on its own terms: DNS, and the search for credentials at
    the first call (where there are none, up to three tries of 3 s at Google's metadata server).

    All methods that ask the bucket raise `BucketUnavailable`.
    """

    def __init__(
        self,
        name: str,
        *,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._name = name
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        self._limiter = trio.CapacityLimiter(GCS_THREADS)
        self._client: Any = None
        self._client_lock = threading.Lock()
        # This is set here and not where the client is made, in a thread, because setenv is not thread-safe.
        os.environ.setdefault(_NO_BUCKET_LOOKUP, "true")

    @property
    def threads(self) -> int:
        """The number of threads at work for this bucket now, the abandoned ones included."""
        return self._limiter.borrowed_tokens

    async def list_objects(
        self, prefix: str, most: int, *, start_offset: str | None = None
    ) -> list[StoredObject]:
        """Return the first ``most`` objects whose names begin with ``prefix``, in order of their names.

        There is one request for each 1,000 objects.

        Args:
            prefix: of the names.
            most: objects.
            start_offset: names before this one are left out.
        """

        def list_them(bucket: Any, limits: dict[str, Any]) -> list[StoredObject]:
            blobs = bucket.client.list_blobs(
                bucket,
                prefix=prefix,
                start_offset=start_offset,
                fields=_LISTED_FIELDS,
                max_results=most,
                **limits,
            )
            return [_stored(blob) for blob in blobs]

        return await self._read(list_them)

    async def list_page(
        self, prefix: str, glob: str | None, page: str | None
    ) -> tuple[list[StoredObject], str | None]:
        """Return up to 1,000 objects and what the next page is called; None where this was the last.

        Args:
            prefix: of the names.
            glob: pattern of the names, as Google Cloud Storage has it (``*`` stands for no ``/``); None
                is any.
            page: None for the first one, else what the call before has returned.
        """

        def list_them(bucket: Any, limits: dict[str, Any]) -> tuple[list[StoredObject], str | None]:
            blobs = bucket.client.list_blobs(
                bucket,
                prefix=prefix,
                match_glob=glob,
                fields=_LISTED_FIELDS,
                page_token=page,
                **limits,
            )
            found = [_stored(blob) for blob in next(blobs.pages, ())]
            return found, blobs.next_page_token

        return await self._read(list_them)

    async def read(self, name: str, version: str | None = None) -> bytes | None:
        """Return the content of an object, of that ``version`` where one is given; None if it is gone."""

        def download(bucket: Any, limits: dict[str, Any]) -> bytes:
            generation = None if version is None else int(version)
            content: bytes = bucket.blob(name, generation=generation).download_as_bytes(**limits)
            return content

        try:
            return await self._read(download)
        except ObjectNotFound:
            return None

    async def put(self, name: str, content: bytes, content_type: str) -> StoredObject:
        """Store an object, whole or not at all. Cancelling waits for its end."""

        def upload(bucket: Any, limits: dict[str, Any]) -> StoredObject:
            blob = bucket.blob(name)
            blob.upload_from_string(content, content_type=content_type, **limits)
            return _stored(blob)

        return await self._write(upload)

    async def put_file(self, name: str, file: IO[bytes], content_type: str) -> None:
        """Store the rest of ``file`` as an object, whole or not at all, in pieces of `CHUNK_BYTES`.

        Cancelling leaves the thread behind, which ends when it reads from the file again: close it.
        """

        def upload(bucket: Any, limits: dict[str, Any]) -> None:
            blob = bucket.blob(name, chunk_size=CHUNK_BYTES)
            blob.upload_from_file(file, content_type=content_type, **limits)

        await self.run_blocking(lambda: self._call(upload, self._write_seconds))

    async def delete(self, name: str) -> bool:
        """Delete an object; False if there is none. Cancelling waits for its end."""
        try:
            await self._write(lambda bucket, limits: bucket.blob(name).delete(**limits))
        except ObjectNotFound:
            return False
        return True

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run a function in one of the bucket's threads, which is left behind where this is cancelled."""
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

    def _call(self, operation: Callable[[Any, dict[str, Any]], T], seconds: float) -> T:
        from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from google.cloud.storage.retry import DEFAULT_RETRY

        retry = DEFAULT_RETRY.with_delay(initial=0.2, maximum=1.0).with_timeout(seconds)
        try:
            bucket = self._open_client().bucket(self._name)
            return operation(bucket, {"timeout": (seconds, seconds), "retry": retry})
        except NotFound as error:
            raise ObjectNotFound(f"{self._name}: HTTP 404, no such object or bucket") from error
        except GoogleAPICallError as error:
            raise BucketUnavailable(f"{self._name}: HTTP {error.code}") from error
        except (GoogleAPIError, GoogleAuthError, DataCorruption, InvalidResponse) as error:
            raise self._unavailable(error) from error
        except (OSError, ValueError) as error:
            # OSError is the root of what ``requests`` raises; ValueError is a bucket name or an
            # address that cannot be one.
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BucketUnavailable:
        # Only the class is named, because messages of these libraries quote addresses and file names.
        return BucketUnavailable(f"{self._name}: {type(error).__name__}")

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


def _stored(blob: Any) -> StoredObject:
    return StoredObject(blob.name, str(blob.generation), blob.updated, blob.size)
