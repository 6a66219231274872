"""The segments of a session that a correction can name, and how they stand."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.corrections import (
    MAX_CORRECTED_SEGMENTS,
    MAX_KEPT_CHARACTERS,
    SentSegments,
)
from omi_rt.core.segments import Segment
from omi_rt.core.values import replace
from omi_rt.core.voices import USER, Identity

if TYPE_CHECKING:
    from collections.abc import Sequence

PEOPLE = (USER, Identity("anna"), Identity("ben"))
Step = tuple[str, int, int]

steps = st.lists(
    st.tuples(
        st.sampled_from(("say", "say", "say", "merge", "take back", "identify", "name")),
        st.integers(0, 3),
        st.integers(0, 60),
    ),
    max_size=40,
)


class Plain:
    """The same, as a list of segments."""

    def __init__(self) -> None:
        self.said: list[Segment] = []

    def of(self, number: int) -> list[Segment]:
        return [each for each in self.said[-MAX_CORRECTED_SEGMENTS:] if each.speaker == number]

    def identify(self, found: Sequence[Segment], who: Identity) -> tuple[str, ...]:
        others = [each for each in found if (each.is_user, each.person_id) != whose(who)]
        for each in others:
            each.is_user, each.person_id = whose(who)
        return tuple(each.id for each in others)


def whose(who: Identity) -> tuple[bool, str | None]:
    return who.is_user, who.person_id


def say(plain: Plain, sent: SentSegments, speaker: int, count: int) -> None:
    for _ in range(count):
        number = len(plain.said)
        words = f"words of {number}".split()
        is_user, person_id = whose(PEOPLE[number % 3]) if number % 4 else (False, None)
        segment = Segment(
            f"id {number}",
            speaker,
            number * 10,
            number * 10 + 9,
            number % 2,
            words,
            number % 7,
            is_user=is_user,
            person_id=person_id,
        )
        plain.said.append(replace(segment, words=[" ".join(words)]))
        sent.remember(segment)


@given(steps)
def test_corrections_name_and_change_what_a_list_of_all_segments_would(steps: list[Step]) -> None:
    plain, sent = Plain(), SentSegments()
    for what, speaker, number in steps:
        who = PEOPLE[number % 3]
        if what == "say":
            say(plain, sent, speaker, number * 2)
        elif what == "merge":
            found = plain.of(speaker)
            into = (speaker + 1) % 4
            assert sent.merge(speaker, into) == tuple(each.id for each in found)
            for each in found:
                each.speaker = into
        elif what == "take back":
            found = plain.of(speaker)
            assert sent.take_back(speaker) == tuple(each.id for each in found)
            for each in found:
                each.is_user, each.person_id = False, None
        elif what == "identify":
            since = max(0, len(plain.said) - number)
            proven = [
                each
                for each in plain.of(speaker)
                if each.start >= 10 * since or (each.end % 20 == 9 and each.spoken > 2)
            ]
            assert sent.identify(
                speaker, who, lambda each: each.end % 20 == 9 and each.spoken > 2, since
            ) == plain.identify(proven, who)
        else:
            names = {f"id {n}" for n in range(number * 3, number * 5)} if number % 3 else set()
            named = [each for each in plain.of(speaker) if not names or each.id in names]
            assert sent.identify_named(speaker, who, names) == plain.identify(named, who)
        assert sent.count == len(plain.said)
        assert sent.last(number) == plain.said[-number:] if number else sent.last(0) == []
    assert sent.last(1000) == plain.said[-MAX_CORRECTED_SEGMENTS:]


def test_what_is_kept_of_a_long_session_is_bounded() -> None:
    plain, sent = Plain(), SentSegments()
    say(plain, sent, 0, 10_000)
    assert len(sent._whose) < 250
    assert len(sent._numbers) < 250 * 5
    assert len(b"".join(block.text for block in sent._blocks)) < 250 * 50


def test_of_long_texts_fewer_segments_are_kept_and_corrections_name_these() -> None:
    sent = SentSegments()
    for number in range(300):
        sent.remember(Segment(f"id {number}", number % 2, number, number, 0, ["x" * 10_000]))
    kept = sent.last(1000)
    texts = b"".join(block.text for block in sent._blocks)
    assert MAX_KEPT_CHARACTERS - 30_000 < len(texts) <= MAX_KEPT_CHARACTERS
    assert [each.id for each in kept] == [f"id {n}" for n in range(300 - len(kept), 300)]
    assert [len(each.words[0]) for each in kept] == [10_000] * len(kept)
    odd = [each.id for each in kept if each.speaker == 1]
    assert 10 < len(odd) < 15
    assert sent.merge(1, 2) == tuple(odd)
    assert [each.id for each in sent.last(1000) if each.speaker == 2] == odd
    sent.remember(Segment("long", 0, 0, 0, 0, ["x" * 1_000_000]))
    sent.remember(Segment("last", 0, 0, 0, 0, ["x"]))
    assert [each.id for each in sent.last(1000)] == ["long", "last"]
    assert sent.identify(0, USER, lambda _: False, 301) == ("last",)


def test_what_it_returns_is_no_part_of_it() -> None:
    plain, sent = Plain(), SentSegments()
    say(plain, sent, 0, 30)
    before = deepcopy(sent.last(30))
    for each in sent.last(30):
        each.speaker, each.words = 7, []
    assert sent.last(30) == before
    assert sent.merge(7, 1) == ()


def test_no_name_at_all_names_all_segments_of_a_speaker() -> None:
    plain, sent = Plain(), SentSegments()
    say(plain, sent, 0, 30)
    say(plain, sent, 1, 5)
    sent.take_back(0)
    assert sent.identify_named(0, USER, set()) == tuple(each.id for each in plain.said[:30])
    assert sent.identify_named(0, USER, set()) == ()
