"""Words that were delivered, and which word is the same again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.words import MAX_WORDS, HeardWord, SaidWords

BOUNDS = (0, 10_000)


def word(text: str, start: int = 1000, end: int = 1400) -> HeardWord:
    return HeardWord(text, start, end, channel=0, label=0)


def said(*words: HeardWord) -> SaidWords:
    words_ = SaidWords()
    words_.add(list(words), BOUNDS)
    return words_


@pytest.mark.parametrize(
    ("before", "again"),
    [("Lento", "lento."), ("don't", "Dont"), ("straße", "STRASSE"), ("…", "…"), ("--", "--")],
)
def test_a_word_in_the_same_letters_at_the_same_time_is_the_same(before: str, again: str) -> None:
    assert said(word(before)).has_same(word(again), BOUNDS, 10)


@pytest.mark.parametrize(
    ("before", "again"), [("lento", "lent"), ("3.5", "3.6"), ("…", "--"), ("no", "on")]
)
def test_a_word_in_other_letters_at_the_same_time_is_another(before: str, again: str) -> None:
    assert not said(word(before)).has_same(word(again), BOUNDS, 10)
    assert said(word(before)).has_like(word(again))


@pytest.mark.parametrize(("start", "end"), [(1400, 1800), (600, 1000), (1011, 1400), (1000, 1411)])
def test_a_word_at_another_time_is_another(start: int, end: int) -> None:
    assert not said(word("lento")).has_same(word("lento", start, end), BOUNDS, 10)


def test_two_words_that_touch_are_two_even_where_any_difference_is_allowed() -> None:
    assert not said(word("lento")).has_same(word("lento", 1400, 1800), BOUNDS, 10_000)


def test_what_ended_before_a_position_is_forgotten_to_the_last_word() -> None:
    words = [word(f"w{n}", n * 100, n * 100 + 90) for n in range(5)]
    remembered = said(*words)
    remembered.forget(290)
    assert [remembered.covers(each) for each in words] == [False, False, True, True, True]
    remembered.forget(491)
    assert not any(remembered.covers(each) for each in words)
    assert (remembered.horizon, remembered.end) == (491, 490)


def test_the_end_is_that_of_the_word_that_ends_last_which_need_not_come_last() -> None:
    assert said(word("long", 1000, 1900), word("short", 1100, 1200)).end == 1900


def test_at_most_so_many_words_are_remembered_the_last_ones() -> None:
    words = [word("w", n * 100, n * 100 + 90) for n in range(MAX_WORDS + 3)]
    remembered = said(*words)
    remembered.forget(0)
    assert [remembered.covers(each) for each in words[:4]] == [False, False, False, True]
    assert remembered.covers(words[-1])
    assert "w" not in repr(remembered).replace("SaidWords", "").replace("_w", "")


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 60)).map(lambda step: (step, None))
        | st.integers(0, 2000).map(lambda position: (None, position)),
        max_size=12,
    )
)
def test_a_word_keeps_the_bounds_of_its_own_final_whatever_is_forgotten(
    steps: list[tuple[tuple[int, int] | None, int | None]],
) -> None:
    """Finals of some words each, with a pause before them, and positions before which all is forgotten."""
    remembered, model = SaidWords(), list[tuple[int, int, int, int]]()
    at = 0
    for final, position in steps:
        if final is not None:
            count, pause = final
            bounds = at + pause, at + pause + count * 50
            words = [word("w", bounds[0] + n * 50, bounds[0] + n * 50 + 40) for n in range(count)]
            remembered.add(words, bounds)
            model += [(each.start, each.end, *bounds) for each in words]
            at = bounds[1]
        elif position is not None:
            remembered.forget(position)
            model = [each for each in model if each[1] >= position]
        assert [numbers[1:] for numbers in remembered._each()] == model
