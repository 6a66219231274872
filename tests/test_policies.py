"""The small deciders: pacing, back-off, breaker, coalescing, and whether a provider is away."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.absence import Absence, away_seconds
from omi_rt.core.backoff import Backoff
from omi_rt.core.breaker import FULL_SECONDS, PROBE_SECONDS, Breaker, DialGate, PrimingGate
from omi_rt.core.ledger import Cost
from omi_rt.core.load import (
    FULL_LOAD,
    LEAST_FINALS_SECONDS,
    PATIENT_SECONDS,
    SLACK_LOAD,
    LoadMeter,
    finals_seconds,
    read_pause,
)
from omi_rt.core.token_bucket import UPSTREAM_DEPTH_SECONDS, UPSTREAM_RATE, TokenBucket

# Priming


def test_priming_waits_while_a_first_connection_does_and_for_a_minute_after_it_was_refused() -> (
    None
):
    gate = PrimingGate(2)
    assert gate.may_begin(0.0)
    gate.dialling = 1
    assert not gate.may_begin(0.0)
    gate.dialling = 0
    assert not gate.record_refusal(503, 10.0)
    assert gate.may_begin(10.0)
    assert gate.record_refusal(429, 10.0)
    assert not gate.may_begin(10.0 + FULL_SECONDS - 0.1)
    assert gate.may_begin(10.0 + FULL_SECONDS)
    gate.primed = 2
    assert not gate.may_begin(100.0)


# Pacing


def test_a_bucket_that_has_rested_for_long_gives_no_more_than_its_depth_at_once() -> None:
    bucket = TokenBucket.full(1.25, 2.0, 0.0)
    assert bucket.try_take(2.0, 0.0)
    assert bucket.try_take(2.0, 100.0)
    assert not bucket.try_take(0.1, 100.0)


def test_live_audio_in_bursts_of_250_ms_is_never_held_back() -> None:
    bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, 0.0)
    for burst in range(10_000):
        now = burst * 0.25
        assert bucket.delay(0.25, now) == 0.0
        bucket.take(0.25)


@given(st.lists(st.floats(0.001, 0.25), min_size=50, max_size=200))
def test_what_goes_up_never_exceeds_the_rate_by_more_than_the_depth(pieces: list[float]) -> None:
    bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, 0.0)
    now = sent = 0.0
    for seconds in pieces:
        now += bucket.delay(seconds, now)
        bucket.take(seconds)
        sent += seconds
        assert sent <= UPSTREAM_DEPTH_SECONDS + now * UPSTREAM_RATE + 1e-4


@given(st.floats(0, 1e7), st.floats(0.001, 0.25))
def test_after_the_delay_the_tokens_are_there_on_a_clock_that_has_run_for_long(
    start: float, tokens: float
) -> None:
    bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, start)
    bucket.take(UPSTREAM_DEPTH_SECONDS)
    now = start + bucket.delay(tokens, start)
    assert now > start
    assert bucket.delay(tokens, now) == 0.0


# Back-off


def test_the_first_try_is_at_once_and_none_waits_over_ten_seconds() -> None:
    backoff = Backoff(Random(1))
    assert backoff.after_failure() == 0.0
    delays = [backoff.after_failure() for _ in range(200)]
    assert max(delays) <= 10.0
    assert max(delays) > 8.0
    assert min(delays[4:]) < 2.0


def test_retry_after_is_the_least_wait_within_reason() -> None:
    backoff = Backoff(Random(1))
    assert backoff.after_failure(7.0) >= 7.0
    assert backoff.after_failure(1e9) <= 130.0


def test_results_reset_the_back_off() -> None:
    backoff = Backoff(Random(1))
    for _ in range(5):
        backoff.after_failure()
    backoff.reset()
    assert backoff.after_failure() == 0.0


# Breaker and gate


def test_the_breaker_opens_for_what_concerns_every_session_only() -> None:
    for status in (400, 405, 413, 414):
        breaker = Breaker(Random(1))
        assert not breaker.record_refusal(status, 0.0)
        assert breaker.retry_after(0.0) is None
    for status in (401, 402, 403, 404):
        breaker = Breaker(Random(1))
        assert breaker.record_refusal(status, 0.0)
        assert breaker.retry_after(0.0) is not None


def test_an_open_breaker_lets_one_probe_through_at_intervals() -> None:
    breaker = Breaker(Random(1))
    breaker.record_refusal(402, 0.0)
    let_in = [now for now in range(100) if breaker.retry_after(float(now)) is None]
    assert let_in == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_retry_after_is_jittered_and_not_before_the_next_probe() -> None:
    breaker = Breaker(Random(1))
    breaker.record_refusal(402, 0.0)
    waits = {breaker.retry_after(1.0) for _ in range(100)}
    assert all(wait is not None and wait >= PROBE_SECONDS - 1 for wait in waits)
    assert len(waits) > 10


def test_an_open_connection_closes_the_breaker() -> None:
    breaker = Breaker(Random(1))
    breaker.record_refusal(401, 0.0)
    breaker.record_success()
    assert breaker.retry_after(1.0) is None


def test_first_dials_pass_the_gate_and_redials_share_its_rate() -> None:
    gate = DialGate(TokenBucket.full(10.0, 20.0, 0.0))
    assert all(gate.reserve(0.0, is_redial=False) == 0.0 for _ in range(1000))
    delays = [gate.reserve(0.0, is_redial=True) for _ in range(100)]
    assert delays[:20] == [0.0] * 20
    assert delays[-1] == pytest.approx(8.0)
    gate.give_back()
    assert gate.reserve(0.0, is_redial=True) == pytest.approx(8.0)


def test_first_dials_wait_too_while_dials_are_failing() -> None:
    gate = DialGate(TokenBucket.full(10.0, 20.0, 0.0))
    gate.failing = True
    assert sum(gate.reserve(0.0, is_redial=False) == 0.0 for _ in range(100)) == 20


# Coalescing


def test_with_slack_audio_is_read_at_once() -> None:
    assert read_pause(0.0, 0.1) == 0.0
    assert read_pause(SLACK_LOAD, 0.1) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.25))
def test_reads_grow_apart_with_the_load_up_to_the_cap(low: float, high: float, cap: float) -> None:
    low, high = sorted((low, high))
    assert 0.0 <= read_pause(low, cap) <= read_pause(high, cap) <= cap
    assert read_pause(FULL_LOAD, cap) == cap


def test_the_load_follows_the_share_of_time_that_the_loop_works() -> None:
    meter = LoadMeter()
    for _ in range(3000):
        meter.note(0.0075, 0.010)
    assert abs(meter.load - 0.75) < 0.01


# A provider that is away


def test_deepgram_is_away_after_thirty_seconds_without_progress() -> None:
    absence = Absence()
    absence.note_audio(100.0)
    assert not absence.is_away(129.9)
    assert absence.is_away(130.0)
    absence.note_progress(131.0, pending=True)
    assert not absence.is_away(160.9)


def test_a_long_backlog_is_full_for_ten_seconds_before_its_audio_is_given_up() -> None:
    assert away_seconds(10.0) == 30.0
    assert away_seconds(60.0) == 70.0
    absence = Absence(away_seconds(60.0))
    absence.note_audio(0.0)
    assert not absence.is_away(69.9)
    assert absence.is_away(70.0)


def test_silence_that_is_passed_begins_the_wait_anew_and_proves_no_epoch_good() -> None:
    absence = Absence()
    absence.note_audio(0.0)
    absence.note_silence_passed(20.0, pending=True)
    assert not absence.is_away(49.9)
    for _ in range(3):
        absence.note_epoch_end(progressed=False)
    absence.note_silence_passed(21.0, pending=False)
    assert absence.is_away(21.0)


def test_time_in_which_nothing_waited_does_not_count() -> None:
    absence = Absence()
    absence.note_audio(0.0)
    absence.note_progress(1.0, pending=False)
    absence.note_audio(500.0)
    assert not absence.is_away(529.0)


def test_audio_need_be_noted_only_now_and_then_until_none_waits() -> None:
    absence = Absence()
    assert absence.audio_due < 0.0
    absence.note_audio(100.0)
    assert absence.audio_due == 100.25
    absence.note_progress(100.1, pending=True)
    assert absence.audio_due == 100.25
    absence.note_silence_passed(100.1, pending=False)
    # The next may be the last, and the wait begins with it.
    assert absence.audio_due < 100.1
    absence.note_audio(100.25)
    assert not absence.is_away(130.2)
    assert absence.is_away(130.25)
    absence.note_progress(131.0, pending=False)
    assert absence.audio_due < 131.0


def test_deepgram_is_away_after_three_epochs_that_brought_nothing() -> None:
    absence = Absence()
    for _ in range(2):
        absence.note_epoch_end(progressed=False)
    assert not absence.is_away(0.0)
    absence.note_epoch_end(progressed=False)
    assert absence.is_away(0.0)
    absence.note_epoch_end(progressed=True)
    assert not absence.is_away(0.0)


def test_after_three_idle_epochs_deepgram_is_back_with_the_first_watermark_that_moves() -> None:
    absence = Absence()
    for _ in range(3):
        absence.note_epoch_end(progressed=False)
    absence.note_progress(0.0, pending=True)
    assert not absence.is_away(0.0)


def test_after_a_pause_of_the_device_s_the_wait_begins_anew() -> None:
    absence = Absence()
    absence.note_audio(0.0)
    absence.note_audio(4.9)
    absence.note_audio(9.9)
    assert not absence.is_away(39.8)
    assert absence.is_away(39.9)


def test_deepgram_is_away_from_a_failed_dial_to_the_next_open_connection() -> None:
    absence = Absence()
    absence.note_failed_dial()
    assert absence.is_away(0.0)
    absence.note_open()
    assert not absence.is_away(0.0)


# Cost


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200), st.booleans()), max_size=20))
def test_every_sample_is_live_once_and_the_sum_is_all_that_was_sent(
    sends: list[tuple[int, int, bool]],
) -> None:
    cost, total, seen = Cost(), 0, 0
    for start, samples, planned in sends:
        start = min(start, seen)
        cost.record_sent(start, start + samples, planned=planned)
        total += samples
        seen = max(seen, start + samples)
    assert cost.live == seen
    assert cost.total == total


def test_finals_have_a_quarter_of_the_devices_time_and_all_of_it_once_they_would_starve() -> None:
    assert finals_seconds(0.020, 0.0) == 0.005
    assert finals_seconds(0.020, PATIENT_SECONDS - 0.001) == 0.005
    assert finals_seconds(0.020, PATIENT_SECONDS) == 0.020


def test_finals_have_a_little_of_every_turn() -> None:
    assert finals_seconds(0.0, 0.0) == LEAST_FINALS_SECONDS
    assert finals_seconds(0.0, 60.0) == LEAST_FINALS_SECONDS
