"""Profiles in Google Cloud Storage: the real client against an emulator that the tests own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from gcp_storage_emulator.server import Server, create_server

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.core.audio import AudioFormat
from omi_rt.core.errors import BadRequest
from omi_rt.core.voices import USER, Identity
from omi_rt.fake.speech import random_script, synthesise
from omi_rt.profiles.anchors import AnchorLimits
from omi_rt.profiles.cache import ProfileCache
from omi_rt.profiles.gcs import GCSProfileStore
from omi_rt.profiles.loading import load_anchors
from omi_rt.profiles.store import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.realtime

BUCKET = "profiles"
WAV_BYTES = bytes(range(256)) * 1_250 + b"\r\n--\r"
"""About 10 s of 16 kHz mono: every byte, and an ending that a careless MIME parser would eat."""


@contextmanager
def storage_emulator(bucket: str = BUCKET) -> Iterator[Server]:
    """Run an empty emulator with one bucket on a free port; `address_of` tells which."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        # Its own join does not wait for the thread.
        threading.Thread.join(server._api, 5)


def address_of(server: Server) -> str:
    """The value for ``STORAGE_EMULATOR_HOST``."""
    return f"http://127.0.0.1:{server._api._httpd.server_address[1]}"


@pytest.fixture(scope="module")
def module_emulator() -> Iterator[Server]:
    with storage_emulator() as server:
        yield server


@pytest.fixture
def emulator(module_emulator: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator whose bucket is empty; its stop takes half a second, so one serves them all."""
    module_emulator.wipe(keep_buckets=True)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address_of(module_emulator))


@pytest.fixture
async def store(emulator: None) -> AsyncIterator[GCSProfileStore]:
    opened = GCSProfileStore(BUCKET)
    yield opened
    await opened.aclose()


async def test_what_was_put_is_listed_and_read(store: GCSProfileStore) -> None:
    user = await store.put("u", None, WAV_BYTES)
    person = await store.put("u", "p", WAV_BYTES[:1_000])
    assert sorted(await store.list_samples("u"), key=lambda sample: -sample.size) == [user, person]
    assert await store.read(user) == WAV_BYTES
    assert await store.read(person) == WAV_BYTES[:1_000]
    assert (user.identity, person.identity) == (USER, Identity("p"))
    assert (user.name, user.size) == ("u/speech_profile.wav", len(WAV_BYTES))


async def test_the_largest_profile_goes_both_ways(store: GCSProfileStore) -> None:
    """Above 8 MiB the client uploads in another way."""
    wav = os.urandom(23_040_044)
    assert await store.read(await store.put("u", None, wav)) == wav


@pytest.mark.parametrize("odd", ["auth0|a b", "Zoë@x.y", "per%2Fcent?#*[]&=+", "x" * 128])
async def test_unusual_ids_are_quoted_on_the_way(store: GCSProfileStore, odd: str) -> None:
    samples = [await store.put(odd, None, b"mine"), await store.put(odd, odd, b"theirs")]
    listed = await store.list_samples(odd)
    assert {sample.identity for sample in listed} == {USER, Identity(odd)}
    assert [await store.read(sample) for sample in samples] == [b"mine", b"theirs"]


async def test_a_uid_sees_its_own_profiles_alone(store: GCSProfileStore) -> None:
    await store.put("u", None, b"mine")
    await store.put("u2", None, b"another's")
    assert [sample.name for sample in await store.list_samples("u")] == ["u/speech_profile.wav"]
    assert await store.list_samples("nobody") == []


async def test_a_put_replaces_the_earlier_one_under_a_new_generation(
    store: GCSProfileStore,
) -> None:
    earlier = await store.put("u", "p", b"one")
    later = await store.put("u", "p", b"two")
    assert await store.list_samples("u") == [later]
    assert int(later.version) > int(earlier.version)
    assert later.updated >= earlier.updated
    assert later.updated.utcoffset() is not None


async def test_what_is_deleted_is_gone(store: GCSProfileStore) -> None:
    sample = await store.put("u", None, b"mine")
    assert await store.delete(sample)
    assert not await store.delete(sample)
    assert await store.read(sample) is None
    assert await store.list_samples("u") == []


async def test_other_objects_of_the_backend_are_no_profiles(store: GCSProfileStore) -> None:
    from google.cloud import storage

    def upload() -> None:
        client = storage.Client(project=None)
        for name in ["additional_profile_recordings/1.wav", "people_profiles/p/m_segment_1.wav"]:
            client.bucket(BUCKET).blob(f"u/{name}").upload_from_string(b"x")
        client.close()

    await trio.to_thread.run_sync(upload)
    assert [sample.identity for sample in await store.list_samples("u")] == [Identity("p")]


async def test_a_listing_has_an_end(
    store: GCSProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.profiles.gcs.MAX_LISTED", 1)
    await store.put("u", None, b"mine")
    assert len(await store.list_samples("u")) == 1
    await store.put("u", "p", b"theirs")
    with pytest.raises(StoreUnavailable, match="over 1 objects"):
        await store.list_samples("u")


async def test_invalid_ids_are_refused_before_anything_is_sent() -> None:
    store = GCSProfileStore(BUCKET)
    with pytest.raises(BadRequest):
        await store.list_samples("../x")
    with pytest.raises(BadRequest):
        await store.put("u", "a/b", b"")
    assert store.threads == 0


async def test_anchors_are_loaded_and_revalidated_by_generation(store: GCSProfileStore) -> None:
    cache, audio_format = ProfileCache(), AudioFormat(16_000, 1)
    script = random_script(Random(1), 12.0, voices=(1,))
    wav = write_wav(WavAudio(16_000, 1, synthesise(script, 16_000)))
    await store.put("u", None, wav)
    (anchor,) = (await load_anchors(store, cache, "u", audio_format, AnchorLimits())).anchors
    assert anchor.identity == USER
    assert anchor.pcm in wav

    await store.put("u", None, b"broken")
    loaded = await load_anchors(store, cache, "u", audio_format, AnchorLimits())
    assert loaded.anchors == ()
    assert len(loaded.problems) == 1


async def test_a_bucket_that_is_not_there_is_unavailable_not_empty(emulator: None) -> None:
    store = GCSProfileStore("nowhere")
    with pytest.raises(StoreUnavailable, match="HTTP 404"):
        await store.list_samples("u")
    with pytest.raises(StoreUnavailable, match="HTTP 404"):
        await store.put("u", None, b"mine")
    await store.aclose()


async def test_a_name_that_can_be_no_bucket_is_unavailable(emulator: None) -> None:
    store = GCSProfileStore("_profiles")
    with pytest.raises(StoreUnavailable, match="ValueError"):
        await store.list_samples("u")
    await store.aclose()


async def test_no_thread_is_started_behind_the_nurserys_back(store: GCSProfileStore) -> None:
    started: list[str] = []
    begin = threading.Thread.start

    def record(thread: threading.Thread) -> None:
        started.append(thread.name)
        begin(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", record)
        sample = await store.put("u", None, b"mine")
        await store.list_samples("u")
        await store.read(sample)
        await store.delete(sample)
    assert [name for name in started if not name.startswith("Trio thread")] == []


def test_the_library_is_not_imported_before_a_bucket_is_used() -> None:
    program = (
        "import sys, pathlib, trio\n"
        "from omi_rt.profiles.commands import open_store\n"
        "async def open_each():\n"
        "    async with open_store('bucket', pathlib.Path()), open_store(None, pathlib.Path()):\n"
        "        pass\n"
        "trio.run(open_each)\n"
        "sys.exit('google.cloud.storage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
