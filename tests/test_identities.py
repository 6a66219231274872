"""Whose words: profiles first, votes, switches, and speakers who stay the same people."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.deepgram.primer import NOT_HEARD, NOT_RECOGNISED
from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.faults import (
    Close,
    ConnectionPlan,
    Drop,
    Fault,
    IgnoreCloseStream,
    Late,
    Refuse,
    Silence,
)
from omi_rt.fake.speech import utterance
from omi_rt.profiles.service import Profiles
from omi_rt.profiles.store import StoreUnavailable, sample_name
from tests.harness import (
    LONG_MESSAGES,
    RATE,
    Device,
    assert_whole,
    listening_server,
    play,
    words_of,
)
from tests.memory_store import MemoryProfileStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio.testing import MockClock

    from omi_rt.fake.finals import FinalizeAnswer
    from omi_rt.fake.speech import SpokenWord

USER = 1
ANNA, BEN, CARL = 4, 6, 2
STRANGER = 7
TURN = "amber bako celu dorin elfa fimo garo hesta"


def voice_wav(voice: int, seconds: float = 12.0, rate: int = 16000) -> bytes:
    """A recording of one voice, as a person would store it."""
    words: list[SpokenWord] = []
    start = 0.5
    texts = ["lento mirva nolo opal pesto", "quano rilke sumi tarok ulmo", "veska wido xelo yarrow"]
    while start < seconds - 3.0:
        words += utterance(texts[len(words) % 3], voice, start)
        start = words[-1].end + 0.4
    script = Script(words, words[-1].end + 0.5)
    return write_wav(WavAudio(rate, 1, synthesise(script, rate)))


def stored(*, user: bool = True, people: Mapping[str, int] | None = None, **more: Any) -> Profiles:
    """A store in memory with the user's profile and people's samples."""
    store = MemoryProfileStore(**more)
    if user:
        store.put_nowait("u1", sample_name("u1", None), voice_wav(USER))
    for person_id, voice in (people or {}).items():
        store.put_nowait("u1", sample_name("u1", person_id), voice_wav(voice, 8.0))
    return Profiles(store, 10.0)


def conversation(
    voices: Sequence[int], seconds: float = 60.0, text: str = TURN, *, pause: float = 0.6
) -> Script:
    """The voices take turns, in this order, over and over."""
    words: list[SpokenWord] = []
    start, turn = 0.5, 0
    while start < seconds - 5.0:
        words += utterance(text, voices[turn % len(voices)], start)
        start = words[-1].end + pause
        turn += 1
    return Script(words, seconds)


def voices_in(device: Device, script: Script) -> list[tuple[int, dict[str, Any]]]:
    """Each segment with the voice that spoke it, by the time of its first word."""
    found = []
    for segment in device.segments:
        word = min(script.words, key=lambda each: abs(each.start - segment["start"]))
        assert abs(word.start - segment["start"]) < 0.05
        found.append((word.voice, segment))
    return found


def known_after(ended: dict[str, Any]) -> float:
    assert ended["identities_known_from"] is not None
    return float(ended["identities_known_from"])


def merged_number(device: Device, number: int) -> int:
    """What a number is called after all merges that were told."""
    for event in device.events("speakers_merged"):
        if event["from"] == number:
            number = event["into"]
    return number


def assert_identities(
    device: Device, script: Script, ended: dict[str, Any], known: Mapping[int, str | None]
) -> None:
    """After the switch every known voice is known, and no other; numbers are one to a voice."""
    since = known_after(ended)
    numbers: dict[int, set[int]] = {}
    for voice, segment in voices_in(device, script):
        numbers.setdefault(voice, set()).add(merged_number(device, segment["speaker_id"]))
        if segment["start"] >= since:
            assert segment["is_user"] == (voice in known and known[voice] is None)
            assert segment["person_id"] == known.get(voice)
    assert all(len(each) == 1 for each in numbers.values()), numbers
    assert len({frozenset(each) for each in numbers.values()}) == len(numbers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "voices",
    [(USER, STRANGER), (STRANGER, USER), (USER,), (STRANGER,), (STRANGER, ANNA, USER)],
    ids=["user-first", "user-second", "user-alone", "never", "user-third"],
)
async def test_the_user_is_known_after_the_switch_and_nobody_else_is(
    autojump_clock: MockClock, voices: tuple[int, ...], seed: int
) -> None:
    script = conversation(voices)
    async with (
        listening_server(profiles=stored(), options=Options(seed=seed)) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert known_after(ended) < 25
    # Whoever began to speak while the profile went up is in the first lead-in.
    assert len(fake.connections) == 2
    assert ended["sent"]["lead_in"] > 5.0
    # What goes up again goes up because of the switch: nothing was dropped.
    assert (ended["sent"]["replay"], 0.0 < ended["sent"]["overlap"] < 5.0) == (0.0, True)


@pytest.mark.parametrize("seconds", [6.0, 12.0, 25.0, 40.0])
async def test_the_user_is_known_by_a_provider_whose_answers_are_steadily_late(
    autojump_clock: MockClock, seconds: float
) -> None:
    script = conversation([USER, STRANGER], 120.0)
    options = Options(lateness=(seconds, seconds))
    async with (
        listening_server(profiles=stored(), options=options) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script, within=300.0, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert known_after(ended) < 70


@pytest.mark.parametrize("seconds", [12.0, 20.0, 30.0, 35.0])
async def test_a_switch_waits_for_the_first_answer_of_a_connection_that_has_replaced_a_lost_one(
    autojump_clock: MockClock, seconds: float
) -> None:
    """A backlog of 60 s has no room for what is said while two connections in a row answer nothing."""
    script = conversation([USER, STRANGER], 160.0)
    options = Options(lateness=(seconds, seconds))
    faults = FaultScript.of([Drop(after_audio=seconds - 2.0)])
    async with (
        listening_server(profiles=stored(), options=options, faults=faults) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script, within=300.0, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})


@pytest.mark.parametrize("seconds", [75.0, 80.0, 90.0])
async def test_a_session_that_ends_soon_after_a_switch_waits_for_late_answers(
    autojump_clock: MockClock, seconds: float
) -> None:
    """The rest goes up for 33 s, and its answers come 40 s later."""
    script = conversation([USER, STRANGER], seconds)
    options = Options(lateness=(40.0, 40.0), finalize="never")
    async with (
        listening_server(profiles=stored(), options=options) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})


async def test_the_user_before_the_switch_only_is_told_by_a_correction(
    autojump_clock: MockClock,
) -> None:
    early, late = conversation([USER], 10.0), conversation([STRANGER], 50.0)
    shifted = [
        type(word)(word.text, word.voice, word.start + 10.0, word.channel) for word in late.words
    ]
    script = Script([*early.words, *shifted], 60.0)
    async with listening_server(profiles=stored()) as (world, _fake), world.device() as device:
        await play(device, script)
    assert_whole(device, script)
    (told,) = device.events("speaker_identified")
    ids = {s["id"] for voice, s in voices_in(device, script) if voice == USER}
    assert told == {
        "type": "speaker_identified",
        "speaker": "SPEAKER_00",
        "speaker_id": 0,
        "is_user": True,
        "person_id": None,
        "segment_ids": told["segment_ids"],
    }
    assert set(told["segment_ids"]) == ids


async def test_the_user_after_the_switch_only_is_known_from_the_first_word(
    autojump_clock: MockClock,
) -> None:
    quiet, late = conversation([STRANGER], 25.0), conversation([USER, STRANGER], 35.0)
    shifted = [
        type(word)(word.text, word.voice, word.start + 25.0, word.channel) for word in late.words
    ]
    script = Script([*quiet.words, *shifted], 60.0)
    async with listening_server(profiles=stored()) as (world, _fake), world.device() as device:
        ended = await play(device, script)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert device.events("speaker_identified") == []


@pytest.mark.parametrize("seed", range(3))
async def test_three_people_and_the_user_are_all_known(
    autojump_clock: MockClock, seed: int
) -> None:
    script = conversation([ANNA, USER, BEN, CARL, STRANGER], 90.0)
    profiles = stored(people={"anna": ANNA, "ben": BEN, "carl": CARL})
    async with (
        listening_server(profiles=profiles, options=Options(seed=seed)) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    known = {USER: None, ANNA: "anna", BEN: "ben", CARL: "carl"}
    assert_identities(device, script, ended, known)


async def test_no_word_waits_for_a_profile(autojump_clock: MockClock) -> None:
    script = conversation([USER, STRANGER], 15.0)
    times = []
    for profiles in (None, stored()):
        started = trio.current_time()
        async with (
            listening_server(profiles=profiles) as (world, _fake),
            world.device() as device,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(play, device, script)
            await device.until(lambda: device.segments)
            times.append(trio.current_time() - started)
    assert times[1] - times[0] <= 0.05


async def test_include_speech_profile_false_opens_no_second_connection(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER])
    faults = FaultScript.of([Drop(after_audio=20.0)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device(include_speech_profile="false") as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert len(fake.connections) == 2
    assert ended["sent"]["lead_in"] == 0.0
    assert not any(segment["is_user"] for segment in device.segments)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "faults",
    [
        [[Drop(after_audio=30.0)]],
        [[], [Drop(after_audio=5.0)]],
        [[], [Drop(after_audio=16.5)]],
        [[], [Drop(after_audio=20.0)]],
        [[Drop(after_audio=8.0)]],
        [[Drop(after_audio=14.0)], []],
        [[Drop(after_audio=6.0)], [], [Drop(after_audio=9.0)]],
        [[], [Close(code=1011, after_audio=40.0)], [], [Close(code=1011, after_audio=45.0)]],
    ],
    ids=[
        "after",
        "primed-during",
        "primed-at-its-end",
        "right-after-the-switch",
        "plain-during",
        "plain-late",
        "both",
        "twice-after",
    ],
)
async def test_drops_around_the_switch_cost_no_word_and_no_identity(
    autojump_clock: MockClock, faults: list[list[Fault]], seed: int
) -> None:
    script = conversation([STRANGER, USER, ANNA], 190.0)
    async with (
        listening_server(
            profiles=stored(people={"anna": ANNA}),
            faults=FaultScript.of(*faults),
            options=Options(seed=seed),
        ) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    last = [(voice, s) for voice, s in voices_in(device, script) if s["start"] > 160.0]
    assert {voice for voice, _ in last} == {STRANGER, USER, ANNA}
    for voice, segment in last:
        assert segment["is_user"] == (voice == USER)
        assert segment["person_id"] == ("anna" if voice == ANNA else None)
    early = {
        voice: merged_number(device, s["speaker_id"])
        for voice, s in reversed(voices_in(device, script))
    }
    assert {voice: merged_number(device, s["speaker_id"]) for voice, s in last} == early
    assert sorted(early.values()) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
async def test_without_a_profile_speakers_keep_their_numbers_over_reconnects(
    autojump_clock: MockClock, seed: int
) -> None:
    script = conversation([STRANGER, ANNA, BEN], 150.0)
    faults = FaultScript.of([Drop(after_audio=40.0)], [], [Drop(after_audio=60.0)])
    async with (
        listening_server(
            profiles=stored(user=False), faults=faults, options=Options(seed=seed)
        ) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    numbers: dict[int, set[int]] = {}
    for voice, segment in voices_in(device, script):
        numbers.setdefault(voice, set()).add(merged_number(device, segment["speaker_id"]))
    assert all(len(each) == 1 for each in numbers.values()), numbers
    told = [e for e in device.events("service_status") if e["status"] == "identities_unavailable"]
    assert [event["reason"] for event in told] == ["no speech profile is stored"]


async def test_a_lead_in_that_is_never_answered_is_given_up_soon_where_answers_come_at_once(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER], 60.0)
    faults = FaultScript((ConnectionPlan(()), ConnectionPlan((Silence(),))), ())
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        ended = device.event("session_ended")
        (_plain, primed) = fake.connections
    assert_whole(device, script)
    assert ended["identities_known_from"] is None
    assert primed.closed_at is not None
    # The lead-in takes 22 s, since its first 2 s go up at once.
    assert (ended["sent"]["lead_in"], primed.closed_at - primed.opened_at < 30.0) == (29.36, True)
    told = [e for e in device.events("service_status") if e["status"] == "identities_unavailable"]
    assert [each["reason"] for each in told] == [NOT_HEARD]


async def test_a_lead_in_that_was_not_answered_in_time_is_tried_again_after_growing_pauses(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER], 330.0)
    faults = FaultScript.of([], [Silence()], [Late(seconds=90.0)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script, message_seconds=LONG_MESSAGES)
        _plain, first, second, third = fake.connections
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert 270 < known_after(ended) < 310
    assert first.closed_at is not None
    assert second.closed_at is not None
    assert 60 <= second.opened_at - first.closed_at <= 72
    assert 120 <= third.opened_at - second.closed_at <= 144


@pytest.mark.parametrize("finalize", ["never", "speech", "last_word"])
async def test_the_user_is_known_where_a_finalize_in_silence_brings_nothing(
    autojump_clock: MockClock, finalize: FinalizeAnswer
) -> None:
    """Nobody speaks before the lead-in is up, so that it ends with a stored voice and silence."""
    said = conversation([USER, STRANGER], 60.0).words
    script = Script([evolve(word, start=word.start + 20.0) for word in said], 80.0)
    async with (
        listening_server(profiles=stored(), options=Options(finalize=finalize)) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script)
        assert len(fake.connections) == 2
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert known_after(ended) < 25


async def test_profile_first_lets_the_audio_follow_the_lead_in_though_nothing_is_answered_yet(
    autojump_clock: MockClock,
) -> None:
    script = conversation([STRANGER, USER])
    faults = FaultScript((), (Silence(seconds=45.0),))
    async with (
        listening_server(profiles=stored(), profile_mode="first", faults=faults) as (world, fake),
        world.device() as device,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.stream_audio, synthesise(script, RATE), RATE * 2)
            # The lead-in takes 11 s.
            await trio.sleep(13.0)
            assert fake.connections[0].audio_seconds > 15.8
        ended = await device.finish(120)
    assert_whole(device, script)
    assert len(fake.connections) == 1
    assert ended["sent"]["lead_in"] == 15.8
    assert known_after(ended) == 0.0
    assert_identities(device, script, ended, {USER: None})


@pytest.mark.parametrize("seconds", [12.0, 25.0, 40.0])
async def test_profile_first_knows_the_user_however_late_the_answers_are(
    autojump_clock: MockClock, seconds: float
) -> None:
    script = conversation([STRANGER, USER, ANNA], 90.0)
    async with (
        listening_server(
            profiles=stored(), profile_mode="first", options=Options(lateness=(seconds, seconds))
        ) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script, within=300.0, message_seconds=LONG_MESSAGES)
        assert len(fake.connections) == 1
    assert_whole(device, script)
    assert known_after(ended) == 0.0
    assert_identities(device, script, ended, {USER: None})


async def test_profile_first_knows_the_user_on_each_channel_though_one_answers_later(
    autojump_clock: MockClock,
) -> None:
    left = conversation([STRANGER], 60.0)
    right = conversation([USER, ANNA], 60.0, "ulmo veska wido xelo yarrow zubin")
    words = [*left.words, *(evolve(word, channel=1) for word in right.words)]
    script = Script(words, 60.0, 2)
    faults = FaultScript.of([Silence(seconds=30.0, channel=1)])
    async with (
        listening_server(profiles=stored(), profile_mode="first", faults=faults) as (world, fake),
        world.device(channels=2) as device,
    ):
        ended = await play(device, script)
        assert len(fake.connections) == 1
    assert_whole(device, script)
    assert known_after(ended) == 0.0
    for segment in device.segments:
        said = script.on_channel(segment["channel"])
        word = min(said, key=lambda each: abs(each.start - segment["start"]))
        assert segment["is_user"] == (word.voice == USER)


async def test_profile_first_does_without_where_the_line_is_cut_too_often(
    autojump_clock: MockClock,
) -> None:
    """Two whole lead-ins are all that is allowed at first; whoever speaks is known in the end."""
    script = conversation([STRANGER, USER], 150.0)
    faults = FaultScript.of(*[[Drop(after_audio=15.0)] for _ in range(5)])
    async with (
        listening_server(profiles=stored(), profile_mode="first", faults=faults) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script, message_seconds=LONG_MESSAGES)
        opened = [each.opened_at - fake.connections[0].opened_at for each in fake.connections]
    assert_whole(device, script)
    assert opened[3] < 40.0
    assert ended["sent"]["lead_in"] <= 30.0 + 50.0 + 15.0
    last = [(voice, s) for voice, s in voices_in(device, script) if s["start"] > 120.0]
    assert {voice for voice, _ in last} == {STRANGER, USER}
    assert all(segment["is_user"] == (voice == USER) for voice, segment in last)


async def test_a_session_of_profile_first_that_must_end_soon_does_without_the_rest_of_the_lead_in(
    autojump_clock: MockClock,
) -> None:
    script = Script(utterance(TURN, USER, 0.5), 4.0)
    async with (
        listening_server(profiles=stored(), profile_mode="first") as (world, _fake),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(script, RATE), RATE * 2)
        device.session.drain(6.0)
        await device.ended()
    assert words_of(device.segments) == script.transcript()
    assert device.event("session_ended")["lost"] == 0.0


async def test_profile_first_holds_the_audio_until_the_lead_in_is_heard(
    autojump_clock: MockClock,
) -> None:
    script = conversation([STRANGER, USER])
    async with (
        listening_server(profiles=stored(), profile_mode="first") as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert known_after(ended) == 0.0
    assert_identities(device, script, ended, {USER: None})
    assert len(fake.connections) == 1
    assert ended["sent"]["overlap"] == ended["sent"]["replay"] == 0.0


# Failure is harmless


@pytest.mark.parametrize(
    ("profiles", "reason"),
    [
        (lambda: stored(user=False), "no speech profile is stored"),
        (lambda: stored(delay=30.0), "over 5 s"),
        (lambda: stored(failure=StoreUnavailable("the bucket burns")), "the bucket burns"),
    ],
    ids=["none", "slow", "down"],
)
async def test_a_store_that_gives_nothing_is_told_once_and_tried_again(
    autojump_clock: MockClock, profiles: Any, reason: str
) -> None:
    script = conversation([USER, STRANGER], 180.0)
    service = profiles()
    async with listening_server(profiles=service) as (world, fake), world.device() as device:
        ended = await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    assert len(fake.connections) == 1
    told = [e for e in device.events("service_status") if e["status"] == "identities_unavailable"]
    assert len(told) == 1
    assert reason in told[0]["reason"]
    failures = world.metrics.profile_failures._value.get()
    assert failures == (0 if reason == "no speech profile is stored" else 1)
    assert service.store.listings >= 3
    assert ended["identities_known_from"] is None


async def test_a_broken_wav_is_told_and_harmless(autojump_clock: MockClock) -> None:
    store = MemoryProfileStore()
    store.put_nowait("u1", sample_name("u1", None), b"RIFF, but not quite")
    script = conversation([USER, STRANGER], 30.0)
    async with (
        listening_server(profiles=Profiles(store, 10.0)) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script)
    assert_whole(device, script)
    assert "identities_unavailable" in device.statuses()


async def test_a_second_connection_that_is_refused_is_tried_again_after_a_minute(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER], 120.0)
    faults = FaultScript.of([], [Refuse(status=429)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert_identities(device, script, ended, {USER: None})
    assert 60 < known_after(ended) < 100
    assert len(fake.connections) == 3
    assert "stt_degraded" not in device.statuses()


async def test_cuts_every_few_seconds_do_not_make_lead_ins_most_of_what_is_sent(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER, ANNA], 120.0)
    faults = FaultScript.of(*[[Drop(after_audio=6.0)] for _ in range(60)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    # 30 s at once, 20 s a minute, and what the last one took more.
    assert 30.0 <= ended["sent"]["lead_in"] <= 30.0 + 40.0 + 15.0


@pytest.mark.parametrize("count", [1, 2])
async def test_primed_connections_give_way_to_a_session_that_is_refused(
    autojump_clock: MockClock, count: int
) -> None:
    """There is room for the sessions' own connections, and for one more."""
    script = conversation([USER, STRANGER], 60.0)
    ended = []
    async with listening_server(profiles=stored(), options=Options(concurrency=count + 1)) as (
        world,
        fake,
    ):

        async def run(delay: float) -> None:
            await trio.sleep(delay)
            async with world.device() as device:
                began = trio.current_time()
                async with trio.open_nursery() as nursery:

                    async def look() -> None:
                        await device.until(lambda: device.segments)
                        assert trio.current_time() - began < 8.0

                    nursery.start_soon(look)
                    ended.append(await play(device, script))
                assert_whole(device, script)

        async with trio.open_nursery() as nursery:
            for number in range(count + 1):
                nursery.start_soon(run, 3.0 * number)
    assert len(ended) == count + 1
    refused = [record for record in fake.connections if record.status == 429]
    assert 1 <= len(refused) <= 3


async def test_the_setting_bounds_the_primed_connections_of_all_sessions(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER], 90.0)
    most = 0
    async with listening_server(profiles=stored(), max_primed=1) as (world, fake):

        async def run() -> None:
            async with world.device() as device:
                ended = await play(device, script)
            assert_whole(device, script)
            assert_identities(device, script, ended, {USER: None})

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)
            for _ in range(89):
                await trio.sleep(1.0)
                most = max(most, sum(record.is_open for record in fake.connections))
    assert most == 4


async def test_a_primed_connection_soon_replaces_a_first_one_that_answers_nothing(
    autojump_clock: MockClock,
) -> None:
    script = conversation([USER, STRANGER], 60.0)
    faults = FaultScript.of([Silence()])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(play, device, script)
        await device.until(lambda: device.segments, within=25.0)
        await device.until(lambda: device.events("session_ended"))
        assert len(fake.connections) == 2
    assert_whole(device, script)
    assert_identities(device, script, device.event("session_ended"), {USER: None})


async def test_a_lead_in_that_is_never_answered_brings_no_switch(autojump_clock: MockClock) -> None:
    script = conversation([USER, STRANGER], 50.0)
    faults = FaultScript.of([], [Silence()])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert ended["identities_known_from"] is None
    assert ended["sent"]["overlap"] == 0.0


async def test_a_connection_that_heard_the_lead_in_on_one_channel_only_does_not_serve(
    autojump_clock: MockClock,
) -> None:
    left, right = conversation([USER, STRANGER], 60.0), conversation([ANNA], 60.0)
    words = [*left.words, *(evolve(word, channel=1) for word in right.words)]
    script = Script(words, 60.0, 2)
    faults = FaultScript.of([], [Silence(channel=1)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, _fake),
        world.device(channels=2) as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert ended["identities_known_from"] is None
    assert ended["sent"]["overlap"] == 0.0


async def test_two_channels_have_speakers_of_their_own_and_one_user(
    autojump_clock: MockClock,
) -> None:
    left = conversation([USER, STRANGER], 60.0)
    right = conversation([ANNA], 60.0, "ulmo veska wido xelo yarrow zubin")
    words = [*left.words, *(type(w)(w.text, w.voice, w.start, 1) for w in right.words)]
    script = Script(words, 60.0, 2)
    async with (
        listening_server(profiles=stored(people={"anna": ANNA})) as (world, _fake),
        world.device(channels=2) as device,
    ):
        ended = await play(device, script)
    for channel in range(2):
        assert words_of(device.segments, channel) == script.transcript(channel)
    since = known_after(ended)
    for segment in device.segments:
        if segment["start"] >= since:
            expected = list(script.on_channel(segment["channel"]))
            word = min(expected, key=lambda each: abs(each.start - segment["start"]))
            assert segment["is_user"] == (word.voice == USER)
            assert segment["person_id"] == ("anna" if word.voice == ANNA else None)


@pytest.mark.parametrize("seed", range(6))
async def test_a_random_conversation_with_drops_keeps_words_and_people(
    autojump_clock: MockClock, seed: int
) -> None:
    random = Random(seed)
    script = random_script(random, 120.0, voices=(USER, ANNA, STRANGER))
    faults = FaultScript.of(*[[Drop(after_audio=random.uniform(5.0, 60.0))] for _ in range(4)])
    async with (
        listening_server(
            profiles=stored(people={"anna": ANNA}), faults=faults, options=Options(seed=seed)
        ) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script, message_seconds=LONG_MESSAGES)
    assert_whole(device, script)
    for voice, segment in voices_in(device, script):
        assert not segment["is_user"] or voice == USER
        assert segment["person_id"] is None or voice == ANNA


async def test_audio_that_ends_during_the_lead_in_of_profile_first_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    script = Script(utterance(TURN, USER, 0.5), 4.0)
    async with (
        listening_server(profiles=stored(), profile_mode="first") as (world, _fake),
        world.device() as device,
    ):
        await play(device, script)
    assert_whole(device, script)


@pytest.mark.parametrize("mode", ["switch", "first"])
async def test_without_diarization_nobody_is_taken_for_the_user(
    autojump_clock: MockClock, mode: str
) -> None:
    script = conversation([STRANGER], 60.0)
    options = {"diarize": ("false",)}
    async with (
        listening_server(profiles=stored(), deepgram_options=options, profile_mode=mode) as (
            world,
            _fake,
        ),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    assert not any(segment["is_user"] for segment in device.segments)
    assert ended["identities_known_from"] is None
    told = [e for e in device.events("service_status") if e["status"] == "identities_unavailable"]
    assert [event["reason"] for event in told] == [NOT_RECOGNISED]


async def test_a_drop_while_priming_is_answered_by_that_priming(autojump_clock: MockClock) -> None:
    script = conversation([USER], 60.0)
    faults = FaultScript.of([Drop(after_audio=6.0)])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
    assert_whole(device, script)
    assert len(fake.connections) <= 4


async def test_a_connection_that_is_being_primed_is_dropped_when_the_audio_ends(
    autojump_clock: MockClock,
) -> None:
    """Its lead-in would cost, and nobody is left to recognise."""
    faults = FaultScript((), (IgnoreCloseStream(results=True),))
    async with listening_server(profiles=stored(), faults=faults) as (world, fake):
        async with world.device() as device:
            script = conversation([USER], 8.0)
            await device.stream_audio(synthesise(script, RATE), RATE * 2)
            asked_at = trio.current_time()
            ended = await device.finish()
            assert trio.current_time() - asked_at > 9.0
        plain, primed = fake.connections
        assert primed.closed_at is not None
        assert primed.closed_at - asked_at < 1.0
        assert plain.close_stream_at == pytest.approx(asked_at, abs=0.1)
    assert ended["sent"]["lead_in"] < 12.0
    assert words_of(device.segments) == script.transcript()


async def test_a_switch_ends_the_wait_for_the_next_dial(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Drop(after_audio=6.0)], [], [Refuse(status=503, retry_after=30)])
    script = conversation([USER, STRANGER])
    async with (
        listening_server(profiles=stored(), faults=faults) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        plain, primed, refused = fake.connections
        assert plain.closed_at is not None
        assert refused.opened_at == pytest.approx(plain.closed_at, abs=0.1)
        assert primed.close_stream_at is not None
    assert_whole(device, script)
    assert device.statuses() == ["initiating", "ready", "stt_degraded", "stt_recovered"]
