"""What ``omi-rt export`` and ``omi-rt forget`` do, apart from the command line."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from omi_rt.auth.tokens import forget_tokens
from omi_rt.core.errors import BadRequest, OmiRtError
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.records import BucketPlace, NoRecord
from omi_rt.records.bucket import RecordBucket
from omi_rt.records.files import find_record, forget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from omi_rt.core.records import Record

CLOSE_SECONDS = 5.0


class RecordNotFound(OmiRtError):
    """There is no such record; the message is one clear line."""


def root_of(place: Path | BucketPlace | None, spool: Path) -> Path | None:
    """Return the directory in which records are written; None where none are."""
    return spool if isinstance(place, BucketPlace) else place


@asynccontextmanager
async def open_record_bucket(
    place: Path | BucketPlace | None,
) -> AsyncIterator[RecordBucket | None]:
    """Hold the bucket with records open, where they are in one. Nothing is asked before the first call."""
    if not isinstance(place, BucketPlace):
        yield None
        return
    store = RecordBucket(place)
    try:
        yield store
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await store.aclose()


async def read_session(place: Path | BucketPlace | None, spool: Path, session: str) -> Record:
    """Read the record of a session, corrected.

    Args:
        place: of the records; None where none are kept.
        spool: where records are that are still to go into a bucket.
        session: its id.

    Raises:
        RecordNotFound: there is none.
        BucketUnavailable: the bucket cannot be asked.
        OSError: the record cannot be read.
    """
    root = root_of(place, spool)
    if root is None:
        raise RecordNotFound("OMI_RT_TRANSCRIPT_DIR is not set: nothing is kept")
    async with open_record_bucket(place) as store:
        try:
            return await trio.to_thread.run_sync(find_record, root, session)
        except NoRecord as error:
            if store is None:
                raise RecordNotFound(str(error)) from None
        try:
            return await store.find_record(session)
        except NoRecord as error:
            raise RecordNotFound(str(error)) from None


async def forget_person(
    place: Path | BucketPlace | None, spool: Path, token_file: Path, uid: str
) -> list[str]:
    """Remove the tokens and records of a uid; returns a line for each kind.

    Tokens go first, so that nothing new begins.

    Args:
        place: of the records; None where none are kept.
        spool: where records are that are still to go into a bucket.
        token_file: of ``OMI_RT_AUTH=tokens``; it need not exist.
        uid: whose they are.

    Raises:
        BadRequest: the uid cannot be one.
        BucketUnavailable: the bucket cannot be asked; what is here is removed.
        OSError: a file cannot be removed.
    """
    if not is_valid_id(uid):
        raise BadRequest(f"uid: {ID_RULE}")
    root = root_of(place, spool)
    tokens = await trio.to_thread.run_sync(forget_tokens, token_file, uid)
    files = 0 if root is None else await trio.to_thread.run_sync(forget, root, uid)
    async with open_record_bucket(place) as store:
        if store is not None:
            files += await store.forget(uid)
    return [f"files removed: {files}", f"tokens removed: {'yes' if tokens else 'none'}"]
