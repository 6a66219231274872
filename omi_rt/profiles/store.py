"""Where speech profiles are kept: the contract of every store, and the layout that they share.

``{uid}/speech_profile.wav`` is the user's own voice, ``{uid}/people_profiles/{person_id}/*.wav`` are
samples of the people whom the user has named: the layout of the Omi backend
(``backend/utils/other/storage.py`` in BasedHardware/omi), so that one bucket serves both.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from attrs import frozen

from omi_rt.core.errors import BadRequest, OmiRtError
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.voices import USER, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_SAMPLE_BYTES: Final = 25_165_824
"""A sample has at most 24 MiB; the longest profile that may be stored, 120 s, takes 23,040,044 bytes in
48 kHz stereo."""
MAX_LISTED: Final = 10_000
"""A listing reads at most this many objects under one uid, which are ten pages of Google Cloud Storage."""

_PROFILE_FILE: Final = "speech_profile.wav"
_PEOPLE_FOLDER: Final = "people_profiles"


class StoreUnavailable(OmiRtError):
    """The store cannot be reached, refuses, or takes too long; the message holds no secret."""


@frozen
class StoredSample:
    """One stored WAV file, known by its metadata."""

    uid: str
    identity: Identity
    """Whose voice it is."""
    name: str
    """Its path inside the store, with ``/`` between the parts."""
    version: str
    """An identifier that differs from that of any earlier content under the same name."""
    updated: datetime
    """When it was last written; the time is aware, in UTC."""
    size: int
    """The size in bytes."""


class ProfileStore(Protocol):
    """A place for profiles. Each store bounds its own waits, unless it says otherwise.

    What is absent is None, False or an empty list, never an error. Cancelling a read is immediate;
    cancelling a write waits for its end, so that it is known to be done or not.

    All methods raise `StoreUnavailable`, and `BadRequest` for a uid or person id that breaks the
    rule of `check_id`.
    """

    async def list_samples(self, uid: str) -> list[StoredSample]:
        """Return the metadata of everything stored for ``uid``, in no fixed order."""

    async def read(self, sample: StoredSample) -> bytes | None:
        """Return the content that was listed; None if it is gone or has been replaced since."""

    async def put(self, uid: str, person_id: str | None, wav: bytes) -> StoredSample:
        """Store ``wav`` as the user's profile or as a person's sample, whole or not at all.

        It replaces what an earlier `put` stored for the same voice, and nothing else.
        """

    async def delete(self, sample: StoredSample) -> bool:
        """Delete whatever is stored under the sample's name; False if there is nothing."""

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run a pure ``function`` of some milliseconds where it blocks no other task.

        Cancelling this abandons it to its end.
        """

    async def aclose(self) -> None:
        """Close what is open. This is bounded, even when it is cancelled."""


def check_id(value: str, name: str) -> None:
    """Refuse a uid or person id (``name`` says which) that could lead out of its own folder.

    Raises:
        BadRequest: it breaks the rule, which the message gives. The value itself is not in it.
    """
    if not is_valid_id(value):
        raise BadRequest(f"{name}: {ID_RULE}")


def sample_name(uid: str, person_id: str | None) -> str:
    """Return where `ProfileStore.put` stores the user's profile, or the one file of ours for a person.

    Raises:
        BadRequest: ``uid`` or ``person_id`` breaks the rule of `check_id`.
    """
    check_id(uid, "uid")
    if person_id is None:
        return f"{uid}/{_PROFILE_FILE}"
    check_id(person_id, "person id")
    return f"{people_prefix(uid)}{person_id}/{_PROFILE_FILE}"


def people_prefix(uid: str) -> str:
    """Return what the names of all samples of the user's people begin with."""
    return f"{uid}/{_PEOPLE_FOLDER}/"


def identity_in(uid: str, name: str) -> Identity | None:
    """Return whose voice is stored under ``name``; None where the layout has no place for it."""
    if name == f"{uid}/{_PROFILE_FILE}":
        return USER
    prefix = people_prefix(uid)
    if not name.startswith(prefix) or not name.endswith(".wav"):
        return None
    person_id, separator, file = name.removeprefix(prefix).partition("/")
    if not separator or "/" in file or file.startswith(".") or not is_valid_id(person_id):
        return None
    return Identity(person_id)
