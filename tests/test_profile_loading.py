"""Loading the stored voices of a session, on the virtual clock."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.core.audio import AudioFormat
from omi_rt.core.lead_in import MIN_ANCHOR_SECONDS
from omi_rt.core.voices import USER, Identity
from omi_rt.fake.speech import Script, random_script, synthesise, utterance
from omi_rt.profiles.anchors import AnchorLimits, fit_anchors
from omi_rt.profiles.cache import ProfileCache
from omi_rt.profiles.loading import LoadedAnchors, load_anchors
from omi_rt.profiles.store import MAX_SAMPLE_BYTES
from tests.memory_store import MemoryProfileStore

if TYPE_CHECKING:
    import trio.testing

MONO = AudioFormat(16_000, 1)
LIMITS = AnchorLimits()


def wav(voice: int, seconds: float = 20.0, rate: int = 16_000, channels: int = 1) -> bytes:
    script = random_script(
        Random(voice), seconds, voices=(voice,), channels=channels, longest_pause=0.3
    )
    return write_wav(WavAudio(rate, channels, synthesise(script, rate)))


async def load(
    store: MemoryProfileStore,
    cache: ProfileCache | None = None,
    limits: AnchorLimits = LIMITS,
    audio_format: AudioFormat = MONO,
) -> LoadedAnchors:
    return await load_anchors(
        store, ProfileCache() if cache is None else cache, "u", audio_format, limits
    )


async def test_without_anything_stored_there_are_no_anchors_and_no_problems(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await load(MemoryProfileStore()) == LoadedAnchors((), (), is_complete=True)


async def test_the_user_comes_first_then_the_most_recently_changed_people(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    for index, person_id in enumerate(["early", "middle", "late"]):
        await store.put("u", person_id, wav(index))
        if person_id == "early":
            await store.put("u", None, wav(7))
    await store.put("u", "early", wav(5))
    loaded = await load(store)
    assert [anchor.identity for anchor in loaded.anchors] == [
        USER,
        Identity("early"),
        Identity("late"),
        Identity("middle"),
    ]
    assert loaded.problems == ()
    assert loaded.is_complete


async def test_the_user_has_at_most_10_s_others_3_s_and_all_together_24_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(0))
    for index in range(12):
        await store.put("u", f"p{index}", wav(index % 8))
    anchors = (await load(store)).anchors
    assert 8.0 <= anchors[0].seconds <= 10.0
    assert all(2.0 <= anchor.seconds <= 3.0 for anchor in anchors[1:-1])
    assert anchors[-1].seconds <= 3.0
    assert all(anchor.seconds >= MIN_ANCHOR_SECONDS for anchor in anchors)
    total = sum(anchor.seconds for anchor in anchors)
    assert 24.0 - MIN_ANCHOR_SECONDS - 1.0 <= total <= 24.0


async def test_what_is_reserved_for_the_sessions_own_speakers_is_left_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(0))
    for index in range(8):
        await store.put("u", f"p{index}", wav(index))
    loaded = await load(store, limits=AnchorLimits(total_seconds=14.0))
    assert sum(anchor.seconds for anchor in loaded.anchors) <= 14.0
    assert [anchor.identity for anchor in loaded.anchors[:2]] == [USER, Identity("p7")]
    # The spare ones, and no more, were read besides those who could fit.
    assert store.reads == 1 + 2 + 2


@pytest.mark.parametrize("total", [0.0, MIN_ANCHOR_SECONDS - 0.1])
async def test_no_room_means_no_anchor(
    autojump_clock: trio.testing.MockClock, total: float
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(0))
    await store.put("u", "p", wav(1))
    loaded = await load(store, limits=AnchorLimits(total_seconds=total))
    assert loaded.anchors == ()


async def test_a_user_limit_of_zero_leaves_the_people(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(0))
    await store.put("u", "p", wav(1))
    loaded = await load(store, limits=AnchorLimits(user_seconds=0.0))
    assert [anchor.identity for anchor in loaded.anchors] == [Identity("p")]


async def test_a_profile_in_the_sessions_format_is_sent_sample_for_sample(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    file = wav(3)
    await store.put("u", None, file)
    (anchor,) = (await load(store)).anchors
    assert anchor.pcm in file
    assert anchor.samples == len(anchor.pcm) // 2
    assert anchor.seconds == anchor.samples / 16_000


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (48_000, 1)])
async def test_any_other_format_becomes_the_sessions(
    autojump_clock: trio.testing.MockClock, rate: int, channels: int
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, wav(1, rate=rate, channels=channels))
    session = AudioFormat(16_000, 2)
    (anchor,) = (await load(store, audio_format=session)).anchors
    samples = np.frombuffer(anchor.pcm, "<i2").reshape(-1, 2)
    assert len(samples) == anchor.samples
    assert 8.0 <= anchor.samples / 16_000 <= 10.0
    assert np.abs(samples).max() > 1_000


async def test_only_the_newest_sample_of_a_person_is_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    newest = wav(2)
    store.put_nowait("u", "u/people_profiles/p/old.wav", wav(1))
    store.put_nowait("u", "u/people_profiles/p/new.wav", newest)
    (anchor,) = (await load(store)).anchors
    assert anchor.pcm in newest
    assert store.reads == 1


async def test_a_broken_wav_is_skipped_and_told(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, b"RIFF but no more")
    await store.put("u", "mumbler", write_wav(WavAudio(16_000, 1, bytes(320_000))))
    await store.put("u", "p", wav(1))
    loaded = await load(store)
    assert [anchor.identity for anchor in loaded.anchors] == [Identity("p")]
    assert [problem.partition(":")[0] for problem in loaded.problems] == [
        "the user's profile",
        "the sample of person mumbler",
    ]
    assert loaded.is_complete


async def test_spare_people_take_the_place_of_broken_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    for index in range(6):
        await store.put("u", f"p{index}", wav(index))
    await store.put("u", "p5", b"")
    await store.put("u", "p4", b"")
    loaded = await load(store, limits=AnchorLimits(total_seconds=6.0))
    assert [anchor.identity.person_id for anchor in loaded.anchors] == ["p3", "p2"]


async def test_an_oversized_file_is_told_without_being_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryProfileStore()
    await store.put("u", None, bytes(MAX_SAMPLE_BYTES + 1))
    loaded = await load(store)
    assert loaded.anchors == ()
    assert len(loaded.problems) == 1
    assert store.reads == 0


def test_an_anchor_that_a_pause_leaves_too_short_is_left_out() -> None:
    words = [word for at in (0.0, 1.9) for word in utterance("amber bako celu dorin", 1, at)]
    stretch = WavAudio(16_000, 1, synthesise(Script(words, 3.0), 16_000))
    person = Identity("p")
    assert fit_anchors([(person, stretch)], AnchorLimits(person_seconds=1.6)) == []
    assert len(fit_anchors([(person, stretch)], AnchorLimits())) == 1


async def test_a_second_session_costs_one_listing(autojump_clock: trio.testing.MockClock) -> None:
    store, cache = MemoryProfileStore(), ProfileCache()
    await store.put("u", None, wav(1))
    await store.put("u", "broken", b"")
    first = await load(store, cache)
    assert await load(store, cache) == first
    assert (store.listings, store.reads) == (2, 2)


async def test_a_changed_profile_is_read_again_and_an_unchanged_one_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, cache = MemoryProfileStore(), ProfileCache()
    await store.put("u", None, wav(1))
    await store.put("u", "p", wav(2))
    await load(store, cache)
    replacement = wav(3)
    await store.put("u", None, replacement)
    loaded = await load(store, cache)
    assert store.reads == 3
    assert loaded.anchors[0].pcm in replacement


async def test_a_deleted_profile_is_used_no_more_and_leaves_the_cache(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store, cache = MemoryProfileStore(), ProfileCache()
    sample = await store.put("u", None, wav(1))
    await load(store, cache)
    assert len(cache) == 1
    await store.delete(sample)
    assert (await load(store, cache)).anchors == ()
    assert len(cache) == 0
