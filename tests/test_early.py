"""The session's first speech, which its first lead-in brings again."""

from __future__ import annotations

from array import array
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.audio import AudioFormat
from omi_rt.core.backlog import Backlog
from omi_rt.core.early import EARLY_SECONDS, TAIL_SECONDS, EarlySpeech
from omi_rt.core.lead_in import LEAD_IN_SECONDS, Anchor, LeadIn, LeadInPart, VoiceClips
from omi_rt.core.patience import Patience
from omi_rt.core.voices import USER, Identity, Place
from omi_rt.core.votes import Vote
from omi_rt.core.words import HeardWord
from omi_rt.deepgram.primer import NOT_RECOGNISED, Primer
from omi_rt.deepgram.transcriber import Transcriber
from omi_rt.fake import Options, synthesise
from omi_rt.profiles.store import StoreUnavailable
from tests.harness import assert_whole, listening_server, play
from tests.test_identities import STRANGER, conversation, stored, voices_in
from tests.test_identities import USER as USERS_VOICE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio.testing import MockClock

RATE = 1000
WON = Vote(0, 0, {1: 1.0}, (0, 1))
"""The first anchor's vote for a label."""
MONO = AudioFormat(RATE, 1)
STEREO = AudioFormat(RATE, 2)


def recorded(seconds: float, audio_format: AudioFormat = MONO) -> Backlog:
    """A backlog in which each sample tells its position, and on the second channel its opposite."""
    backlog = Backlog(audio_format, RATE * 1000)
    backlog.append(_positions(seconds, audio_format.channels))
    return backlog


@cache
def _positions(seconds: float, channels: int) -> bytes:
    samples = array("h")
    for position in range(round(seconds * RATE)):
        value = position % 30_000 + 1
        samples.extend([value, -value][:channels])
    return samples.tobytes()


def spoken(start: float, end: float, *, channel: int = 0, confidence: float = 1.0) -> HeardWord:
    return HeardWord("lento", round(start * RATE), round(end * RATE), channel, 0, confidence)


def places(early: EarlySpeech) -> list[tuple[int, int, int]]:
    return [(s.number, s.place.position, len(s.payload) // 2) for s in early.stretches]


def test_each_run_of_one_speaker_is_a_stretch() -> None:
    early = EarlySpeech(MONO)
    words = [(0, spoken(0, 0.5)), (0, spoken(0.6, 1)), (1, spoken(1, 2)), (0, spoken(2, 3))]
    early.hear(words, recorded(5))
    assert places(early) == [(0, 0, 1000), (1, 1000, 1000), (0, 2000, 1000)]
    assert early.stretches[1].payload == recorded(5).read(1000, 1000).payload  # type: ignore[union-attr]


def test_what_is_not_clear_and_long_pauses_are_left_out() -> None:
    early = EarlySpeech(MONO)
    words = [
        (0, spoken(0, 1)),
        (0, spoken(1, 2, confidence=0.5)),
        (0, spoken(2, 3)),
        (0, spoken(3.6, 4)),
    ]
    early.hear(words, recorded(5))
    assert places(early) == [(0, 0, 1000), (0, 2000, 1000), (0, 3600, 400)]


def test_long_stretches_are_kept_in_pieces_of_whole_words() -> None:
    early = EarlySpeech(MONO)
    early.hear([(0, spoken(n * 0.8, n * 0.8 + 0.8)) for n in range(5)], recorded(5))
    assert places(early) == [(0, 0, 2400), (0, 2400, 1600)]


def test_no_more_is_kept_than_a_lead_in_and_its_tail_have_room_for() -> None:
    early, backlog = EarlySpeech(MONO), recorded(60)
    for second in range(0, 60, 2):
        early.hear([(second % 3, spoken(second, second + 2))], backlog)
    kept = places(early)
    assert sum(samples for *_, samples in kept) == 18_000
    assert EARLY_SECONDS + TAIL_SECONDS < 18 + 2
    # The first ones, without a hole, though a shorter one would still have had room.
    early.hear([(0, spoken(59, 59.5))], backlog)
    assert places(early) == kept == [(n % 3, n * 1000, 2000) for n in range(0, 18, 2)]


def test_of_several_channels_the_speakers_own_is_kept_and_sent_on_all() -> None:
    early = EarlySpeech(STEREO)
    early.hear([(0, spoken(1, 2, channel=1))], recorded(5, STEREO))
    (stretch,) = early.stretches
    assert stretch.place == Place(1000, 1)
    assert array("h", stretch.payload)[:2] == array("h", [-1001, -1002])
    both = array("h", STEREO.on_all_channels(stretch.payload))
    assert both[:4] == array("h", [-1001, -1001, -1002, -1002])


def test_a_sample_of_a_part_knows_where_it_was_said() -> None:
    part = LeadInPart(b"", 0, Place(1000, 1))
    assert part.said_at_sample(250) == Place(1250, 1)
    assert LeadInPart(b"", 0).said_at_sample(250) is None


# In a lead-in.


def voices_of(parts: Iterable[LeadInPart], lead_in: LeadIn) -> list[Any]:
    """Whose voice each part is, and from when; silence is left out."""
    return [
        (lead_in.whose[part.anchor], part.said_at and part.said_at.position // RATE)
        for part in parts
        if part.anchor is not None
    ]


def known(seconds: float = 10.0) -> list[Anchor]:
    return [Anchor(USER, MONO.silence(seconds)), Anchor(None, MONO.silence(4.0))]


def test_early_speech_follows_the_contrast_and_grows_while_it_goes_up() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    voices.hear([(0, spoken(0, 2)), (1, spoken(2, 4))], backlog)
    lead_in = LeadIn(known(), voices, MONO)
    parts = lead_in.parts()
    heard = [next(parts) for _ in range(6)]
    voices.hear([(0, spoken(10, 12))], backlog)
    heard += parts
    expected = [(USER, None), (None, None), (0, 0), (1, 2), (0, 10)]
    assert voices_of(heard, lead_in) == expected
    # A speaker's stretches vote together.
    assert lead_in.whose == [USER, None, 0, 1]
    voices.hear([(1, spoken(20, 22))], backlog)
    assert voices_of(lead_in.tail(), lead_in) == [(1, 20)]


def test_the_lead_in_and_its_tail_are_bounded_and_then_the_speech_is_let_go_of() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    for second in range(0, 60, 2):
        voices.hear([(0, spoken(second, second + 2))], backlog)
    lead_in = LeadIn(known(), voices, MONO)
    parts = [part for part in lead_in.parts() if part.anchor not in {None, 1}]
    assert sum(len(part.payload) // 2 for part in parts) <= LEAD_IN_SECONDS * RATE
    assert sum(len(part.payload) // 2 for part in parts if part.said_at) == 12_000
    assert len(voices.early_stretches) == 9
    tail = [part for part in lead_in.tail() if part.anchor is not None]
    assert [part.said_at and part.said_at.position for part in tail] == [12_000, 14_000, 16_000]
    assert len(voices.early_stretches) == 0
    assert list(lead_in.tail()) == []


def test_the_tail_is_no_longer_where_the_lead_in_had_no_early_speech() -> None:
    """All that was said early was told only when the lead-in was up, as by a provider that is late."""
    voices, backlog = VoiceClips(MONO), recorded(60)
    lead_in = LeadIn(known(), voices, MONO)
    assert all(part.said_at is None for part in lead_in.parts())
    for second in range(0, 60, 2):
        voices.hear([(0, spoken(second, second + 2))], backlog)
    tail = [part for part in lead_in.tail() if part.anchor is not None]
    assert [part.said_at and part.said_at.position for part in tail] == [0, 2000, 4000]


def test_early_speech_has_the_room_that_the_stored_voices_leave() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    for second in range(0, 20, 2):
        voices.hear([(0, spoken(second, second + 2))], backlog)
    stored_voices = [*known(), Anchor(Identity("anna"), MONO.silence(6.0))]
    lead_in = LeadIn(stored_voices, voices, MONO)
    early = [part for part in lead_in.parts() if part.said_at is not None]
    assert sum(len(part.payload) // 2 for part in early) == 6_000


def test_who_began_to_speak_after_the_early_speech_has_room() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    for second in range(0, 20, 2):
        voices.hear([(0, spoken(second, second + 2))], backlog)
    voices.hear([(1, spoken(30, 31)), (1, spoken(31, 32)), (1, spoken(32, 33))], backlog)
    lead_in = LeadIn(known(), voices, MONO)
    whose = [who for who, _ in voices_of(lead_in.parts(), lead_in)]
    assert whose.count(1) >= 2
    assert not lead_in.misses_somebody()


def test_who_said_too_little_early_is_heard_again_in_a_clip() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    voices.hear([(0, spoken(0, 3)), (1, spoken(3, 3.5))], backlog)
    lead_in = LeadIn(known(), voices, MONO)
    parts = lead_in.parts()
    heard = [next(parts) for _ in range(8)]
    voices.forget_early()
    voices.hear([(1, spoken(30, 31)), (1, spoken(31, 32))], backlog)
    assert lead_in.misses_somebody()
    heard += parts
    assert not lead_in.misses_somebody()
    assert (1, 31) in voices_of(heard, lead_in)


def test_every_voice_has_a_second_of_silence_behind_it_and_joined_pieces_a_tenth() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    voices.forget_early()
    for number in (0, 1):
        start = 10 * number
        voices.hear(
            [(number, spoken(start, start + 1)), (number, spoken(start + 2, start + 3))], backlog
        )
    lead_in = LeadIn(known(2.0), voices, MONO)
    order = [
        (None if part.anchor is None else lead_in.whose[part.anchor], len(part.payload) // 2)
        for part in lead_in.parts()
    ]
    gap, joint = (None, 1000), (None, 100)
    clips = [(1, 1000), joint, (1, 1000), gap, (0, 1000), joint, (0, 1000), gap]
    assert order[:2] == [(USER, 2000), gap]
    assert order[2:-2] == clips
    assert order[-1] == gap


def test_clips_are_kept_of_those_whom_no_stored_voice_finds_again() -> None:
    voices, backlog = VoiceClips(MONO), recorded(60)
    voices.identified = {3}
    for number in range(9):
        voices.hear([(number, spoken(2 * number, 2 * number + 1))], backlog)
        voices.hear([(number, spoken(2 * number + 1, 2 * number + 2))], backlog)
    kept = {number for number, _ in voices.clips(60 * RATE)}
    assert kept == {0, 1, 2, 4, 5, 6, 7, 8}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [([], [], [NOT_RECOGNISED]), ([WON], [], []), ([], [WON], [])],
    ids=["nobody", "left", "right"],
)
async def test_that_nobody_was_recognised_is_told_when_no_channel_has_votes_left(
    autojump_clock: MockClock, first: list[Vote], second: list[Vote], told: list[str]
) -> None:
    reasons: list[str] = []
    report: Any = SimpleNamespace(
        tell_identities_unavailable=lambda reason, is_failure: reasons.append(reason)
    )
    nothing: Any = None
    voices = VoiceClips(STEREO)
    primer = Primer(
        STEREO,
        voices,
        Patience(60.0),
        nothing,
        nothing,
        report,
        dial=nothing,
        owes_answer=nothing,
        switch=nothing,
    )
    lead_in = LeadIn(known(), voices, MONO)
    assert len(list(lead_in.parts())) == 4
    primer.note_heard(lead_in, first, is_all=False)
    assert reasons == []
    primer.note_heard(lead_in, second, is_all=True)
    await trio.lowlevel.checkpoint()
    assert reasons == told


# In a session.


@pytest.mark.parametrize("pause", [0.6, 2.0])
@pytest.mark.parametrize("others", [0, 1, 3])
async def test_nearly_all_that_the_user_said_before_the_switch_is_corrected(
    autojump_clock: MockClock, others: int, pause: float
) -> None:
    said = corrected = 0
    for seed in range(4):
        voices = [STRANGER, 3, 5][:others]
        voices.insert(min(seed, others), USERS_VOICE)
        script = conversation(voices, 45.0, pause=pause)
        async with (
            listening_server(profiles=stored(), options=Options(seed=seed), seed=seed) as (
                world,
                _,
            ),
            world.device() as device,
        ):
            await device.stream_audio(synthesise(script, 8000), 16_000)
            transcriber = device.session._transcriber
            assert isinstance(transcriber, Transcriber)
            current = transcriber._serving
            assert current is not None
            again = current.labels.again
            ended = await device.finish()
        assert_whole(device, script)
        # Each word is counted once, in the lead-in or after it.
        assert len({(word.start, word.end) for _, word in again}) == len(again) > 0
        events = device.events("speaker_identified")
        assert all(event["is_user"] for event in events)
        told = {segment_id for event in events for segment_id in event["segment_ids"]}
        for voice, segment in voices_in(device, script):
            assert voice == USERS_VOICE or segment["id"] not in told
            if voice == USERS_VOICE and segment["start"] < ended["identities_known_from"]:
                said += 1
                corrected += segment["id"] in told
        assert len(device.session._transcript.voices.early_stretches) == 0
    assert corrected >= 0.9 * said > 0


@pytest.mark.parametrize(
    ("profiles", "keeps"),
    [
        (lambda: stored(), True),
        (lambda: stored(user=False), False),
        (lambda: stored(failure=StoreUnavailable("the bucket burns")), False),
    ],
    ids=["stored", "none", "down"],
)
async def test_a_session_keeps_early_speech_only_where_a_voice_is_stored(
    autojump_clock: MockClock, profiles: Any, keeps: bool
) -> None:
    script = conversation([STRANGER], 8.0)
    async with (
        listening_server(profiles=profiles()) as (world, _fake),
        world.device() as device,
    ):
        await play(device, script)
        assert_whole(device, script)
        assert bool(device.session._transcript.voices.early_stretches) == keeps
