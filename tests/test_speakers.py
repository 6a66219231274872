"""Speakers: numbers that stay, votes that tell whose they are."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.epoch import LeadInWord
from omi_rt.core.speakers import (
    USER,
    EpochLabels,
    Identified,
    Identity,
    Merged,
    Speakers,
    Win,
    count_votes,
)

RATE = 1000
ANNA = Identity("anna")


def words(anchor: int, *times: tuple[int, int], channel: int = 0) -> list[LeadInWord]:
    return [LeadInWord(anchor, channel, label, samples) for label, samples in times]


def test_numbers_are_given_in_order_of_first_appearance() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert [speakers.number_of(labels, 0, label) for label in (7, 2, 7, 0)] == [0, 1, 0, 2]


def test_the_same_label_on_another_channel_is_another_speaker() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert [speakers.number_of(labels, channel, 0) for channel in (0, 1, 0)] == [0, 1, 0]


def test_an_unprimed_epoch_takes_the_next_free_numbers() -> None:
    speakers = Speakers()
    first, second = EpochLabels(), EpochLabels()
    speakers.number_of(first, 0, 0)
    assert speakers.number_of(second, 0, 0) == 1


def test_the_label_with_the_most_word_time_is_the_anchors() -> None:
    assert count_votes(words(0, (3, 900), (3, 700), (1, 400)), RATE) == [Win(0, (0, 3), 1600)]


def test_an_anchor_needs_sixty_percent_of_its_word_time_and_a_second() -> None:
    assert count_votes(words(0, (3, 1190), (1, 810)), RATE) == []
    assert count_votes(words(0, (3, 1200), (1, 800)), RATE) == [Win(0, (0, 3), 1200)]
    assert count_votes(words(0, (3, 999)), RATE) == []


def test_each_channel_votes_for_itself() -> None:
    votes = words(0, (3, 1500)) + words(0, (5, 1500), channel=1)
    assert [win.label for win in count_votes(votes, RATE)] == [(0, 3), (1, 5)]


def test_a_profile_alone_on_a_label_is_known_from_the_first_word() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert speakers.resolve(labels, [Win(0, (0, 2), 5000)], [USER]) == []
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) is None
    number = speakers.number_of(labels, 0, 2)
    assert number == 1
    assert speakers.identity_of(number) == USER


def test_a_session_speaker_that_shares_with_a_profile_gains_its_identity() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    assert speakers.number_of(first, 0, 0) == 0
    assert speakers.number_of(first, 0, 1) == 1
    speakers.remember("a", 0)
    speakers.remember("b", 1)
    speakers.remember("c", 1)
    wins = [Win(0, (0, 9), 5000), Win(1, (0, 4), 2000), Win(2, (0, 9), 2000)]
    assert speakers.resolve(second, wins, [USER, 0, 1]) == [Identified(1, USER, ("b", "c"))]
    assert speakers.number_of(second, 0, 9) == 1
    assert speakers.number_of(second, 0, 4) == 0
    assert speakers.number_of(second, 0, 5) == 2


def test_two_session_speakers_on_one_label_merge_into_the_lower_number() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    for label in range(3):
        speakers.number_of(first, 0, label)
    speakers.remember("a", 2)
    wins = [Win(0, (0, 0), 2000), Win(1, (0, 0), 2000)]
    assert speakers.resolve(second, wins, [2, 1]) == [Merged(2, 1, ("a",))]
    assert speakers.number_of(second, 0, 0) == 1
    assert speakers.number_of(first, 0, 2) == 1
    assert speakers.number_of(second, 0, 1) == 3


def test_merges_of_merged_numbers_follow_through() -> None:
    speakers, labels = Speakers(), EpochLabels()
    for label in range(3):
        speakers.number_of(labels, 0, label)
    speakers.resolve(EpochLabels(), [Win(0, (0, 0), 2000), Win(1, (0, 0), 2000)], [2, 1])
    speakers.resolve(EpochLabels(), [Win(0, (0, 0), 2000), Win(1, (0, 0), 2000)], [1, 0])
    assert [speakers.current(number) for number in range(3)] == [0, 0, 0]


def test_an_identity_keeps_the_number_that_it_has() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [Win(0, (0, 3), 5000)], [USER])
    speakers.number_of(first, 0, 0)
    assert speakers.number_of(first, 0, 3) == 1
    assert speakers.resolve(second, [Win(0, (0, 8), 5000)], [USER]) == []
    assert speakers.number_of(second, 0, 8) == 1


def test_two_identities_on_one_label_go_to_the_stronger() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.resolve(labels, [Win(0, (0, 1), 5000), Win(1, (0, 1), 3000)], [USER, ANNA])
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) == USER


def test_two_identities_about_as_strong_go_to_neither() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.resolve(labels, [Win(0, (0, 1), 3000), Win(1, (0, 1), 2900)], [USER, ANNA])
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) is None


def test_speakers_known_to_be_two_people_never_merge() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [Win(0, (0, 0), 3000), Win(1, (0, 1), 3000)], [USER, ANNA])
    user, anna = speakers.number_of(first, 0, 0), speakers.number_of(first, 0, 1)
    told = speakers.resolve(second, [Win(0, (0, 5), 3000), Win(1, (0, 5), 2900)], [user, anna])
    assert told == []
    assert speakers.identity_of(user) == USER
    assert speakers.identity_of(anna) == ANNA


def test_corrections_name_at_most_the_last_two_hundred_segments() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.number_of(first, 0, 0)
    for number in range(500):
        speakers.remember(str(number), 0)
    (told,) = speakers.resolve(second, [Win(0, (0, 0), 3000), Win(1, (0, 0), 2000)], [USER, 0])
    assert isinstance(told, Identified)
    assert told.segment_ids == tuple(str(number) for number in range(300, 500))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 8))
def test_over_permuted_epochs_every_voice_keeps_its_number_and_identity(
    seed: int, voices: int, epochs: int
) -> None:
    """Each epoch is primed with the user and with every speaker heard so far."""
    random = Random(seed)
    speakers = Speakers()
    numbers: dict[int, int] = {}
    for _ in range(epochs):
        permuted = random.sample(range(10), voices)
        labels = EpochLabels()
        anchors: list[Identity | int] = [USER, *numbers.values()]
        wins = [Win(0, (0, permuted[0]), 5000)] + [
            Win(n, (0, permuted[voice]), 2000) for n, voice in enumerate(numbers, start=1)
        ]
        assert speakers.resolve(labels, wins, anchors) == []
        for voice in random.sample(range(voices), random.randint(1, voices)):
            number = speakers.number_of(labels, 0, permuted[voice])
            assert numbers.setdefault(voice, number) == number
            assert (speakers.identity_of(number) == USER) == (voice == 0)
    assert sorted(numbers.values()) == list(range(len(numbers)))
