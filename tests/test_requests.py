"""What a client has asked of its provider: each request is answered once."""

from __future__ import annotations

from omi_rt.core.audio import AudioFormat
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.coverage import Coverage
from omi_rt.core.heard import Heard
from omi_rt.core.requests import ConfigureRequest, FinalizeRequests


def received(seconds: float, channels: int = 1) -> tuple[Coverage, FinalizeRequests]:
    coverage = Coverage(AudioFormat(1000, channels), 60.0, BacklogBudget(1 << 30))
    coverage.receive(bytes(int(2000 * seconds) * channels))
    return coverage, FinalizeRequests(coverage)


def final(covered: int | None, channel: int = 0) -> Heard:
    return Heard([], range(channel, channel + 1), covered)


def test_a_final_that_covers_what_had_come_is_the_answer_and_no_other_is() -> None:
    _, requests = received(5)
    assert requests.ask(None, 0.0) is None
    assert [requests.position] == [5000]
    assert not requests.take_final(final(4000), from_finalize=False, now=1.0)
    assert requests.take_final(final(5000), from_finalize=False, now=1.1)
    assert requests.position is None
    assert not requests.take_final(final(6000), from_finalize=True, now=1.2)


def test_a_final_that_was_asked_for_may_end_a_little_earlier() -> None:
    _, requests = received(5)
    requests.ask(None, 0.0)
    assert not requests.take_final(final(4899), from_finalize=True, now=1.0)
    assert not requests.take_final(final(4900), from_finalize=False, now=1.0)
    assert requests.take_final(final(4900), from_finalize=True, now=1.0)


def test_requests_that_come_meanwhile_are_one_that_follows() -> None:
    coverage, requests = received(5)
    for number in range(100):
        coverage.receive(bytes(20))
        requests.ask(None, number / 100)
    assert [requests.position] == [5010]
    assert requests.take_final(final(5010), from_finalize=True, now=2.0)
    assert [requests.position] == [6000]
    assert requests.take_final(final(6000), from_finalize=True, now=3.0)
    assert requests.position is None


def test_with_all_final_the_answer_is_immediate_and_a_flood_of_them_is_not() -> None:
    coverage, requests = received(5)
    coverage.finalise(0, 5000)
    assert requests.ask(None, 0.0) == range(1)
    assert requests.ask(None, 0.05) is None
    assert requests.ask(None, 0.2) == range(1)


def test_silence_that_is_passed_answers_too() -> None:
    coverage, requests = received(5)
    requests.ask(None, 0.0)
    coverage.finalise(0, 5000)
    assert requests.take_progress(1.0) == [0]
    assert requests.take_progress(1.1) == []


def test_channels_are_answered_one_by_one() -> None:
    _, requests = received(5, channels=2)
    requests.ask(1, 0.0)
    assert not requests.take_final(final(5000, 0), from_finalize=True, now=1.0)
    assert requests.take_final(final(5000, 1), from_finalize=True, now=1.0)


def test_a_configure_may_be_open_for_five_seconds() -> None:
    request = ConfigureRequest()
    assert request.find_obstacle(("a",), "nova-3", 0.0) is None
    request.begin(("a",), 0.0)
    assert request.find_obstacle(("b",), "nova-3", 4.9) == "CONFIGURE_ALREADY_PENDING"
    assert request.find_obstacle(("b",), "nova-3", 5.0) is None
    assert request.end()
    assert not request.end()


def test_key_terms_need_a_model_that_has_them_and_are_bounded() -> None:
    request = ConfigureRequest()
    assert request.find_obstacle(("a",), "nova-2", 0.0) == "CONFIGURE_KEYTERMS_NOT_SUPPORTED"
    assert request.find_obstacle(None, "nova-2", 0.0) is None
    terms = ("a b",) * 251
    assert request.find_obstacle(terms, "nova-3", 0.0) == "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"
