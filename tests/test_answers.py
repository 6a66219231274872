"""When a provider's answers are overdue, and what is done: a table of cases, on no clock but its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.answers import AnswerWatch, SendTimes
from omi_rt.core.audio import AudioFormat
from omi_rt.core.clock import ConnectionClock
from omi_rt.core.coverage import Coverage
from omi_rt.core.patience import Patience
from omi_rt.core.sound import SoundFinder

RATE = 1000
MONO = AudioFormat(RATE, 1)
STEREO = AudioFormat(RATE, 2)
STEP = 0.5


def tone(seconds: float, level: int = 5000) -> np.ndarray:
    """Speech, to a detector of sound: 200 ms of tone in every 300 ms."""
    time = np.arange(round(seconds * RATE))
    return np.where(time % 300 < 200, level * (-1) ** time, 0).astype("<i2")


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype="<i2")


def noise(seconds: float, level: float) -> np.ndarray:
    return np.random.default_rng(7).normal(0, level, round(seconds * RATE)).astype("<i2")


@define
class Rehearsal:
    """A session's audio, sent as it comes, and a provider that answers by a rule."""

    channels: list[np.ndarray]
    answers: Callable[[int, float], list[float]]
    """Given a channel and the time: the seconds up to which finals come now."""
    finalize: Callable[[int, float], float | None] = field(default=lambda _channel, _now: None)
    """Given a channel and the time of a Finalize: the seconds up to which it is answered at once."""
    patience: Patience = field(factory=lambda: Patience(60.0))
    asked: list[tuple[int, float]] = field(factory=list)
    gave_up_at: float | None = None

    def run(self, seconds: float) -> Coverage:
        """Let ``seconds`` go by; returns what is covered in the end."""
        audio_format = AudioFormat(RATE, len(self.channels))
        coverage = Coverage(audio_format, 600.0)
        clock = ConnectionClock(audio_format)
        watch = AnswerWatch(coverage, self.patience, clock)
        audio = np.stack(self.channels, axis=1)
        paused_since = 0.0
        for step in range(round(seconds / STEP)):
            now = (step + 1) * STEP
            piece = audio[round((now - STEP) * RATE) : round(now * RATE)]
            if len(piece):
                position = coverage.backlog.end
                clock.record_sent(position, coverage.receive(piece.tobytes()))
                watch.times.record(coverage.backlog.end, now)
                paused_since = now
            for channel in range(len(self.channels)):
                for until in self.answers(channel, now):
                    self.apply(coverage, watch, channel, until, now)
            judgement = watch.judge(now, pauses=now - paused_since >= 5.0)
            if judgement.gives_up:
                self.gave_up_at = now
                break
            for channel in judgement.finalize:
                self.asked.append((channel, now))
                answered = self.finalize(channel, now)
                if answered is not None:
                    self.apply(coverage, watch, channel, answered, now)
            for channel, until_sample in judgement.silent:
                coverage.finalise_silence(channel, until_sample)
            for channel, until_sample in judgement.behind:
                coverage.finalise_unanswered(channel, until_sample)
            assert coverage.balance().is_exact
        return coverage

    def apply(
        self, coverage: Coverage, watch: AnswerWatch, channel: int, seconds: float, now: float
    ) -> None:
        position = round(seconds * RATE)
        if coverage.finalise(channel, position):
            watch.record_progress(range(channel, channel + 1), position, now)


def late(seconds: float, every: float = 4.0) -> Callable[[int, float], list[float]]:
    """Finals every few seconds of audio, each that much later than its audio."""

    def answers(_channel: int, now: float) -> list[float]:
        heard = now - seconds
        return [heard] if heard > 0 and heard % every == 0 else []

    return answers


def never(_channel: int, _now: float) -> list[float]:
    return []


@pytest.mark.parametrize("seconds", [0.5, 3.0, 8.0, 12.0, 18.0, 25.0, 40.0])
def test_a_provider_that_is_late_from_the_start_is_never_given_up(seconds: float) -> None:
    rehearsal = Rehearsal([tone(200)], late(seconds))
    coverage = rehearsal.run(200)
    assert rehearsal.gave_up_at is None
    assert coverage.watermark >= (200 - seconds - 4.0) * RATE
    assert coverage.ledger.finalised_as_silence == 0


def test_a_connection_that_never_answers_is_given_up_while_the_backlog_has_room() -> None:
    rehearsal = Rehearsal([tone(200)], never)
    rehearsal.run(200)
    assert rehearsal.gave_up_at == pytest.approx(50.5, abs=0.5)


def test_one_that_used_to_answer_at_once_is_given_up_after_twenty_seconds() -> None:
    rehearsal = Rehearsal([tone(200)], lambda _c, now: [now - 0.5] if now <= 30 else [])
    rehearsal.run(200)
    assert rehearsal.gave_up_at == pytest.approx(50.5, abs=0.5)


def test_patience_grows_with_the_lateness_that_was_seen() -> None:
    patience = Patience(60.0)
    assert patience.limit_seconds == 50.0
    patience.record_answer(0.4)
    assert patience.limit_seconds == 20.0
    patience.record_answer(12.0)
    assert patience.limit_seconds == 34.0
    patience.record_answer(40.0)
    assert patience.limit_seconds == 50.0
    patience.record_answer(0.1)
    assert patience.lag_seconds == 40.0
    assert Patience(10.0).limit_seconds == 20.0
    assert Patience(1000.0).limit_seconds == 60.0


def test_patience_grows_when_a_connection_was_given_up_unanswered() -> None:
    patience = Patience(60.0)
    patience.record_answer(0.4)
    assert patience.record_unanswered(10_000) is None
    assert patience.limit_seconds == 50.0
    patience.record_answer(0.4)
    assert patience.limit_seconds == 20.0


def test_two_connections_in_a_row_pass_by_what_the_first_had_for_long() -> None:
    patience = Patience(60.0)
    assert patience.record_unanswered(10_000) is None
    assert patience.record_unanswered(40_000) == 10_000
    assert patience.record_unanswered(55_000) == 40_000
    patience.record_answer(1.0)
    assert patience.record_unanswered(70_000) is None


@given(st.lists(st.one_of(st.floats(0, 100), st.integers(0, 10**7)), max_size=30))
def test_patience_stays_between_twenty_seconds_and_the_backlog_s_room(
    history: list[float | int],
) -> None:
    patience = Patience(60.0)
    for each in history:
        if isinstance(each, int):
            patience.record_unanswered(each)
        else:
            patience.record_answer(each)
        assert 20.0 <= patience.limit_seconds <= 50.0
        assert patience.ask_seconds <= 30.0


@pytest.mark.parametrize("pause", [5.0, 15.0, 22.0, 60.0, 600.0])
def test_a_silent_pause_without_any_answer_is_passed_and_nothing_is_asked(pause: float) -> None:
    audio = np.concatenate([tone(10), silence(pause), tone(10)])

    def answers(_channel: int, now: float) -> list[float]:
        in_pause = 11 <= now < 10.5 + pause
        return [] if in_pause or now < 1 else [min(now, len(audio) / RATE) - 0.5]

    rehearsal = Rehearsal([audio], answers)
    coverage = rehearsal.run(20 + pause)
    assert rehearsal.gave_up_at is None
    assert rehearsal.asked == []
    assert coverage.backlog.end - coverage.watermark < 15 * RATE
    assert coverage.ledger.lost == 0


def test_silence_is_passed_only_when_its_answer_is_overdue() -> None:
    assert Rehearsal([silence(9)], never).run(9).watermark == 0
    assert 0 < Rehearsal([silence(12)], never).run(12).watermark <= 2 * RATE
    patience = Patience(60.0)
    patience.record_answer(8.0)
    assert Rehearsal([silence(17)], never, patience=patience).run(17).watermark == 0


def test_an_hour_of_a_steady_hum_is_silence_too() -> None:
    rehearsal = Rehearsal([noise(600, 150)], never)
    coverage = rehearsal.run(600)
    assert rehearsal.gave_up_at is None
    assert coverage.backlog.end - coverage.watermark < 20 * RATE


def test_a_word_after_silence_that_was_passed_keeps_its_beginning() -> None:
    rehearsal = Rehearsal([np.concatenate([silence(60), tone(5)])], never)
    coverage = rehearsal.run(65)
    assert 40 * RATE < coverage.watermark <= 60 * RATE


def test_finalize_asks_once_for_speech_that_waits_ten_seconds() -> None:
    rehearsal = Rehearsal([np.concatenate([tone(3), silence(17)])], never)
    rehearsal.run(19)
    ((channel, at),) = rehearsal.asked
    assert channel == 0
    assert at == pytest.approx(10.5, abs=0.5)


def test_an_answer_up_to_the_last_word_is_not_asked_again() -> None:
    audio = np.concatenate([tone(3), silence(57)])
    rehearsal = Rehearsal([audio], never, finalize=lambda _c, _now: 2.9)
    coverage = rehearsal.run(60)
    assert len(rehearsal.asked) == 1
    assert rehearsal.gave_up_at is None
    assert coverage.watermark > 40 * RATE


def test_answers_of_no_length_are_not_asked_for_again_and_again() -> None:
    rehearsal = Rehearsal([tone(45)], never, finalize=lambda _c, _now: 0.0)
    rehearsal.run(45)
    assert len(rehearsal.asked) <= 5


def test_finalize_waits_for_a_quiet_moment_but_not_for_ever() -> None:
    def asked_at(audio: np.ndarray) -> float:
        rehearsal = Rehearsal([audio], never)
        rehearsal.run(16)
        return rehearsal.asked[0][1]

    with_a_gap = np.concatenate([tone(11.75), silence(0.5), tone(10)])
    assert asked_at(with_a_gap) == 12.0
    without = (3000 * (-1) ** np.arange(30 * RATE)).astype("<i2")
    without[: 2 * RATE] //= 100
    assert asked_at(without) == pytest.approx(15.0, abs=1.0)


def test_only_the_channel_that_waits_is_asked() -> None:
    rehearsal = Rehearsal(
        [tone(19), silence(19)], lambda c, now: [now - 0.5] if c == 0 and now > 1 else []
    )
    coverage = rehearsal.run(19)
    assert rehearsal.asked == []
    assert coverage.watermark_of(1) > 5 * RATE
    other = Rehearsal([tone(19), tone(19)], lambda c, now: [now - 0.5] if c == 0 else [])
    other.run(19)
    assert {channel for channel, _ in other.asked} == {1}


def test_a_channel_that_never_answers_goes_along_with_those_that_do() -> None:
    rehearsal = Rehearsal(
        [tone(60), tone(60)], lambda c, now: [now - 0.5] if c == 0 and now > 1 else []
    )
    coverage = rehearsal.run(60)
    assert rehearsal.gave_up_at is None
    assert coverage.watermark > 35 * RATE
    assert coverage.ledger.finalised_unanswered > 0


def test_a_channel_that_is_later_than_another_is_waited_for_as_long_as_answers_take() -> None:
    rehearsal = Rehearsal(
        [tone(120), tone(120)], lambda c, now: late(20.0 if c == 0 else 28.0)(c, now)
    )
    coverage = rehearsal.run(120)
    assert rehearsal.gave_up_at is None
    assert coverage.ledger.finalised_unanswered == 0


def test_where_all_channels_fall_silent_after_a_late_answer_none_goes_along_with_another() -> None:
    # Asked at 10 s; both answer late, the one up to less than the other, and then neither does.
    last = {(0, 21.0): [5.0], (1, 20.0): [4.0]}
    rehearsal = Rehearsal([tone(200), tone(200)], lambda c, now: last.get((c, now), []))
    coverage = rehearsal.run(200)
    assert rehearsal.gave_up_at is not None
    assert [coverage.watermark_of(channel) for channel in (0, 1)] == [5 * RATE, 4 * RATE]
    assert coverage.ledger.finalised_unanswered == 0


def test_a_channel_does_not_go_along_with_one_that_has_stopped_answering_as_well() -> None:
    rehearsal = Rehearsal(
        [tone(60), tone(60)],
        lambda c, now: [now - 0.5] if 1 < now <= (20 if c == 0 else 15) else [],
    )
    coverage = rehearsal.run(60)
    assert coverage.watermark_of(1) == 14.5 * RATE
    assert rehearsal.gave_up_at == pytest.approx(40.0, abs=1.0)


def test_a_device_that_pauses_has_its_last_words_asked_for_once() -> None:
    rehearsal = Rehearsal([tone(2)], never)
    rehearsal.run(15)
    assert rehearsal.asked == [(0, 7.0)]
    silent = Rehearsal([silence(2)], never)
    silent.run(15)
    assert silent.asked == []


def test_words_without_times_are_an_answer_to_what_had_gone_up_before_them() -> None:
    coverage, clock = Coverage(MONO, 60.0), ConnectionClock(MONO)
    watch = AnswerWatch(coverage, Patience(60.0), clock)
    assert not watch.lacks_answer()
    for now, audio in ((5.0, tone(5.0)), (8.0, silence(3.0)), (10.0, tone(2.0))):
        position = coverage.backlog.end
        clock.record_sent(position, coverage.receive(audio.tobytes()))
        watch.times.record(coverage.backlog.end, now)
        assert watch.lacks_answer() is (now != 8.0)
        watch.record_progress(range(1), None, now)
        assert not watch.lacks_answer()


def test_an_answer_may_come_as_long_as_answers_take_and_while_the_provider_gets_on() -> None:
    patience = Patience(60.0)
    watch = AnswerWatch(Coverage(MONO, 60.0), patience, ConnectionClock(MONO))
    assert watch.may_answer(100.0, 1000.0)
    patience.record_answer(0.0)
    assert (watch.may_answer(100.0, 104.9), watch.may_answer(100.0, 105.0)) == (True, False)
    patience.record_answer(8.0)
    assert (watch.may_answer(100.0, 120.9), watch.may_answer(100.0, 121.0)) == (True, False)
    watch.record_work(3.0, 118.0)
    assert (watch.may_answer(100.0, 122.9), watch.may_answer(100.0, 123.0)) == (True, False)
    watch.record_work(3.0, 120.0)
    assert not watch.may_answer(100.0, 123.0)


def test_times_of_sending_are_known_to_a_quarter_of_a_second() -> None:
    times = SendTimes()
    for step in range(1000):
        times.record(step * 20 + 20, step * 0.02)
    assert times.sent_at(10_000) == pytest.approx(10.0, abs=0.3)
    assert times.sent_by(10.0) == pytest.approx(10_000, abs=300)
    assert times.sent_at(30_000) is None
    assert times.sent_by(-1.0) == 0
    times.forget(15_000)
    assert times.sent_by(14.0) == 0
    assert times.sent_at(16_000) == pytest.approx(16.0, abs=0.3)


# Sound


def received(*parts: np.ndarray) -> Coverage:
    coverage = Coverage(MONO, 600.0)
    coverage.receive(np.concatenate(parts).tobytes())
    return coverage


def has_sound(coverage: Coverage) -> bool:
    """Whether anything sounds on the only channel."""
    end = coverage.backlog.end
    return SoundFinder(MONO, 0).first_sound(coverage.backlog, 0, end) is not None


@pytest.mark.parametrize("level", [0, 20, 100, 400])
def test_the_first_sound_is_found_over_any_steady_noise(level: int) -> None:
    parts = [silence(20), tone(3, 5000), silence(5)]
    audio = np.concatenate(parts)
    if level:
        audio = audio + noise(len(audio) / RATE, level)
    coverage = received(audio.astype("<i2"))
    found = SoundFinder(MONO, 0).first_sound(coverage.backlog, 0, 28 * RATE)
    assert found == pytest.approx(20 * RATE, abs=25)


def test_noise_that_begins_in_a_pause_is_no_sound() -> None:
    coverage = received(silence(5), noise(15, 200))
    assert not has_sound(coverage)


def test_a_faint_hiss_is_no_sound_and_a_faint_voice_is_one() -> None:
    assert not has_sound(received(noise(10, 20)))
    assert has_sound(received(silence(3), tone(2, 60), silence(3)))


def test_a_sound_that_a_final_has_covered_is_not_found_again() -> None:
    coverage = received(tone(1), silence(10), tone(1), silence(5))
    finder = SoundFinder(MONO, 0)
    assert finder.first_sound(coverage.backlog, 0, 17 * RATE) == 0
    coverage.finalise(0, 2 * RATE)
    found = finder.first_sound(coverage.backlog, 2 * RATE, 17 * RATE)
    assert found == pytest.approx(11 * RATE, abs=25)
    assert finder.first_sound(coverage.backlog, 2 * RATE, 10 * RATE) is None


def test_each_channel_is_listened_to_on_its_own() -> None:
    coverage = Coverage(STEREO, 600.0)
    coverage.receive(np.stack([silence(6), tone(6)], axis=1).tobytes())
    assert SoundFinder(STEREO, 0).first_sound(coverage.backlog, 0, 6 * RATE) is None
    assert SoundFinder(STEREO, 1).first_sound(coverage.backlog, 0, 6 * RATE) == 0


# What is passed, and what is lost


def test_a_stretch_that_sounds_is_lost_when_it_is_passed_by() -> None:
    coverage = received(tone(10), tone(10))
    gap = coverage.pass_by(10 * RATE)
    assert gap is not None
    assert (gap.start, gap.end) == (0, 10 * RATE)
    assert coverage.balance().lost == 10 * RATE
    assert coverage.watermark == 10 * RATE
    assert coverage.balance().is_exact


def test_a_silent_stretch_is_not_lost_when_it_is_passed_by() -> None:
    coverage = received(silence(10), tone(10))
    assert coverage.pass_by(10 * RATE) is None
    assert coverage.balance().lost == 0
    assert coverage.ledger.finalised_as_silence == 10 * RATE
    assert coverage.pass_by(5 * RATE) is None
    assert coverage.watermark == 10 * RATE


def test_what_one_channel_said_and_has_its_final_does_not_sound_for_another() -> None:
    coverage = Coverage(STEREO, 600.0)
    coverage.receive(np.stack([tone(10), silence(10)], axis=1).tobytes())
    coverage.finalise(0, 10 * RATE)
    assert coverage.lose_pending(sent_until=10 * RATE) is None
    assert coverage.balance().finalised == 10 * RATE


def test_at_the_end_silence_that_a_provider_had_is_not_lost() -> None:
    coverage = received(silence(8))
    gap = coverage.lose_pending(sent_until=5 * RATE)
    assert gap is not None
    assert (gap.start, gap.end) == (5 * RATE, 8 * RATE)
    sounding = received(silence(4), tone(2), silence(4))
    gap = sounding.lose_pending(sent_until=9 * RATE)
    assert gap is not None
    assert (gap.start, gap.end) == (0, 10 * RATE)
    unsent = received(silence(4))
    gap = unsent.lose_pending()
    assert gap is not None
    assert (gap.start, gap.end) == (0, 4 * RATE)


def test_the_last_half_second_before_the_watermark_is_kept_for_the_next_epoch() -> None:
    audio = np.arange(4 * RATE).astype("<i2")
    coverage = received(audio)
    assert coverage.overlap_before(0, RATE) == []
    coverage.finalise(0, 200)
    (short,) = coverage.overlap_before(200, RATE)
    assert (short.position, short.samples) == (0, 200)
    for position in (300, 1000, 1250):
        coverage.finalise(0, position)
    chunks = coverage.overlap_before(1250, 250)
    assert [(chunk.position, chunk.samples) for chunk in chunks] == [(750, 250), (1000, 250)]
    assert b"".join(chunk.payload for chunk in chunks) == audio[750:1250].tobytes()
    assert coverage.overlap_before(1251, 250) == []
    coverage.pass_by(4 * RATE)
    assert coverage.overlap_before(4 * RATE, 250) == []
