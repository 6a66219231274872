"""What follows an epoch, row by row of the table in `omi_rt.core.recovery`."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from omi_rt.core.absence import AWAY_EPOCHS, Absence
from omi_rt.core.errors import (
    ProviderClosed,
    ProviderError,
    ProviderRefused,
    ProviderUnreachable,
)
from omi_rt.core.patience import Patience
from omi_rt.core.recovery import EpochEnd, Finish, Recovery, Redial

DROPPED = ProviderClosed(1006, "connection lost", retryable=True)
UNAUTHORIZED = ProviderRefused(401, retryable=False)


def make_recovery() -> Recovery:
    return Recovery(Patience(60.0), Absence(), Random(1))


def closed(**what: Any) -> EpochEnd:
    """An epoch that was closed as we asked, and left two seconds without a final."""
    return EpochEnd(**{"was_open": True, "rest_seconds": 2.0, **what})


def failed(error: ProviderError, **what: Any) -> EpochEnd:
    return EpochEnd(was_open=True, error=error, rest_seconds=2.0, **what)


def redials_until_the_end(recovery: Recovery, end: EpochEnd) -> int:
    """How many epochs that end like this one are followed by another."""
    for count in range(100):
        decision = recovery.after(end)
        if isinstance(decision, Finish):
            assert decision == Finish(takes_metadata=True)
            return count
    raise AssertionError("it never ends")


# The device's audio has ended, and none is left.


@pytest.mark.parametrize("error", [None, DROPPED, UNAUTHORIZED])
def test_a_session_that_is_done_ends_and_no_failure_of_its_epoch_counts(
    error: ProviderError | None,
) -> None:
    end = EpochEnd(was_open=True, is_done=True, error=error)
    assert make_recovery().after(end) == Finish()


# A failure.


def test_a_failure_that_a_connection_can_mend_is_followed_by_one_at_once() -> None:
    assert make_recovery().after(failed(DROPPED)) == Redial(0.0, DROPPED)


def test_failures_in_a_row_are_backed_off_until_results_come() -> None:
    recovery = make_recovery()
    waits = [recovery.after(failed(DROPPED)).wait_seconds for _ in range(20)]  # type: ignore[union-attr]
    assert waits[0] == 0.0
    assert all(0.0 < wait <= 10.0 for wait in waits[1:])
    recovery.note_open()
    assert recovery.after(failed(DROPPED)) != Redial(0.0, DROPPED)
    recovery.note_results()
    assert recovery.after(failed(DROPPED)) == Redial(0.0, DROPPED)


def test_a_provider_is_failing_from_a_failure_to_the_next_results() -> None:
    recovery, states = make_recovery(), []
    for step in (recovery.note_open, lambda: recovery.after(failed(DROPPED)), recovery.note_open):
        step()
        states.append(recovery.is_failing)
    recovery.note_results()
    assert [*states, recovery.is_failing] == [False, True, True, False]


def test_what_the_provider_asks_to_wait_is_waited() -> None:
    busy = ProviderRefused(429, retryable=True, retry_after=7.0)
    end = EpochEnd(was_open=False, error=busy)
    assert make_recovery().after(end) == Redial(7.0, busy)


def test_a_failure_that_nothing_mends_is_the_end_with_that_refusal() -> None:
    refused = ProviderRefused(402, retryable=False)
    assert make_recovery().after(failed(refused, can_renew=True)) == Finish(refusal=refused)


def test_a_refused_token_that_can_be_renewed_is_worth_one_redial() -> None:
    recovery = make_recovery()
    end = EpochEnd(was_open=False, error=UNAUTHORIZED, can_renew=True)
    assert recovery.after(end) == Redial(0.0, UNAUTHORIZED)
    assert recovery.after(end) == Finish(refusal=UNAUTHORIZED)


def test_a_connection_that_opens_makes_a_fresh_token_worth_a_redial_again() -> None:
    recovery = make_recovery()
    end = EpochEnd(was_open=False, error=UNAUTHORIZED, can_renew=True)
    recovery.after(end)
    recovery.note_open()
    assert isinstance(recovery.after(end), Redial)


def test_a_refused_key_that_cannot_be_renewed_is_the_end() -> None:
    end = EpochEnd(was_open=False, error=UNAUTHORIZED)
    assert make_recovery().after(end) == Finish(refusal=UNAUTHORIZED)


# Closed as asked.


def test_at_most_half_a_second_without_a_final_is_the_summary_s_to_count() -> None:
    end = closed(rest_seconds=0.5, has_progressed=True, misses_speech=True)
    assert make_recovery().after(end) == Finish(takes_metadata=True)
    assert isinstance(make_recovery().after(closed(rest_seconds=0.51)), Redial)


def test_metadata_with_a_silent_rest_is_followed_by_an_epoch_if_this_one_moved_on() -> None:
    end = closed(has_metadata=True, has_progressed=True)
    assert [make_recovery().after(end)] == [Redial(0.0)]
    assert make_recovery().after(closed(has_metadata=True)) == Finish()


def test_epochs_that_move_on_spend_no_tries() -> None:
    recovery = make_recovery()
    end = closed(has_metadata=True, has_progressed=True)
    assert [recovery.after(end) for _ in range(50)] == [Redial(0.0)] * 50


def test_an_ignored_close_with_a_silent_rest_is_the_end() -> None:
    assert make_recovery().after(closed(ignored_close=True)) == Finish()


@pytest.mark.parametrize("misses_speech", [False, True])
def test_a_close_alone_that_leaves_something_is_tried_five_times_in_all(
    misses_speech: bool,
) -> None:
    end = closed(misses_speech=misses_speech)
    assert redials_until_the_end(make_recovery(), end) == 4


@pytest.mark.parametrize("how", ["ignored_close", "has_metadata"])
def test_speech_without_a_final_after_ten_seconds_costs_three_of_five_tries(how: str) -> None:
    end = closed(misses_speech=True, **{how: True})
    assert redials_until_the_end(make_recovery(), end) == 1


def test_tries_are_a_session_s_not_an_epoch_s() -> None:
    recovery = make_recovery()
    for _ in range(3):
        assert recovery.after(closed()) == Redial(0.0)
        recovery.note_open()
        recovery.note_results()
        recovery.after(failed(DROPPED))
    assert redials_until_the_end(recovery, closed()) == 1


def test_a_dial_that_was_given_up_without_an_error_is_the_end() -> None:
    assert make_recovery().after(EpochEnd(was_open=False, rest_seconds=2.0)) == Finish()


# Away, and what is passed by.


def test_a_failed_dial_makes_the_provider_away_and_an_open_one_does_not() -> None:
    recovery = make_recovery()
    recovery.after(failed(DROPPED))
    assert not recovery.absence.is_away(0.0)
    recovery.after(EpochEnd(was_open=False, error=ProviderUnreachable("no route")))
    assert recovery.absence.is_away(0.0)


def test_three_epochs_without_progress_make_the_provider_away() -> None:
    recovery = make_recovery()
    for _ in range(AWAY_EPOCHS - 1):
        recovery.after(failed(DROPPED))
    recovery.after(failed(DROPPED, has_progressed=True))
    for _ in range(AWAY_EPOCHS - 1):
        recovery.after(failed(DROPPED))
    assert not recovery.absence.is_away(0.0)
    recovery.after(failed(DROPPED))
    assert recovery.absence.is_away(0.0)


def test_a_stretch_is_passed_by_after_two_overdue_epochs_in_a_row() -> None:
    recovery = make_recovery()
    assert recovery.stretch_to_pass_by(None) is None
    assert recovery.stretch_to_pass_by(4000) is None
    assert recovery.stretch_to_pass_by(None) is None
    assert recovery.stretch_to_pass_by(9000) == 4000
