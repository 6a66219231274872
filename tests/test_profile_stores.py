"""What every store does, and what is special to the directory."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from omi_rt.core.errors import BadRequest
from omi_rt.core.ids import is_valid_id
from omi_rt.core.voices import USER, Identity
from omi_rt.profiles.directory import DirectoryProfileStore
from omi_rt.profiles.store import ProfileStore, StoreUnavailable
from tests.memory_store import MemoryProfileStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ODD_IDS = ["auth0|a b", "Zoë@x.y", "per%2Fcent?#*[]", ".hidden", "x" * 128]


@pytest.fixture(params=["memory", "directory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProfileStore]:
    opened: ProfileStore = (
        MemoryProfileStore()
        if request.param == "memory"
        else DirectoryProfileStore(tmp_path / "profiles")
    )
    yield opened
    await opened.aclose()


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryProfileStore:
    return DirectoryProfileStore(tmp_path)


async def test_what_was_put_is_listed_and_read(store: ProfileStore) -> None:
    user = await store.put("u", None, b"mine")
    person = await store.put("u", "p", b"theirs")
    assert sorted(await store.list_samples("u"), key=lambda sample: sample.size) == [user, person]
    assert await store.read(user) == b"mine"
    assert await store.read(person) == b"theirs"
    assert (user.identity, person.identity) == (USER, Identity("p"))
    assert (user.size, person.size) == (4, 6)


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_unusual_ids_are_folders_like_any_other(store: ProfileStore, odd: str) -> None:
    await store.put(odd, None, b"mine")
    await store.put(odd, odd, b"theirs")
    samples = await store.list_samples(odd)
    assert {sample.identity for sample in samples} == {USER, Identity(odd)}


async def test_a_uid_sees_its_own_profiles_alone(store: ProfileStore) -> None:
    await store.put("u", None, b"mine")
    await store.put("u2", None, b"another's")
    assert [sample.uid for sample in await store.list_samples("u")] == ["u"]


async def test_a_uid_with_nothing_stored_has_an_empty_list(store: ProfileStore) -> None:
    assert await store.list_samples("nobody") == []


async def test_a_put_replaces_the_earlier_one_under_a_new_version(store: ProfileStore) -> None:
    earlier = await store.put("u", "p", b"one")
    later = await store.put("u", "p", b"two")
    assert await store.list_samples("u") == [later]
    assert later.version != earlier.version
    assert later.updated >= earlier.updated
    assert await store.read(later) == b"two"


async def test_a_listed_version_that_was_replaced_is_not_read(store: ProfileStore) -> None:
    earlier = await store.put("u", None, b"one")
    await store.put("u", None, b"two")
    assert await store.read(earlier) is None


async def test_what_is_deleted_is_gone(store: ProfileStore) -> None:
    sample = await store.put("u", "p", b"theirs")
    await store.put("u", None, b"mine")
    assert await store.delete(sample)
    assert not await store.delete(sample)
    assert await store.read(sample) is None
    assert [sample.identity for sample in await store.list_samples("u")] == [USER]


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\\b", "a\nb", "x" * 129])
async def test_ids_that_could_lead_elsewhere_are_refused(store: ProfileStore, bad: str) -> None:
    with pytest.raises(BadRequest, match="uid"):
        await store.list_samples(bad)
    with pytest.raises(BadRequest, match="uid"):
        await store.put(bad, None, b"")
    with pytest.raises(BadRequest, match="person id"):
        await store.put("u", bad, b"")


async def test_blocking_work_returns_its_value_and_passes_its_error_on(
    store: ProfileStore,
) -> None:
    assert await store.run_blocking(lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        await store.run_blocking(lambda: 1 / 0)


async def test_files_lie_where_the_layout_says(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    await directory.put("u", None, b"mine")
    await directory.put("u", "p", b"theirs")
    (tmp_path / "u/people_profiles/p/memory_segment_1.wav").write_bytes(b"from elsewhere")
    assert (tmp_path / "u/speech_profile.wav").read_bytes() == b"mine"
    samples = await directory.list_samples("u")
    contents = {await directory.read(sample) for sample in samples}
    assert contents == {b"mine", b"theirs", b"from elsewhere"}


async def test_what_is_no_profile_is_not_listed(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    for name in ["u/notes.txt", "u/people_profiles/x.wav", "u/people_profiles/p/.half.wav"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "u/speech_profile.wav").mkdir()
    os.mkfifo(tmp_path / "u/people_profiles/p/pipe.wav")
    assert await directory.list_samples("u") == []


async def test_a_listing_has_an_end(
    directory: DirectoryProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.profiles.directory.MAX_LISTED", 2)
    for person_id in ("p", "q"):
        await directory.put("u", person_id, b"theirs")
        if person_id == "p":
            assert len(await directory.list_samples("u")) == 1
    with pytest.raises(StoreUnavailable, match="over 2 files"):
        await directory.list_samples("u")


async def test_the_time_of_the_file_is_the_time_of_the_change(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    await directory.put("u", None, b"mine")
    os.utime(tmp_path / "u/speech_profile.wav", (1_700_000_000, 1_700_000_000))
    (sample,) = await directory.list_samples("u")
    assert sample.updated == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert sample.updated.utcoffset() == timedelta(0)


async def test_versions_differ_even_if_size_and_time_do_not(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    path = tmp_path / "u/speech_profile.wav"
    versions = set()
    for content in (b"one", b"two"):
        await directory.put("u", None, content)
        os.utime(path, ns=(5, 5))
        (sample,) = await directory.list_samples("u")
        versions.add(sample.version)
    assert len(versions) == 2


async def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    directory: DirectoryProfileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = await directory.put("u", None, b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        await directory.put("u", None, b"new")
    assert await directory.read(sample) == b"old"
    assert os.listdir(tmp_path / "u") == ["speech_profile.wav"]


async def test_a_reader_sees_the_old_or_the_new_content_and_never_a_part(
    directory: DirectoryProfileStore,
) -> None:
    contents = [bytes([index]) * 300_000 for index in range(8)]
    seen = []

    async def write() -> None:
        for content in contents:
            await directory.put("u", None, content)
        nursery.cancel_scope.cancel()

    async def read() -> None:
        while True:
            samples = await directory.list_samples("u")
            seen.extend([await directory.read(sample) for sample in samples])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
    assert set(seen) <= {*contents, None}


async def test_files_and_folders_are_their_owners_alone(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    await directory.put("u", "p", b"theirs")
    person = tmp_path / "u/people_profiles/p"
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "u", person, *person.iterdir())]
    assert modes == [0o700, 0o700, 0o600]


async def test_folders_left_empty_are_removed(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    await directory.delete(await directory.put("u", "p", b"theirs"))
    assert os.listdir(tmp_path) == []


async def test_folders_that_hold_other_files_stay(
    directory: DirectoryProfileStore, tmp_path: Path
) -> None:
    user = await directory.put("u", None, b"mine")
    await directory.delete(await directory.put("u", "p", b"theirs"))
    assert os.listdir(tmp_path / "u") == ["speech_profile.wav"]
    assert await directory.read(user) == b"mine"


async def test_a_folder_that_can_not_be_used_is_unavailable_not_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable) as caught:
        await DirectoryProfileStore(tmp_path / "file").put("u", None, b"mine")
    assert str(tmp_path) not in str(caught.value)


async def test_a_cancelled_read_returns_at_once_and_a_cancelled_write_when_it_is_done(
    directory: DirectoryProfileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    sync = os.fsync

    def wait_and_sync(descriptor: int) -> None:
        going_on.wait(10)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", wait_and_sync)
    with trio.fail_after(5), trio.move_on_after(0.01) as reading:
        await directory.run_blocking(lambda: going_on.wait(10))
    assert reading.cancelled_caught
    assert not going_on.is_set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.put, "u", None, b"mine")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        going_on.set()
    assert (tmp_path / "u/speech_profile.wav").read_bytes() == b"mine"


@settings(max_examples=40, deadline=None)
@given(uid=st.text(max_size=40), person_id=st.text(max_size=40))
def test_no_id_whatever_writes_outside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, uid: str, person_id: str
) -> None:
    outer = tmp_path_factory.mktemp("outer")
    directory = DirectoryProfileStore(outer / "profiles")

    async def put() -> None:
        await directory.put(uid, person_id, b"theirs")

    if is_valid_id(uid) and is_valid_id(person_id):
        trio.run(put)
        assert os.listdir(outer) == ["profiles"]
        (file,) = [path for path in outer.rglob("*") if path.is_file()]
        assert file.relative_to(outer).parts[:3] == ("profiles", uid, "people_profiles")
    else:
        with pytest.raises(BadRequest):
            trio.run(put)
        assert os.listdir(outer) == []
