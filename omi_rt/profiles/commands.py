"""What ``omi-rt profile put | get | list | delete`` does, apart from the command line."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from omi_rt.codecs.wav import WavError, read_wav
from omi_rt.core.errors import OmiRtError, ProfileRefused
from omi_rt.core.voices import Identity
from omi_rt.profiles.check import check_profile
from omi_rt.profiles.directory import DirectoryProfileStore
from omi_rt.profiles.gcs import GCSProfileStore
from omi_rt.profiles.store import (
    MAX_SAMPLE_BYTES,
    ProfileStore,
    StoredSample,
    check_id,
    sample_name,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


CLOSE_SECONDS = 5.0
"""Closing a store takes this long at most."""


class ProfileNotFound(OmiRtError):
    """Nothing is stored for that uid or person; the message is one clear line."""


class ProfileExists(ProfileRefused):
    """Another recording is stored, and was not to be replaced."""


class Outcome(Enum):
    """What became of a file that was to be stored; the value is the word to say."""

    STORED = "stored"
    """There was no recording before."""
    REPLACED = "replaced"
    """Another recording has given way to it."""
    UNCHANGED = "unchanged:"
    """The same bytes were there already."""


@frozen
class StoredProfile:
    """What `put_profile` has done."""

    sample: StoredSample
    outcome: Outcome


@frozen
class ProfileRow:
    """One line of ``omi-rt profile list``."""

    identity: Identity
    name: str
    """The path inside the store."""
    seconds: float | None
    """The length of the recording; None if the file cannot be read as WAV."""
    size: int
    """The size of the file in bytes."""
    version: str
    updated: datetime


@asynccontextmanager
async def open_store(bucket: str | None, directory: Path) -> AsyncIterator[ProfileStore]:
    """Hold the store in ``bucket`` (Google Cloud Storage) open, else the one in ``directory``.

    Nothing is fetched or made before the first call. Leaving the body takes `CLOSE_SECONDS` at most,
    also when that is by cancellation.
    """
    store = GCSProfileStore(bucket) if bucket else DirectoryProfileStore(directory)
    try:
        yield store
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await store.aclose()


async def check_wav(store: ProfileStore, wav: bytes) -> float:
    """Check whether a WAV file is fit to be a profile, and return its length in seconds.

    Raises:
        ProfileRefused: it is not; the message says why in one line.
    """
    if len(wav) > MAX_SAMPLE_BYTES:
        raise ProfileRefused(f"the file is over {MAX_SAMPLE_BYTES} bytes")
    return await store.run_blocking(lambda: _check(wav))


async def put_profile(
    store: ProfileStore,
    uid: str,
    wav: bytes,
    person_id: str | None = None,
    *,
    force: bool = False,
) -> StoredProfile:
    """Check a WAV file and store it as it is: the user's profile, or a person's sample.

    Another recording of the same person is replaced only with ``force``, whoever speaks in it: nothing
    in this package compares two voices. Deepgram does, but only by its labels in a session, and
    those can be wrong.

    What somebody else stores between the look and the upload is replaced unseen. Cancelling this
    before the upload stores nothing; a cancellation during the upload waits for its end.

    Raises:
        ProfileRefused: the file is not a WAV file, or not fit to be a profile.
        ProfileExists: it would replace another.
        BadRequest: the uid or person id cannot be one.
        StoreUnavailable: the store failed.
    """
    await check_wav(store, wav)
    earlier = await _stored_as(store, uid, sample_name(uid, person_id))
    if earlier is None:
        return StoredProfile(await store.put(uid, person_id, wav), Outcome.STORED)
    if earlier.size == len(wav) and await store.read(earlier) == wav:
        return StoredProfile(earlier, Outcome.UNCHANGED)
    if not force:
        whose = uid if person_id is None else f"person {person_id} of {uid}"
        raise ProfileExists(
            f"another recording is stored for {whose}, of {earlier.updated:%Y-%m-%d %H:%M:%S}Z; "
            "nothing here can tell whether it is of the same voice: --force replaces it"
        )
    return StoredProfile(await store.put(uid, person_id, wav), Outcome.REPLACED)


async def get_profile(store: ProfileStore, uid: str, person_id: str | None = None) -> bytes:
    """Return the user's profile, or a person's newest sample, as it was stored.

    Raises:
        ProfileNotFound: there is none.
        BadRequest: the uid or person id cannot be one.
        StoreUnavailable: the store failed.
    """
    newest = max(await _samples_of(store, uid, person_id), key=lambda sample: sample.updated)
    wav = await store.read(newest)
    if wav is None:
        raise ProfileNotFound("the profile was replaced or deleted while it was being read")
    return wav


async def list_profiles(store: ProfileStore, uid: str) -> list[ProfileRow]:
    """List what is stored for ``uid``: the user first, then the most recently changed people.

    Each file is read, one after the other, to tell its length. The list is empty if nothing is stored.

    Raises:
        BadRequest: the uid cannot be one.
        StoreUnavailable: the store failed.
    """
    samples = sorted(await store.list_samples(uid), key=lambda sample: sample.updated, reverse=True)
    samples.sort(key=lambda sample: not sample.identity.is_user)
    return [
        ProfileRow(
            sample.identity,
            sample.name,
            await _seconds(store, sample),
            sample.size,
            sample.version,
            sample.updated,
        )
        for sample in samples
    ]


async def delete_profiles(
    store: ProfileStore, uid: str, person_id: str | None = None, *, everything: bool = False
) -> list[StoredSample]:
    """Delete the user's profile, all samples of one person, or ``everything`` of both kinds.

    Returns what was deleted. Cancelling this leaves what was not deleted yet.

    Raises:
        ProfileNotFound: there was nothing to delete.
        BadRequest: the uid or person id cannot be one.
        StoreUnavailable: the store failed.
    """
    if everything:
        samples = await store.list_samples(uid)
    else:
        samples = await _samples_of(store, uid, person_id)
    deleted = [sample for sample in samples if await store.delete(sample)]
    if not deleted:
        raise ProfileNotFound(f"nothing is stored for {uid}")
    return deleted


async def _stored_as(store: ProfileStore, uid: str, name: str) -> StoredSample | None:
    samples = await store.list_samples(uid)
    return next((sample for sample in samples if sample.name == name), None)


async def _samples_of(store: ProfileStore, uid: str, person_id: str | None) -> list[StoredSample]:
    """Return the samples of one voice, of which there is at least one."""
    if person_id is not None:
        check_id(person_id, "person id")
    wanted = Identity(person_id)
    samples = [sample for sample in await store.list_samples(uid) if sample.identity == wanted]
    if not samples:
        whose = "" if person_id is None else f"person {person_id} of "
        raise ProfileNotFound(f"no profile is stored for {whose}{uid}")
    return samples


async def _seconds(store: ProfileStore, sample: StoredSample) -> float | None:
    if sample.size > MAX_SAMPLE_BYTES:
        return None
    wav = await store.read(sample)
    if wav is None:
        return None
    try:
        return await store.run_blocking(lambda: read_wav(wav).seconds)
    except WavError:
        return None


def _check(wav: bytes) -> float:
    try:
        audio = read_wav(wav)
    except WavError as error:
        raise ProfileRefused(str(error)) from error
    check_profile(audio)
    return audio.seconds
