"""Speakers keep their numbers when the provider's line is lost, from the first word that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.errors import ProviderClosed
from omi_rt.core.lead_in import VoiceClips
from omi_rt.core.short_lead_in import SHORT_SECONDS, ShortLeadIn, make_short_lead_in
from omi_rt.core.votes import Vote
from omi_rt.fake import FaultScript, Options, Script, synthesise
from omi_rt.fake.faults import Close, Drop, Refuse, Silence
from omi_rt.fake.finals import FINALIZE_ANSWERS
from omi_rt.fake.labelling import Labelling
from omi_rt.fake.speech import utterance
from tests.harness import (
    RATE,
    Device,
    assert_whole,
    listening_server,
    play,
)
from tests.test_early import MONO, STEREO, recorded, spoken
from tests.test_early import RATE as CLOCK
from tests.test_identities import ANNA, BEN, CARL, STRANGER, USER, conversation, stored, voices_in
from tests.test_recovery import DROPPED, closed, failed, make_recovery

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omi_rt.fake.finals import FinalizeAnswer


# What it holds.


def make(*spans: tuple[int, float, float]) -> tuple[VoiceClips, ShortLeadIn | None]:
    """The short lead-in after everybody has spoken for a while: number, start and end in seconds."""
    voices, backlog = VoiceClips(MONO), recorded(60)
    for number, start, end in spans:
        voices.hear([(number, spoken(start, end))], backlog)
    return voices, make_short_lead_in(voices, MONO)


def voices_and_seconds(lead_in: ShortLeadIn) -> list[tuple[Any, float]]:
    return [
        (None if part.anchor is None else lead_in.whose[part.anchor], len(part.payload) / 2 / CLOCK)
        for part in lead_in.parts()
    ]


def test_it_holds_two_seconds_of_everybody_those_heard_last_first() -> None:
    _, lead_in = make((0, 1.0, 2.0), (0, 2.0, 3.2), (0, 3.2, 4.4), (1, 5.0, 6.5))
    assert lead_in is not None
    assert lead_in.seconds == 4.5
    assert voices_and_seconds(lead_in) == [
        (1, 1.5),
        (None, 0.5),
        (0, 0.7),
        (None, 0.1),
        (0, 1.2),
        (None, 0.5),
    ]


def test_three_voices_share_its_room_and_four_have_none() -> None:
    three = [(n, 4.0 * n, 4.0 * n + 1.2) for n in range(3)]
    three += [(n, 4.0 * n + 1.2, 4.0 * n + 2.4) for n in range(3)]
    _, lead_in = make(*three)
    assert lead_in is not None
    assert lead_in.seconds == SHORT_SECONDS
    assert lead_in.whose == [2, 1, 0]
    assert make(*three, (3, 20.0, 21.5))[1] is None


def test_who_could_win_no_label_is_left_out() -> None:
    assert make((0, 0.0, 1.3))[1] is None
    _, lead_in = make((0, 0.0, 1.3), (1, 5.0, 6.4))
    assert lead_in is not None
    assert lead_in.whose == [1]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.05, 3.0), st.floats(0.0, 1.0)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([MONO, STEREO]),
)
def test_it_is_short_and_each_part_is_what_was_said_at_its_place(
    turns: list[tuple[int, float, float]], audio_format: Any
) -> None:
    voices, backlog, at = VoiceClips(audio_format), recorded(130, audio_format), 0.0
    for number, seconds, pause in turns:
        voices.hear([(number, spoken(at, at + seconds))], backlog)
        at += seconds + pause
    lead_in = make_short_lead_in(voices, audio_format)
    if lead_in is None:
        assert len(voices.recognisable) in {0, 4}
        return
    assert lead_in.seconds <= SHORT_SECONDS
    assert set(lead_in.whose) == set(voices.recognisable)
    total = 0
    for part in lead_in.parts():
        total += audio_format.samples_in(part.payload)
        if part.said_at is not None:
            samples = audio_format.samples_in(part.payload)
            said = backlog.read(part.said_at.position, samples)
            assert said is not None
            own = audio_format.one_channel(said.payload, part.said_at.channel)
            assert part.payload == audio_format.on_all_channels(own)
    assert lead_in.seconds == audio_format.seconds(total)
    assert list(lead_in.parts()) == list(lead_in.tail()) == []


def test_the_recognised_share_counts_each_voice_on_each_channel_without_contested_labels() -> None:
    lead_in = ShortLeadIn(STEREO, [], [0, 1])
    votes = [Vote(0, 0, {}, (0, 5)), Vote(1, 0, {}, (0, 6)), Vote(0, 1, {}, (1, 2))]
    votes.append(Vote(1, 1, {}, None))
    assert lead_in.recognised(votes, set(), 2) == 0.75
    assert lead_in.recognised(votes, {(0, 5)}, 2) == 0.5
    assert lead_in.recognised([], set(), 2) == 0.0


# When there is one.


def test_a_session_waits_for_two_that_were_lost_and_for_no_third() -> None:
    recovery = make_recovery()
    allowed = []
    for progressed in (True, False, False, False, True):
        recovery.after(failed(DROPPED, has_progressed=progressed))
        allowed.append(recovery.may_lead_in)
    assert allowed == [True, True, False, False, True]


def test_failed_dials_change_nothing() -> None:
    recovery = make_recovery()
    recovery.after(failed(DROPPED, has_progressed=True))
    for _ in range(5):
        error = ProviderClosed(1006, "connection lost", retryable=True)
        recovery.after(closed(was_open=False, error=error))
    assert recovery.may_lead_in


def test_a_provider_whose_finals_have_no_times_hears_none() -> None:
    recovery = make_recovery()
    recovery.after(failed(DROPPED, has_progressed=True, lacks_times=True))
    recovery.after(failed(DROPPED, has_progressed=True))
    assert not recovery.may_lead_in


# Whole sessions.


def numbers_of(device: Device, script: Script) -> dict[int, set[int]]:
    """The numbers under which each voice was told, without any correction."""
    numbers: dict[int, set[int]] = {}
    for voice, segment in voices_in(device, script):
        numbers.setdefault(voice, set()).add(segment["speaker_id"])
    return numbers


def dropped(*after_audio: float) -> FaultScript:
    return FaultScript.of(*[[Drop(after_audio=seconds)] for seconds in after_audio])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("voices", [(STRANGER,), (STRANGER, ANNA), (STRANGER, ANNA, BEN)])
async def test_everybody_keeps_the_number_at_once_on_one_connection(
    autojump_clock: MockClock, voices: tuple[int, ...], seed: int
) -> None:
    script = conversation(voices, 80.0)
    async with (
        listening_server(
            profiles=stored(user=False), faults=dropped(31.0, 30.0), options=Options(seed=seed)
        ) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script)
        assert len(fake.connections) == 3
    assert_whole(device, script)
    assert numbers_of(device, script) == {voice: {n} for n, voice in enumerate(voices)}
    assert device.events("speakers_merged") == []
    assert 0.0 < ended["sent"]["lead_in"] <= 2 * SHORT_SECONDS
    # The silence between the voices is no lead-in of its own, but it is counted as such.
    assert ended["sent"]["filler"] == 0.0


async def test_live_words_wait_for_it_by_no_more_than_it_takes(autojump_clock: MockClock) -> None:
    async def delays(**more: Any) -> list[float]:
        script = conversation([STRANGER, ANNA], 90.0)
        found: list[float] = []
        async with (
            listening_server(faults=dropped(40.0), **more) as (world, _fake),
            world.device() as device,
        ):
            began, seen = trio.current_time(), 0

            def look() -> bool:
                nonlocal seen
                now = trio.current_time() - began
                found.extend(now - segment["end"] for segment in device.segments[seen:])
                seen = len(device.segments)
                return device.closed is not None

            async with trio.open_nursery() as nursery:
                nursery.start_soon(device.until, look)
                await play(device, script)
        assert_whole(device, script)
        return found

    plain, with_lead_in = await delays(), await delays(profiles=stored(user=False))
    assert max(with_lead_in) <= max(plain) + (SHORT_SECONDS - 2.0) / 1.25 + 0.2
    # After that the session catches up, and is as before.
    assert with_lead_in[-1] == pytest.approx(plain[-1], abs=0.1)


async def test_four_voices_are_heard_again_in_the_background(autojump_clock: MockClock) -> None:
    script = conversation([STRANGER, ANNA, BEN, CARL], 160.0)
    async with (
        listening_server(profiles=stored(user=False), faults=dropped(50.0)) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        assert len(fake.connections) >= 3
    assert_whole(device, script)
    last = {v: s["speaker_id"] for v, s in voices_in(device, script) if s["start"] > 120.0}
    assert last == {STRANGER: 0, ANNA: 1, BEN: 2, CARL: 3}


@pytest.mark.parametrize("seed", range(3))
async def test_who_is_known_stays_known_and_a_stored_voice_is_still_recognised_later(
    autojump_clock: MockClock, seed: int
) -> None:
    first = conversation([USER, STRANGER], 70.0)
    later = [
        type(word)(word.text, word.voice, word.start + 70.0)
        for word in conversation([ANNA, USER, STRANGER], 70.0).words
    ]
    script = Script([*first.words, *later], 140.0)
    faults = FaultScript.of([], [Close(code=1011, after_audio=60.0)])
    async with (
        listening_server(
            profiles=stored(people={"anna": ANNA}), faults=faults, options=Options(seed=seed)
        ) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        assert fake.connections[1].sent_code == 1011
    assert_whole(device, script)
    for voice, segment in voices_in(device, script):
        if segment["start"] > 30.0 and voice != ANNA:
            assert segment["is_user"] == (voice == USER)
        if segment["start"] > 105.0:
            assert segment["person_id"] == ("anna" if voice == ANNA else None)


@pytest.mark.parametrize("late", [None, 0, 1], ids=["neither-late", "left-late", "right-late"])
@pytest.mark.parametrize("channel", [0, 1])
async def test_on_two_channels_each_keeps_its_speakers(
    autojump_clock: MockClock, channel: int, late: int | None
) -> None:
    """Though one channel of the new connection may answer later than the other."""
    later = [] if late is None else [Silence(seconds=10.0, channel=late)]
    left = conversation([STRANGER, ANNA], 60.0)
    right = conversation([BEN], 60.0, "ulmo veska wido xelo yarrow zubin")
    words = [*left.words, *(type(w)(w.text, w.voice, w.start, 1) for w in right.words)]
    script = Script(words, 60.0, 2)
    faults = FaultScript.of([Drop(after_audio=30.0)], later)
    async with (
        listening_server(profiles=stored(user=False), faults=faults) as (world, fake),
        world.device(channels=2) as device,
    ):
        await play(device, script)
        assert len(fake.connections) == 2
    assert_whole(device, script)
    numbers: dict[int, set[int]] = {}
    for segment in device.segments:
        if segment["channel"] == channel:
            said = script.on_channel(channel)
            word = min(said, key=lambda each: abs(each.start - segment["start"]))
            numbers.setdefault(word.voice, set()).add(segment["speaker_id"])
    assert all(len(found) == 1 for found in numbers.values()), numbers


# A provider that it does not help loses nothing by it.


@pytest.mark.parametrize("finalize", FINALIZE_ANSWERS)
async def test_whatever_finalize_brings_every_word_comes_once(
    autojump_clock: MockClock, finalize: FinalizeAnswer
) -> None:
    script = conversation([STRANGER, ANNA], 80.0)
    async with (
        listening_server(
            profiles=stored(user=False),
            faults=dropped(31.0, 20.0),
            options=Options(finalize=finalize),
        ) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script)
    assert_whole(device, script)
    assert numbers_of(device, script) == {STRANGER: {0}, ANNA: {1}}


async def test_where_everybody_gets_one_label_then_no_word_is_lost_and_nobody_takes_a_number(
    autojump_clock: MockClock,
) -> None:
    script = conversation([STRANGER, ANNA], 80.0)
    options = Options(labellings=(Labelling(), Labelling.one_label()))
    async with (
        listening_server(
            profiles=stored(user=False), faults=dropped(31.0, 20.0), options=options
        ) as (world, _fake),
        world.device() as device,
    ):
        ended = await play(device, script)
    assert_whole(device, script)
    after = {s["speaker_id"] for _, s in voices_in(device, script) if s["start"] > 35.0}
    assert after.isdisjoint({0, 1})
    # The second redial has none: the first has shown that it is of no use here.
    assert ended["sent"]["lead_in"] < SHORT_SECONDS + 2 * 8.0


async def test_where_nobody_gets_a_label_it_is_tried_once(autojump_clock: MockClock) -> None:
    script = conversation([STRANGER], 80.0)
    async with (
        listening_server(
            profiles=stored(user=False),
            faults=FaultScript.of([Drop(after_audio=31.0)], [Drop(after_audio=20.0)]),
            deepgram_options={"diarize": ("false",)},
        ) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        _, second, relabelled, third, *_ = fake.connections
        assert (second.texts["Finalize"], relabelled.texts["Finalize"]) == (1, 1)
        assert third.texts["Finalize"] == 0
    assert_whole(device, script)


async def test_a_line_that_is_cut_within_it_again_and_again_gets_on(
    autojump_clock: MockClock,
) -> None:
    script = conversation([STRANGER, ANNA], 80.0)
    async with (
        listening_server(profiles=stored(user=False), faults=dropped(31.0, *[5.5] * 12)) as (
            world,
            _fake,
        ),
        world.device() as device,
    ):
        ended = await play(device, script, within=400.0)
    assert_whole(device, script)
    assert ended["sent"]["lead_in"] < 80.0


async def test_what_a_session_sends_of_it_is_bounded(autojump_clock: MockClock) -> None:
    """30 s at once and 20 s a minute, of the sessions' seconds and those that it takes to catch up."""
    script = conversation([STRANGER, ANNA, BEN], 120.0, "amber bako celu dorin elfa", pause=0.4)
    async with (
        listening_server(profiles=stored(user=False), faults=dropped(30.0, *[12.0] * 40)) as (
            world,
            fake,
        ),
        world.device() as device,
    ):
        began = trio.current_time()
        ended = await play(device, script, within=400.0)
        most = 30.0 + (trio.current_time() - began) / 3.0
        assert len(fake.connections) >= 10
    assert_whole(device, script)
    assert 30.0 <= ended["sent"]["lead_in"] <= most


async def test_a_connection_that_answers_nothing_after_it_is_replaced(
    autojump_clock: MockClock,
) -> None:
    script = conversation([STRANGER, ANNA], 80.0)
    faults = FaultScript.of([Drop(after_audio=31.0)], [Silence(after_audio=1.0)])
    async with (
        listening_server(profiles=stored(user=False), faults=faults) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        assert len(fake.connections) == 3
    assert_whole(device, script)
    assert numbers_of(device, script) == {STRANGER: {0}, ANNA: {1}}


async def test_audio_that_ends_while_it_goes_up_is_not_lost(autojump_clock: MockClock) -> None:
    script = conversation([STRANGER, ANNA], 33.0)
    async with (
        listening_server(profiles=stored(user=False), faults=dropped(32.9)) as (world, fake),
        world.device() as device,
    ):
        await play(device, script)
        assert len(fake.connections) <= 2
    assert_whole(device, script)
    assert numbers_of(device, script) == {STRANGER: {0}, ANNA: {1}}


async def test_a_session_that_must_end_soon_does_without_it(autojump_clock: MockClock) -> None:
    script = conversation([STRANGER, ANNA], 40.0)
    pcm = synthesise(script, RATE)
    faults = FaultScript.of([Drop(after_audio=31.0)], [Refuse(status=503, retry_after=2.0)])
    async with (
        listening_server(profiles=stored(user=False), faults=faults) as (world, fake),
        world.device() as device,
    ):
        await device.stream_audio(pcm[: RATE * 2 * 32], RATE * 2)
        device.session.drain(8.0)
        await device.ended()
        assert len(fake.connections) == 3
    ended = device.event("session_ended")
    assert ended["lost"] == ended["sent"]["lead_in"] == 0.0


async def test_no_word_of_it_is_told_as_an_interim_and_it_answers_no_finalize(
    autojump_clock: MockClock,
) -> None:
    script = Script(
        [
            *utterance("amber bako celu dorin elfa fimo", STRANGER, 0.5),
            *utterance("garo hesta ilun jorek kamu lento", ANNA, 4.0),
            *utterance("mirva nolo opal pesto quano rilke", STRANGER, 12.0),
        ],
        20.0,
    )
    pcm = synthesise(script, RATE)
    cut = RATE * 2 * 10
    query = {"encoding": "linear16", "sample_rate": RATE, "interim_results": "true", "uid": "u1"}
    query |= {"diarize": "true"}
    async with (
        listening_server(profiles=stored(user=False), faults=dropped(9.5)) as (world, fake),
        world.client("/v1/listen", query) as client,
    ):
        await client.stream_audio(pcm[:cut], RATE * 2)
        client.send('{"type":"Finalize"}')
        await client.stream_audio(pcm[cut:], RATE * 2)
        client.send('{"type":"CloseStream"}')
        await client.ended()
        assert len(fake.connections) == 2
        assert fake.connections[1].texts["Finalize"] == 2, "the lead-in's, and the client's"
    results = client.events("Results")
    texts = [r["channel"]["alternatives"][0]["transcript"] for r in results if r["start"] > 9.0]
    assert set(" ".join(texts).lower().replace(".", "").split()) == {
        word.text for word in script.words if word.start > 9.0
    }
    assert sum(r["from_finalize"] for r in results) == 1
    numbers = {
        word["speaker"]
        for r in results
        if r["is_final"] and r["start"] > 9.0
        for word in r["channel"]["alternatives"][0]["words"]
    }
    assert numbers == {0}
