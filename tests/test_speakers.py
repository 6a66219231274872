"""Speakers: numbers that stay, votes that tell whose they are."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.corrections import is_verified
from omi_rt.core.heard import LeadInWord
from omi_rt.core.segments import Segment
from omi_rt.core.speakers import (
    MAX_LABELS,
    EpochLabels,
    Identified,
    Merged,
    Speakers,
)
from omi_rt.core.updates import Final
from omi_rt.core.voices import USER, Identity, Place, Voice
from omi_rt.core.votes import HeardAgain, Label, Vote, count_votes
from omi_rt.core.words import HeardWord

RATE = 1000
ANNA = Identity("anna")


CONTRAST = Vote(1, 0, {50: 1.0}, (0, 50))
"""The vote of the second anchor, a voice of nobody's, for a label of its own."""


def words(anchor: int, *times: tuple[int, int], channel: int = 0) -> list[LeadInWord]:
    return [LeadInWord(anchor, channel, label, samples) for label, samples in times]


def said(label: int, samples: int, *, channel: int = 0) -> HeardWord:
    return HeardWord("lento", 0, samples, channel, label)


def sent(
    segment_id: str, number: int, start: int = 0, end: int = 1000, channel: int = 0
) -> Segment:
    """A segment without pauses, in samples of the session."""
    return Segment(segment_id, number, start, end, channel, ["lento"], end - start)


def heard_again(
    start: int = 0, end: int = 1000, *, label: int, channel: int = 0, on: int | None = None
) -> HeardAgain:
    """A word of a session's channel that got a label now, ``on`` a channel of the epoch."""
    return HeardAgain(start, end, channel, (channel if on is None else on, label))


def winners(votes: list[LeadInWord]) -> list[Label | None]:
    return [vote.winner for vote in count_votes(votes, RATE)]


def won(anchor: int, label: int, share: float = 1.0, *again: HeardAgain, channel: int = 0) -> Vote:
    """The vote of an anchor with this share of its words on one label, the rest on label 99."""
    shares = {label: share} if share == 1.0 else {label: share, 99: 1.0 - share}
    return Vote(anchor, channel, shares, (channel, label) if share >= 0.6 else None, again)


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


def test_labels_beyond_a_bound_share_one_number_that_is_nobodys() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.resolve(labels, [won(0, 500), won(1, 501)], [USER, ANNA])
    first = [speakers.number_of(labels, 0, label) for label in range(MAX_LABELS)]
    assert first == list(range(MAX_LABELS))
    assert set(speakers.expect(labels, [(0, 300), (0, 301)]).values()) == {MAX_LABELS}
    others = {speakers.number_of(labels, 0, label) for label in range(MAX_LABELS, 499)}
    assert others == {MAX_LABELS}
    assert set(speakers.expect(labels, [(0, 300), (0, 499)]).values()) == {MAX_LABELS}
    assert {(0, label) for label in range(MAX_LABELS, 499)} == labels.contested
    known = [speakers.number_of(labels, 0, label) for label in (500, 501)]
    assert [speakers.identity_of(number) for number in known] == [USER, ANNA]
    assert speakers.identity_of(MAX_LABELS) is None


def test_a_label_that_may_be_somebodys_has_a_number_of_its_own_however_many_there_are() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.resolve(labels, [won(0, 500)], [USER])
    for label in range(MAX_LABELS + 50):
        speakers.number_of(labels, 0, label)
    number = speakers.number_of(labels, 0, 500)
    speakers.confirm(labels, [said(3, 1000)], RATE)
    assert speakers.identity_of(number) == USER
    assert (0, 500) not in labels.contested


def test_the_label_with_the_most_word_time_is_the_anchors() -> None:
    (vote,) = count_votes(words(0, (3, 900), (3, 700), (1, 400)), RATE)
    assert vote == Vote(0, 0, {3: 0.8, 1: 0.2}, (0, 3))


def test_an_anchor_needs_sixty_percent_of_its_word_time_and_a_second() -> None:
    assert winners(words(0, (3, 1190), (1, 810))) == [None]
    assert winners(words(0, (3, 1200), (1, 800))) == [(0, 3)]
    assert winners(words(0, (3, 999), (1, 1))) == [None]
    assert count_votes(words(0, (3, 999)), RATE) == []


def test_each_channel_votes_for_itself() -> None:
    votes = words(0, (3, 1500)) + words(0, (5, 1500), channel=1)
    assert winners(votes) == [(0, 3), (1, 5)]


def test_a_profile_alone_on_a_label_is_known_from_the_first_word() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert speakers.resolve(labels, [won(0, 2), CONTRAST], [USER, None]) == []
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) is None
    number = speakers.number_of(labels, 0, 2)
    assert number == 1
    assert speakers.identity_of(number) == USER


def test_a_session_speaker_that_shares_with_a_profile_gains_its_identity() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    assert speakers.number_of(first, 0, 0) == 0
    assert speakers.number_of(first, 0, 1) == 1
    speakers.remember(sent("a", 0))
    speakers.remember(sent("b", 1))
    speakers.remember(sent("c", 1))
    wins = [won(0, 9), won(1, 4), won(2, 9, 1.0, heard_again(label=9))]
    assert speakers.resolve(second, wins, [USER, 0, 1]) == [Identified(1, USER, ("b", "c"))]
    assert speakers.number_of(second, 0, 9) == 1
    assert speakers.number_of(second, 0, 4) == 0
    assert speakers.number_of(second, 0, 5) == 2


def test_speakers_of_different_epochs_on_one_label_merge_into_the_lower_number() -> None:
    speakers, last = Speakers(), EpochLabels()
    for number in range(3):
        assert speakers.number_of(EpochLabels(), 0, 7) == number
    speakers.remember(sent("a", 2))
    assert speakers.resolve(last, [won(0, 0), won(1, 0)], [2, 1]) == [Merged(2, 1, ("a",))]
    assert speakers.number_of(last, 0, 0) == 1
    assert speakers.current(2) == 1
    assert speakers.number_of(last, 0, 1) == 3


def test_merges_of_merged_numbers_follow_through() -> None:
    speakers = Speakers()
    for _ in range(3):
        speakers.number_of(EpochLabels(), 0, 0)
    speakers.resolve(EpochLabels(), [won(0, 0), won(1, 0)], [2, 1])
    speakers.resolve(EpochLabels(), [won(0, 0), won(1, 0)], [1, 0])
    assert [speakers.current(number) for number in range(3)] == [0, 0, 0]


def test_a_merge_on_one_channel_is_told_once_and_counts_on_the_next() -> None:
    speakers = Speakers()
    for _ in range(3):
        speakers.number_of(EpochLabels(), 0, 0)
    speakers.remember(sent("a", 1))
    speakers.remember(sent("b", 2))
    on_both = [won(0, 5), won(2, 5), won(0, 7, channel=1), won(2, 7, channel=1)]
    assert speakers.resolve(EpochLabels(), on_both, [0, 1, 2]) == [Merged(2, 0, ("b",))]
    votes = [won(0, 3), won(2, 3), won(1, 4, channel=1), won(2, 4, channel=1)]
    assert speakers.resolve(EpochLabels(), votes, [0, 1, 2]) == [Merged(1, 0, ("a",))]
    assert [speakers.current(number) for number in range(3)] == [0, 0, 0]


def test_an_identity_keeps_the_number_that_it_has() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [won(0, 3), CONTRAST], [USER, None])
    speakers.number_of(first, 0, 0)
    assert speakers.number_of(first, 0, 3) == 1
    assert speakers.resolve(second, [won(0, 8), CONTRAST], [USER, None]) == []
    assert speakers.number_of(second, 0, 8) == 1


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_two_identities_on_one_label_go_to_neither_however_long_their_anchors_are(
    share: float,
) -> None:
    speakers, labels = Speakers(), EpochLabels()
    votes = [won(0, 1), won(1, 1, share), Vote(2, 0, {4: 1.0}, (0, 4))]
    speakers.resolve(labels, votes, [USER, ANNA, None])
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) is None
    assert not speakers.recognises(labels)


def test_one_label_for_all_anchors_is_no_vote() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 5)
    assert speakers.resolve(labels, [won(0, 1), won(1, 1), won(2, 1)], [USER, 0, None]) == []
    assert speakers.number_of(labels, 0, 1) == 0
    assert speakers.identity_of(0) is None
    assert not speakers.recognises(labels)


def test_a_profile_alone_in_a_lead_in_identifies_nobody_until_a_second_label_is_heard() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert speakers.resolve(labels, [won(0, 1)], [USER]) == []
    number = speakers.number_of(labels, 0, 1)
    speakers.remember(sent("a", number))
    assert speakers.confirm(labels, [said(1, 5000), said(2, 999)], RATE) == []
    assert speakers.confirm(labels, [said(2, 999, channel=1)], RATE) == []
    assert speakers.identity_of(number) is None
    assert speakers.confirm(labels, [said(2, 1)], RATE) == [Identified(number, USER, ("a",))]
    assert speakers.confirm(labels, [said(2, 1000)], RATE) == []


def test_a_contrast_half_of_which_has_the_users_label_shows_nothing() -> None:
    speakers, labels = Speakers(), EpochLabels()
    first = speakers.number_of(EpochLabels(), 0, 0)
    speakers.remember(sent("a", first))
    again = heard_again(label=3)
    speakers.resolve(
        labels,
        [won(0, 3), Vote(1, 0, {3: 0.55, 4: 0.45}, None), won(2, 3, 1.0, again)],
        [USER, None, 0],
    )
    assert labels.identities == {}
    assert labels.pending == {(0, 3): USER}
    assert labels.unproven == {(0, 3), (0, 4)}
    assert speakers.identity_of(first) is None


def test_a_label_that_two_voices_share_which_were_apart_is_nobodys() -> None:
    speakers, first, second, third = Speakers(), EpochLabels(), EpochLabels(), EpochLabels()
    assert [speakers.number_of(first, 0, label) for label in (4, 5)] == [0, 1]
    votes = [won(0, 1), won(1, 1), won(2, 1), won(3, 7)]
    assert speakers.resolve(second, votes, [USER, 0, 1, None]) == []
    assert second.contested == {(0, 1)}
    assert speakers.number_of(second, 0, 1) == 2
    assert speakers.identity_of(2) is None
    # The same people share the same number again.
    speakers.resolve(third, votes, [USER, 0, 1, None])
    assert speakers.number_of(third, 0, 1) == 2


def test_what_went_out_before_the_votes_of_a_second_channel_came_needs_no_proof_either() -> None:
    speakers, labels = Speakers(), EpochLabels()
    assert speakers.number_of(EpochLabels(), 0, 5) == 0
    speakers.remember(sent("before", 0))
    assert speakers.resolve(labels, [won(1, 9)], [USER, 0]) == []
    speakers.remember(sent("after", 0))
    votes = [won(0, 7, channel=1), won(1, 7, channel=1), won(2, 3, channel=1)]
    assert speakers.resolve(labels, votes, [USER, 0, None]) == [Identified(0, USER, ("after",))]


@pytest.mark.parametrize(("second", "is_contested"), [(4, False), (9, True)])
def test_a_label_under_which_two_speakers_are_heard_again_after_the_lead_in_is_nobodys(
    second: int, is_contested: bool
) -> None:
    speakers, first, labels = Speakers(), EpochLabels(), EpochLabels()
    assert [speakers.number_of(first, 0, label) for label in (0, 1)] == [0, 1]
    speakers.remember(sent("a", 0))
    speakers.resolve(labels, [won(0, 9), CONTRAST], [USER, None])
    again = [(number, heard_again(label=label)) for number, label in ((0, 9), (1, second))]
    assert speakers.recall(labels, again) == []
    assert (0, 9) not in labels.contested, "a single word of each may be a mistake"
    assert speakers.recall(labels, again) == []
    assert ((0, 9) in labels.contested) == is_contested
    number = speakers.number_of(labels, 0, 9)
    assert number == 2
    assert speakers.identity_of(number) == (None if is_contested else USER)


@pytest.mark.parametrize("words", [1, 2])
def test_who_was_apart_from_the_user_and_is_heard_again_under_the_users_label_contests_it(
    words: int,
) -> None:
    speakers, first, labels = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [won(0, 3), CONTRAST], [USER, None])
    stranger = speakers.number_of(first, 0, 0)
    speakers.resolve(labels, [won(0, 9), CONTRAST], [USER, None])
    speakers.recall(labels, [(stranger, heard_again(label=9))] * words)
    assert (speakers.identity_of(speakers.number_of(labels, 0, 9)) == USER) == (words < 2)


@pytest.mark.parametrize(("mislabelled", "is_contested"), [(1, False), (2, True)])
def test_two_words_of_a_strangers_clip_under_the_users_label_contest_it_and_one_does_not(
    mislabelled: int, is_contested: bool
) -> None:
    speakers, labels = Speakers(), EpochLabels()
    stranger = speakers.number_of(EpochLabels(), 0, 0)
    again = [heard_again(n, n + 1, label=1 if n < mislabelled else 2) for n in range(6)]
    vote = Vote(1, 0, {2: 0.7, 1: 0.3}, (0, 2), tuple(again))
    speakers.resolve(labels, [won(0, 1), vote], [USER, stranger])
    assert labels.contested == ({(0, 1)} if is_contested else set())
    assert labels.identities == ({} if is_contested else {(0, 1): USER})


def test_who_spoke_beside_the_users_label_is_never_the_user_though_the_user_was_silent() -> None:
    speakers, first, later = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [won(0, 1), CONTRAST], [USER, None])
    stranger = speakers.number_of(first, 0, 2)
    speakers.remember(sent("a", stranger))
    again = heard_again(label=3)
    told = speakers.resolve(
        later, [won(0, 3), CONTRAST, won(2, 3, 1.0, again)], [USER, None, stranger]
    )
    assert told == []
    assert later.contested == {(0, 3)}
    assert speakers.identity_of(stranger) is None


def test_a_speaker_who_was_apart_from_the_users_anchor_never_becomes_the_user() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    speakers.resolve(first, [won(0, 1), won(1, 2)], [USER, 0])
    assert speakers.resolve(second, [won(0, 1), won(1, 1), won(2, 3)], [USER, 0, None]) == []
    assert speakers.identity_of(0) is None
    assert second.contested == {(0, 1)}


def test_a_later_lead_in_that_contradicts_an_identity_takes_it_back() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    speakers.remember(sent("a", 0))
    votes = [won(0, 1), won(1, 1, 1.0, heard_again(label=1)), won(2, 3)]
    told = speakers.resolve(first, votes, [USER, 0, None])
    assert told == [Identified(0, USER, ("a",))]
    told = speakers.resolve(second, [won(0, 4), won(1, 5)], [USER, 0])
    assert told == [Identified(0, None, ("a",))]
    assert speakers.identity_of(speakers.number_of(second, 0, 5)) is None
    assert speakers.number_of(second, 0, 4) == 1
    assert speakers.identity_of(1) == USER


def test_a_voice_that_shares_a_label_on_any_channel_is_not_apart() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    votes = [won(0, 1), won(1, 2), won(0, 1, channel=1), won(1, 1, channel=1), won(2, 3, channel=1)]
    speakers.resolve(first, votes, [USER, 0, None])
    assert speakers.identity_of(0) == USER
    speakers.resolve(second, [won(0, 1), won(1, 1), won(2, 3)], [USER, 0, None])
    assert speakers.identity_of(speakers.number_of(second, 0, 1)) == USER


def test_speakers_known_to_be_two_people_never_merge() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [won(0, 0), won(1, 1)], [USER, ANNA])
    user, anna = speakers.number_of(first, 0, 0), speakers.number_of(first, 0, 1)
    told = speakers.resolve(second, [won(0, 5), won(1, 5)], [user, anna])
    assert told == []
    assert speakers.identity_of(user) == USER
    assert speakers.identity_of(anna) == ANNA


def test_corrections_name_at_most_the_last_two_hundred_segments() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.number_of(first, 0, 0)
    for number in range(500):
        speakers.remember(sent(str(number), 0))
    votes = [won(0, 0), won(1, 0, 1.0, heard_again(label=0)), won(2, 1)]
    (told,) = speakers.resolve(second, votes, [USER, 0, None])
    assert isinstance(told, Identified)
    assert told.segment_ids == tuple(str(number) for number in range(300, 500))


def test_only_what_was_heard_again_under_the_users_label_is_corrected() -> None:
    """A connection without a lead-in gave the user and a stranger one number."""
    speakers, labels = Speakers(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    for second, name in enumerate(("user", "stranger", "mixed", "silent", "half", "user again")):
        speakers.remember(sent(name, 0, second * 1000, second * 1000 + 1000))
    again = [
        heard_again(0, 1000, label=1),
        heard_again(1000, 2000, label=2),
        heard_again(2000, 2850, label=1),
        heard_again(2850, 3000, label=2),
        heard_again(4000, 4490, label=1),
        heard_again(5000, 5910, label=1),
        heard_again(5910, 6000, label=2),
    ]
    votes = [won(0, 1), won(1, 1, 0.7, *again), won(2, 3)]
    assert speakers.resolve(labels, votes, [USER, 0, None]) == [
        Identified(0, USER, ("user", "user again"))
    ]
    # The number is the user's from now on.
    assert speakers.identity_of(speakers.number_of(labels, 0, 1)) == USER
    speakers.remember(sent("live", 0, 7000, 8000))
    # To take it back is to take it from all of them.
    told = speakers.resolve(EpochLabels(), [won(0, 4), won(1, 5)], [USER, 0])
    names = ("user", "stranger", "mixed", "silent", "half", "user again", "live")
    assert told == [Identified(0, None, names)]


def test_an_identity_without_a_segment_to_correct_is_not_told() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    speakers.remember(sent("a", 0))
    assert speakers.resolve(labels, [won(0, 1), won(1, 1), won(2, 3)], [USER, 0, None]) == []
    assert speakers.identity_of(0) == USER


def test_segments_of_a_merged_number_are_corrected_where_they_were_heard_again() -> None:
    speakers, first, second = Speakers(), EpochLabels(), EpochLabels()
    speakers.resolve(first, [won(0, 1), CONTRAST], [USER, None])
    assert speakers.number_of(first, 0, 1) == 0
    speakers.remember(sent("known", 0))
    # After a cut, under a new number.
    assert speakers.number_of(EpochLabels(), 0, 0) == 1
    speakers.remember(sent("a", 1, 1000, 2000))
    speakers.remember(sent("b", 1, 2000, 3000))
    votes = [won(0, 4), won(1, 4, 1.0, heard_again(2000, 3000, label=4)), won(2, 5)]
    told = speakers.resolve(second, votes, [USER, 1, None])
    assert told == [Merged(1, 0, ("a", "b")), Identified(0, USER, ("b",))]


def test_what_shared_a_label_with_the_contrast_is_never_corrected() -> None:
    speakers, labels = Speakers(), EpochLabels()
    speakers.number_of(EpochLabels(), 0, 0)
    speakers.remember(sent("early", 0))
    votes = [won(0, 1), won(1, 1, 1.0, heard_again(label=1)), won(2, 1)]
    assert speakers.resolve(labels, votes, [USER, 0, None]) == []
    assert speakers.number_of(labels, 0, 1) == 0
    speakers.remember(sent("while pending", 0, 1000, 2000))
    assert speakers.confirm(labels, [said(2, 1000)], RATE) == []


def test_a_word_of_another_channel_at_the_same_time_verifies_nothing() -> None:
    segment = sent("a", 0, 0, 1000, 1)
    assert is_verified(segment, [heard_again(label=4, channel=1)], {(1, 4)})
    assert not is_verified(segment, [heard_again(label=4)], {(0, 4), (1, 4)})
    assert not is_verified(segment, [heard_again(label=4, channel=1, on=0)], {(0, 4), (1, 4)})


def test_pauses_in_a_segment_need_not_be_covered() -> None:
    segment = Segment("a", 0, 0, 3000, 0, [], 1000)
    assert is_verified(segment, [heard_again(0, 500, label=4)], {(0, 4)})
    assert not is_verified(segment, [heard_again(0, 499, label=4)], {(0, 4)})


def test_votes_say_what_label_each_word_of_the_session_got_again() -> None:
    (vote,) = count_votes(
        [LeadInWord(0, 0, 3, 900, Place(50, 1)), LeadInWord(0, 0, 1, 100, Place(950, 1))], RATE
    )
    assert vote.words == (
        HeardAgain(50, 950, 1, (0, 3)),
        HeardAgain(950, 1050, 1, (0, 1)),
    )


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
        anchors: list[Voice | None] = [USER, *numbers.values(), None]
        wins = [won(0, permuted[0])] + [
            won(n, permuted[voice]) for n, voice in enumerate(numbers, start=1)
        ]
        wins.append(won(len(numbers) + 1, 50))
        assert speakers.resolve(labels, wins, anchors) == []
        for voice in random.sample(range(voices), random.randint(1, voices)):
            number = speakers.number_of(labels, 0, permuted[voice])
            assert numbers.setdefault(voice, number) == number
            assert (speakers.identity_of(number) == USER) == (voice == 0)
    assert sorted(numbers.values()) == list(range(len(numbers)))


def test_a_final_says_of_each_word_whose_it_is_as_far_as_that_is_known() -> None:
    speakers, labels = Speakers(), EpochLabels()
    numbers = [speakers.number_of(labels, 0, label) for label in (0, 1)]
    assert speakers.identities_of([(number, None) for number in numbers]) == {}
    list(speakers.introduce(labels, (0, 1), USER))
    word = HeardWord("hello", 0, 100, 0, 0)
    numbered = [(number, word) for number in numbers]
    identities = speakers.identities_of(numbered)
    assert identities == {numbers[1]: USER}
    said = Final(range(1), 100, numbered, [], identities).words
    assert [(each.speaker, each.identity) for each in said] == [(0, None), (1, USER)]
