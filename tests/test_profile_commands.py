"""What the ``omi-rt profile`` commands do, on a store in memory."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.core.errors import BadRequest, ProfileRefused
from omi_rt.core.voices import USER, Identity
from omi_rt.fake.speech import random_script, synthesise
from omi_rt.profiles.commands import (
    Outcome,
    ProfileNotFound,
    delete_profiles,
    get_profile,
    list_profiles,
    open_store,
    put_profile,
)
from omi_rt.profiles.directory import DirectoryProfileStore
from omi_rt.profiles.gcs import GCSProfileStore
from omi_rt.profiles.store import MAX_SAMPLE_BYTES, StoredSample
from tests.memory_store import MemoryProfileStore

if TYPE_CHECKING:
    from pathlib import Path


def wav(voice: int = 1, seconds: float = 8.0) -> bytes:
    script = random_script(Random(voice), seconds, voices=(voice,), longest_pause=0.3)
    return write_wav(WavAudio(16_000, 1, synthesise(script, 16_000)))


async def test_a_profile_comes_back_as_it_was_put() -> None:
    store = MemoryProfileStore()
    mine, theirs = wav(1), wav(2)
    await put_profile(store, "u", mine)
    await put_profile(store, "u", theirs, "p")
    assert await get_profile(store, "u") == mine
    assert await get_profile(store, "u", "p") == theirs


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"ID3 this is no WAV", "not a WAV file"),
        (wav(seconds=3.0), "3.0 s long"),
        (write_wav(WavAudio(16_000, 1, bytes(320_000))), "too quiet"),
        (bytes(MAX_SAMPLE_BYTES + 1), "over 25165824 bytes"),
    ],
    ids=["no WAV", "too short", "silent", "too big"],
)
async def test_what_is_not_fit_is_refused_in_one_line_and_not_stored(
    file: bytes, reason: str
) -> None:
    store = MemoryProfileStore()
    for person_id in (None, "p"):
        with pytest.raises(ProfileRefused, match=reason) as caught:
            await put_profile(store, "u", file, person_id)
        assert "\n" not in str(caught.value)
    assert await store.list_samples("u") == []


async def test_a_refused_profile_leaves_the_earlier_one() -> None:
    store = MemoryProfileStore()
    good = wav()
    await put_profile(store, "u", good)
    with pytest.raises(ProfileRefused):
        await put_profile(store, "u", b"")
    assert await get_profile(store, "u") == good


@pytest.mark.parametrize("person_id", [None, "p"])
async def test_another_recording_is_replaced_only_by_force_and_it_is_told(
    person_id: str | None,
) -> None:
    store = MemoryProfileStore()
    # The user's and the person's are no other recordings of each other.
    await put_profile(store, "u", wav(8), "p" if person_id is None else None)
    mine, theirs = wav(1), wav(2)
    assert len(mine) == len(theirs)
    first = await put_profile(store, "u", mine, person_id)
    assert first.outcome is Outcome.STORED
    whose = "u" if person_id is None else "person p of u"
    with pytest.raises(ProfileRefused, match=rf"is stored for {whose}, of 20.*: --force") as caught:
        await put_profile(store, "u", theirs, person_id)
    assert "\n" not in str(caught.value)
    assert await get_profile(store, "u", person_id) == mine
    second = await put_profile(store, "u", theirs, person_id, force=True)
    assert second.outcome is Outcome.REPLACED
    assert await get_profile(store, "u", person_id) == theirs
    assert len(await store.list_samples("u")) == 2


@pytest.mark.parametrize("force", [False, True])
async def test_the_same_recording_again_changes_nothing_and_needs_no_force(force: bool) -> None:
    store = MemoryProfileStore()
    first = await put_profile(store, "u", wav(1))
    again = await put_profile(store, "u", wav(1), force=force)
    assert (again.outcome, again.sample) == (Outcome.UNCHANGED, first.sample)


async def test_a_sample_of_a_person_that_another_program_stored_is_not_replaced() -> None:
    store = MemoryProfileStore()
    store.put_nowait("u", "u/people_profiles/p/other.wav", b"x")
    assert (await put_profile(store, "u", wav(), "p")).outcome is Outcome.STORED
    assert len(await store.list_samples("u")) == 2


async def test_what_is_not_fit_is_refused_with_force_too() -> None:
    store = MemoryProfileStore()
    await put_profile(store, "u", wav(1))
    with pytest.raises(ProfileRefused, match=r"3\.0 s long"):
        await put_profile(store, "u", wav(2, 3.0), force=True)
    assert await get_profile(store, "u") == wav(1)


async def test_the_newest_sample_of_a_person_is_got() -> None:
    store = MemoryProfileStore()
    store.put_nowait("u", "u/people_profiles/p/z.wav", b"older")
    store.put_nowait("u", "u/people_profiles/p/a.wav", b"newer")
    assert await get_profile(store, "u", "p") == b"newer"


async def test_the_list_has_the_user_first_then_the_most_recently_changed() -> None:
    store = MemoryProfileStore()
    await put_profile(store, "u", wav(2), "early")
    user = (await put_profile(store, "u", wav(1, 9.0))).sample
    store.put_nowait("u", "u/people_profiles/late/broken.wav", b"RIFF")
    rows = await list_profiles(store, "u")
    assert [(row.identity, row.seconds) for row in rows] == [
        (USER, 9.0),
        (Identity("late"), None),
        (Identity("early"), 8.0),
    ]
    assert (rows[0].version, rows[0].updated, rows[0].size) == (
        user.version,
        user.updated,
        user.size,
    )


class Vanishing(MemoryProfileStore):
    """Lists what is gone when it is read."""

    async def read(self, sample: StoredSample) -> bytes | None:
        await self.delete(sample)
        return await super().read(sample)


async def test_what_vanishes_meanwhile_is_told_or_has_no_length() -> None:
    store = Vanishing()
    await put_profile(store, "u", wav())
    assert [row.seconds for row in await list_profiles(store, "u")] == [None]
    await put_profile(store, "u", wav())
    with pytest.raises(ProfileNotFound, match="while it was being read"):
        await get_profile(store, "u")


async def test_an_oversized_file_is_listed_without_being_read() -> None:
    store = MemoryProfileStore()
    await store.put("u", None, bytes(MAX_SAMPLE_BYTES + 1))
    assert [row.seconds for row in await list_profiles(store, "u")] == [None]
    assert store.reads == 0


async def test_the_list_of_a_uid_without_profiles_is_empty() -> None:
    assert await list_profiles(MemoryProfileStore(), "u") == []


async def test_deleting_the_users_profile_leaves_the_people() -> None:
    store = MemoryProfileStore()
    await put_profile(store, "u", wav())
    await put_profile(store, "u", wav(), "p")
    deleted = await delete_profiles(store, "u")
    assert [sample.identity for sample in deleted] == [USER]
    assert [row.identity for row in await list_profiles(store, "u")] == [Identity("p")]


async def test_deleting_a_person_deletes_all_their_samples_and_no_other() -> None:
    store = MemoryProfileStore()
    await put_profile(store, "u", wav())
    await put_profile(store, "u", wav(), "p")
    await put_profile(store, "u", wav(), "q")
    store.put_nowait("u", "u/people_profiles/p/other.wav", b"x")
    assert len(await delete_profiles(store, "u", "p")) == 2
    assert [row.identity for row in await list_profiles(store, "u")] == [USER, Identity("q")]


async def test_deleting_everything_leaves_other_uids_alone() -> None:
    store = MemoryProfileStore()
    await put_profile(store, "u", wav())
    await put_profile(store, "u", wav(), "p")
    await put_profile(store, "v", wav())
    assert len(await delete_profiles(store, "u", everything=True)) == 2
    assert await list_profiles(store, "u") == []
    assert len(await list_profiles(store, "v")) == 1


async def test_what_is_not_there_is_told_with_whose_it_would_be() -> None:
    store = MemoryProfileStore()
    with pytest.raises(ProfileNotFound, match="no profile is stored for u"):
        await get_profile(store, "u")
    with pytest.raises(ProfileNotFound, match="no profile is stored for person p of u"):
        await delete_profiles(store, "u", "p")
    with pytest.raises(ProfileNotFound, match="nothing is stored for u"):
        await delete_profiles(store, "u", everything=True)


async def test_invalid_ids_are_refused_by_every_command() -> None:
    store = MemoryProfileStore()
    for uid, person_id in [("../u", None), ("../u", "p"), ("u", "../p")]:
        with pytest.raises(BadRequest):
            await put_profile(store, uid, wav(), person_id)
        with pytest.raises(BadRequest):
            await get_profile(store, uid, person_id)
        with pytest.raises(BadRequest):
            await delete_profiles(store, uid, person_id)
    with pytest.raises(BadRequest):
        await list_profiles(store, "../u")
    with pytest.raises(BadRequest):
        await delete_profiles(store, "../u", everything=True)


@pytest.mark.parametrize(
    ("bucket", "kind"),
    [("bucket", GCSProfileStore), (None, DirectoryProfileStore), ("", DirectoryProfileStore)],
)
async def test_a_bucket_goes_before_the_directory(
    tmp_path: Path, bucket: str | None, kind: type
) -> None:
    async with open_store(bucket, tmp_path) as store:
        assert isinstance(store, kind)
