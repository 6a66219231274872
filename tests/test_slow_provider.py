"""A provider that is slow, silent or untidy, and healthy all the same: every word comes, once."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from attrs import evolve

from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.borders import BORDERS, HARMFUL_BORDERS
from omi_rt.fake.connection import ListenConnection
from omi_rt.fake.faults import ConnectionPlan, Drop, Late, Malformed, Silence
from omi_rt.fake.finals import FINALIZE_ANSWERS
from tests.harness import LONG_MESSAGES, RATE, assert_whole, listening_server, play, words_of

if TYPE_CHECKING:
    from trio.testing import MockClock

TALK = random_script(Random(3), 90.0)
LATENESS = [3.0, 8.0, 12.0, 18.0, 25.0, 40.0]


def paused(seconds: float) -> Script:
    """Twenty seconds of talk, a pause, and twenty more."""
    after = random_script(Random(6), 20.0).words
    later = tuple(evolve(word, start=word.start + 20.0 + seconds) for word in after)
    return Script(random_script(Random(5), 20.0).words + later, 40.0 + seconds)


async def play_whole(
    script: Script,
    options: Options,
    *,
    faults: FaultScript | None = None,
    pcm: bytes | None = None,
    within: float | None = 0.002,
    **settings: Any,
) -> list[Any]:
    """Play a script in a session of its own, which comes out whole; returns its connections' records."""
    async with (
        listening_server(options=options, faults=faults, **settings) as (world, fake),
        world.device(channels=script.channels) as device,
    ):
        await play(device, script, pcm=pcm, within=300.0, message_seconds=LONG_MESSAGES)
        records = list(fake.connections)
    assert_whole(device, script, within=within)
    return records


# Late


@pytest.mark.parametrize("seconds", LATENESS)
async def test_answers_that_are_steadily_late_cost_no_word(
    autojump_clock: MockClock, seconds: float
) -> None:
    records = await play_whole(TALK, Options(lateness=(seconds, seconds)))
    assert len(records) == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("seconds", LATENESS)
async def test_answers_whose_lateness_jitters_cost_no_word(
    autojump_clock: MockClock, seconds: float, seed: int
) -> None:
    least = min(3.0, seconds / 2)
    await play_whole(TALK, Options(lateness=(least, seconds), seed=seed, empty_finals=None))


@pytest.mark.parametrize("seconds", LATENESS)
async def test_a_short_session_waits_for_late_answers(
    autojump_clock: MockClock, seconds: float
) -> None:
    script = Script(random_script(Random(4), 6.0).words, 6.0)
    records = await play_whole(script, Options(lateness=(seconds, seconds)))
    assert len(records) == 1


async def test_two_channels_may_be_late(autojump_clock: MockClock) -> None:
    script = random_script(Random(12), 60.0, channels=2)
    await play_whole(script, Options(lateness=(5.0, 20.0), empty_finals=None))


async def test_a_drop_in_the_middle_of_lateness_costs_no_word(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Drop(after_audio=45.0)])
    await play_whole(TALK, Options(lateness=(12.0, 12.0)), faults=faults)


async def test_answers_that_become_forty_seconds_late_hold_a_full_backlog_back(
    autojump_clock: MockClock,
) -> None:
    """The next connection is as late as the first: for some seconds there is no room at all."""
    late = Late(seconds=40.0)
    faults = FaultScript((ConnectionPlan((evolve(late, after_audio=30.0),)),), (late,))
    records = await play_whole(TALK, Options(empty_finals=None), faults=faults)
    assert len(records) == 2


# Silent


async def test_a_burst_after_long_silence_loses_nothing(autojump_clock: MockClock) -> None:
    options = Options(empty_finals=None, finalize="never")
    pcm = synthesise(TALK, RATE)
    async with (
        listening_server(options=options, backlog_seconds=20.0) as (world, _fake),
        world.device() as device,
    ):
        await device.stream_audio(bytes(RATE * 2 * 120), RATE * 2)
        await device.stream_audio(pcm, RATE * 2, speed=20.0)
        ended = await device.finish(300)
    assert words_of(device.segments) == TALK.transcript()
    assert ended["received"] == ended["finalised"] == 210.0
    assert ended["lost"] == 0.0


async def test_silence_that_a_silent_provider_had_is_not_lost_when_the_server_goes(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (Silence(),))
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        await device.stream_audio(bytes(RATE * 2 * 5), RATE * 2)
        await trio.sleep(0.5)
        device.session.drain(1.0)
        await device.ended()
    ended = device.event("session_ended")
    assert (ended["finalised"], ended["lost"]) == (5.0, 0.0)


async def test_closestream_that_is_ignored_with_nothing_but_silence_left_is_not_tried_again(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (Silence(),))
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await device.stream_audio(bytes(RATE * 2 * 5), RATE * 2)
        ended = await device.finish()
        assert len(fake.connections) == 1
    assert (ended["finalised"], ended["lost"]) == (5.0, 0.0)


@pytest.mark.parametrize("finalize", FINALIZE_ANSWERS)
@pytest.mark.parametrize("seconds", [5.0, 15.0, 22.0, 60.0])
async def test_a_silent_pause_costs_no_word_and_no_connection(
    autojump_clock: MockClock, seconds: float, finalize: Any
) -> None:
    options = Options(empty_finals=None, finalize=finalize)
    (record,) = await play_whole(paused(seconds), options)
    assert record.texts["Finalize"] <= 1


async def test_ten_minutes_of_silence_between_two_sentences_cost_nothing(
    autojump_clock: MockClock,
) -> None:
    options = Options(empty_finals=None, finalize="never")
    records = await play_whole(paused(600.0), options)
    assert len(records) == 1


async def test_a_pause_with_the_noise_of_a_room_is_silence_as_well(
    autojump_clock: MockClock,
) -> None:
    script = paused(60.0)
    audio = np.frombuffer(synthesise(script, RATE), dtype="<i2").astype(int)
    noise = np.random.default_rng(1).normal(0, 120, len(audio)).clip(-500, 500).astype(int)
    # The words of the made-up language are known to the sample: the noise keeps off them.
    noise[np.convolve(np.abs(audio), np.ones(RATE // 10), "same") > 0] = 0
    pcm = (audio + noise).astype("<i2").tobytes()
    options = Options(empty_finals=None, finalize="never")
    (record,) = await play_whole(script, options, pcm=pcm)
    assert record.texts["Finalize"] == 0


@pytest.mark.parametrize("seconds", [18.0, 40.0])
async def test_a_late_word_is_heard_though_it_is_said_to_begin_in_silence_that_was_passed(
    autojump_clock: MockClock, seconds: float
) -> None:
    words = random_script(Random(6), 12.0).words
    script = Script(tuple(evolve(word, start=word.start + 24.0) for word in words), 36.0)
    options = Options(
        lateness=(seconds, seconds), borders="starts_early", empty_finals=None, finalize="never"
    )
    await play_whole(script, options, within=None)


async def test_a_device_that_sends_nothing_for_a_minute_is_asked_about_once(
    autojump_clock: MockClock,
) -> None:
    script = paused(0.0)
    pcm = synthesise(script, RATE)
    options = Options(finalize="last_word", empty_finals=None, max_utterance=60.0)
    async with (
        listening_server(options=options) as (world, fake),
        world.device() as device,
    ):
        await device.stream_audio(pcm[: RATE * 2 * 20], RATE * 2)
        await trio.sleep(60)
        assert fake.connections[0].texts["Finalize"] <= 2
        await device.stream_audio(pcm[RATE * 2 * 20 :], RATE * 2)
        ended = await device.finish()
        assert len(fake.connections) == 1
    assert words_of(device.segments) == script.transcript()
    assert ended["lost"] == 0.0


async def test_a_channel_on_which_nobody_speaks_is_never_asked_about(
    autojump_clock: MockClock,
) -> None:
    words = tuple(evolve(word, channel=0) for word in random_script(Random(9), 60.0).words)
    script = Script(words, 60.0, 2)
    options = Options(empty_finals=None, finalize="never")
    (record,) = await play_whole(script, options)
    assert record.texts["Finalize"] == 0


async def test_finalize_names_the_channel_and_cuts_no_word_of_another(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(9), 40.0, channels=2)
    options = Options(max_utterance=60.0, empty_finals=None)
    faults = FaultScript.of([Silence(channel=1, seconds=15.0, after_audio=5.0)])
    async with (
        listening_server(options=options, faults=faults) as (world, _fake),
        world.device(channels=2) as device,
    ):
        asked: list[Any] = []
        take_text = ListenConnection._take_text

        def noting(self: ListenConnection, text: str, now: float) -> None:
            if "Finalize" in text:
                asked.append(text)
            take_text(self, text, now)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ListenConnection, "_take_text", noting)
            await device.stream_audio(synthesise(script, RATE), RATE * 4)
            await device.finish()
    assert set(asked) == {'{"type":"Finalize","channel":1}'}
    for channel in range(2):
        assert words_of(device.segments, channel) == script.transcript(channel)


# Never answered


async def test_speech_that_is_never_answered_is_tried_again_though_a_final_had_no_times(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of(
        [Malformed(what="nan_times", after_audio=1.0, results=2), Silence(after_audio=12.0)]
    )
    script = random_script(Random(8), 25.0)
    records = await play_whole(script, Options(), faults=faults)
    assert len(records) == 2


async def test_speech_that_two_connections_do_not_answer_is_passed_by_and_told(
    autojump_clock: MockClock,
) -> None:
    """Two connections go silent at the same words; the third has the backlog that is left."""
    script = random_script(Random(8), 150.0)
    faults = FaultScript.of([Silence(after_audio=5.0)], [Silence()])
    async with (
        listening_server(faults=faults, backlog_seconds=120.0) as (world, fake),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(script, RATE), RATE * 2)
        ended = await device.finish(300)
        assert len(fake.connections) == 3
    (lost,) = device.events("audio_lost")
    assert 8.0 < lost["end"] - lost["start"] < 15.0, "no more than the first had had for long"
    assert ended["lost"] == pytest.approx(lost["end"] - lost["start"])
    assert ended["lost"] + ended["finalised"] == ended["received"] == 150.0
    expected = [
        word.text
        for word in script.words
        if not lost["start"] - 0.2 < word.start < lost["end"] - 0.05
    ]
    heard = words_of(device.segments)
    assert [word for word in heard if word != "?"] == expected


# Untidy


@pytest.mark.parametrize("borders", sorted(set(BORDERS) - HARMFUL_BORDERS))
@pytest.mark.parametrize("cut", [None, 14.3])
async def test_untidy_borders_of_finals_cost_no_word_and_double_none(
    autojump_clock: MockClock, borders: Any, cut: float | None
) -> None:
    faults = FaultScript.of([Drop(after_audio=cut)]) if cut else None
    for seed in range(4):
        options = Options(borders=borders, seed=seed, max_utterance=2.0)
        await play_whole(random_script(Random(seed), 40.0), options, faults=faults, within=None)


async def test_words_that_do_not_reach_the_transcript_are_counted_by_reason(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server(
            options=Options(borders="overlaps", max_utterance=2.0),
            faults=FaultScript.of([Drop(after_audio=14.3)]),
        ) as (world, _fake),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(TALK, RATE), RATE * 2)
        await device.finish()
        counted = world.metrics.words_discarded
        assert counted.labels("repeated")._value.get() >= 10
        assert counted.labels("replayed")._value.get() >= 1
        assert counted.labels("unsent")._value.get() == 0
    assert words_of(device.segments) == TALK.transcript()


@pytest.mark.parametrize("overtaken", [1, 3])
@pytest.mark.parametrize("lateness", [0.0, 12.0])
async def test_metadata_that_overtakes_the_last_results_costs_no_word(
    autojump_clock: MockClock, overtaken: int, lateness: float
) -> None:
    options = Options(early_metadata=overtaken, lateness=(lateness, lateness), delay=1.0)
    records = await play_whole(TALK, options)
    assert len(records) == 1


@pytest.mark.parametrize("ahead", [1.0, 10.0, 300.0])
async def test_finals_that_claim_more_than_was_sent_shift_no_word(
    autojump_clock: MockClock, ahead: float
) -> None:
    async with (
        listening_server(options=Options(claims_ahead=ahead)) as (world, _fake),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(TALK, RATE), RATE * 2)
        ended = await device.finish()
        disagreements = world.metrics.provider_disagreements._value.get()
    assert words_of(device.segments) == TALK.transcript()
    assert ended["finalised"] == ended["received"] == 90.0
    known = {round(word.start, 3) for word in TALK.words}
    assert all(min(abs(s["start"] - k) for k in known) <= 0.002 for s in device.segments)
    assert disagreements == 1, "told once a session"


async def test_the_end_of_a_word_whose_times_are_a_little_off_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    """A final that claims too much covers what its words do: some of the last one sounds beyond."""
    words = random_script(Random(4), 6.0).words
    script = Script(words, round(words[-1].end + 0.3, 2))
    for seed in range(6):
        options = Options(claims_ahead=30.0, jitter=0.04, seed=seed)
        await play_whole(script, options, within=0.042)
