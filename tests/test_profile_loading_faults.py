"""Loading from stores that fail, are slow, or change meanwhile, on the virtual clock."""

from __future__ import annotations

import math
from random import Random

import pytest
import trio
import trio.testing

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.core.audio import AudioFormat
from omi_rt.core.errors import BadRequest
from omi_rt.core.voices import USER
from omi_rt.fake.speech import random_script, synthesise
from omi_rt.profiles.anchors import AnchorLimits
from omi_rt.profiles.cache import ProfileCache
from omi_rt.profiles.loading import LOAD_SECONDS, LoadedAnchors, load_anchors
from omi_rt.profiles.store import StoredSample, StoreUnavailable
from tests.memory_store import MemoryProfileStore

MONO = AudioFormat(16_000, 1)


def wav(voice: int) -> bytes:
    script = random_script(Random(voice), 12.0, voices=(voice,), longest_pause=0.3)
    return write_wav(WavAudio(16_000, 1, synthesise(script, 16_000)))


async def load(
    store: MemoryProfileStore, cache: ProfileCache | None = None, uid: str = "u"
) -> LoadedAnchors:
    return await load_anchors(
        store, ProfileCache() if cache is None else cache, uid, MONO, AnchorLimits()
    )


async def test_a_store_that_does_not_answer_is_given_5_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore(delay=math.inf)
    with pytest.raises(StoreUnavailable, match="over 5 s"):
        await load(store)
    assert trio.current_time() == LOAD_SECONDS


async def test_a_store_that_lists_but_does_not_read_is_given_5_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(1))
    store.delay = 3.0
    with pytest.raises(StoreUnavailable, match="over 5 s"):
        await load(store)
    assert trio.current_time() == LOAD_SECONDS


async def test_a_store_that_fails_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    failure = StoreUnavailable("bucket: HTTP 503")
    with pytest.raises(StoreUnavailable) as caught:
        await load(MemoryProfileStore(failure=failure))
    assert caught.value is failure
    assert trio.current_time() == 0


class SlowPeople(MemoryProfileStore):
    """Reads the user's profile at once and people's samples never."""

    async def read(self, sample: StoredSample) -> bytes | None:
        if not sample.identity.is_user:
            await trio.sleep_forever()
        return await super().read(sample)


async def test_what_was_read_in_time_is_used_and_the_rest_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SlowPeople()
    await store.put("u", None, wav(1))
    await store.put("u", "p", wav(2))
    loaded = await load(store)
    assert [anchor.identity for anchor in loaded.anchors] == [USER]
    assert loaded.problems == ("the sample of person p: the profile store took over 5 s",)
    assert not loaded.is_complete
    assert trio.current_time() == LOAD_SECONDS


class Replaced(MemoryProfileStore):
    """A writer that replaces the user's profile between the listing and the read."""

    async def list_samples(self, uid: str) -> list[StoredSample]:
        samples = await super().list_samples(uid)
        await self.put(uid, None, wav(6))
        return samples


async def test_a_profile_replaced_meanwhile_is_left_to_the_next_try(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, cache = Replaced(), ProfileCache()
    await store.put("u", None, wav(1))
    with pytest.raises(StoreUnavailable, match="replaced"):
        await load(store, cache)
    assert len(cache) == 0


async def test_reads_run_side_by_side(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryProfileStore()
    for index in range(5):
        await store.put("u", f"p{index}", wav(index))
    store.delay = 1.0
    assert (await load(store)).is_complete
    assert trio.current_time() == 2.0


async def test_cancelling_a_load_is_immediate(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await load(MemoryProfileStore(delay=math.inf))
    assert scope.cancelled_caught
    assert trio.current_time() == 1


async def test_an_invalid_uid_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(BadRequest):
        await load(MemoryProfileStore(), uid="../x")


async def test_neither_audio_nor_voices_show_in_a_repr(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(1))
    loaded = await load(store)
    assert loaded.anchors
    assert len(repr(loaded)) < 300
    assert len(repr(store)) < 300
