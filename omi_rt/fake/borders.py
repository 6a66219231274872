"""How untidy the borders between one channel's finals are. There is no clock in here.

====================  ============================================================================
``clean``             a final ends in a pause, and its words lie inside it
``reaches_over``      the last word of a final is said to end 0.1 to 0.4 s after the final
``starts_early``      the first word of a final is said to begin up to 0.3 s before the final
``in_first``          where an utterance is cut up, the border lies inside a word; the final before
                      it has the word, whole and with its true times
``in_second``         the same, and the final after the border has the word; Finalize, too, cuts
                      where it comes
``in_both``           the same, and both finals have the whole word
``in_halves``         the same, and each final has a piece of the word as a word
``overlaps``          a final begins before the last word of the one before it, and repeats that
                      word with its times 20 to 50 ms off
====================  ============================================================================

The words stay the same, once each, to a client that knows a repetition by its text and times, and
that starts again from before the last final's end. After ``in_halves`` no client can be whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from attrs import evolve

if TYPE_CHECKING:
    from random import Random

    from omi_rt.fake.recogniser import RecognisedWord

BorderHabit = Literal[
    "clean",
    "reaches_over",
    "starts_early",
    "in_first",
    "in_second",
    "in_both",
    "in_halves",
    "overlaps",
]
BORDERS: tuple[BorderHabit, ...] = get_args(BorderHabit)
HARMFUL_BORDERS: frozenset[BorderHabit] = frozenset({"in_halves"})
WITHIN_WORDS: frozenset[BorderHabit] = frozenset({"in_first", "in_second", "in_both", "in_halves"})
"""The habits that put the border of two finals inside a word."""

REACH_SECONDS = (0.1, 0.4)
"""A word that reaches over the end of its final does so by this much, at least and at most."""
EARLY_SECONDS = (0.05, 0.3)
"""A word that starts before its final does so by this much, at least and at most."""
OVERLAP_SECONDS = (0.0, 0.05)
"""A final begins this much before the word that it repeats, at least and at most."""
OFF_SECONDS = (0.02, 0.05)
"""The times of a repeated word are off by this much, at least and at most."""
CUT_AT = (0.1, 0.9)
"""A border inside a word lies between these shares of the word's length."""


class Borders:
    """The borders of one channel's finals, in order."""

    __slots__ = ("_last", "_rate", "_rng", "habit")

    def __init__(self, habit: BorderHabit, sample_rate: int, rng: Random) -> None:
        self.habit = habit
        self._rate = sample_rate
        self._rng = rng
        self._last: RecognisedWord | None = None

    def within(self, word: RecognisedWord) -> int:
        """Draw a border inside a word, in samples of the stream."""
        return word.start + round((word.end - word.start) * self._rng.uniform(*CUT_AT))

    def split(
        self, word: RecognisedWord, border: int
    ) -> tuple[list[RecognisedWord], list[RecognisedWord]]:
        """Tell what the finals before and after a border have of the word that it lies in."""
        if self.habit == "in_first":
            return [word], []
        if self.habit == "in_both":
            return [word], [word]
        half = len(word.text) // 2
        if self.habit == "in_halves" and half:
            first = evolve(word, text=word.text[:half], end=border)
            return [first], [evolve(word, text=word.text[half:], start=border)]
        return [], [word]

    def blur(
        self, start: int, end: int, words: tuple[RecognisedWord, ...]
    ) -> tuple[int, tuple[RecognisedWord, ...]]:
        """Tell where the next final is said to start, and what its words are said to be."""
        before, self._last = self._last, words[-1] if words else None
        if not words:
            return start, words
        match self.habit:
            case "reaches_over":
                late = evolve(words[-1], end=end + self._draw(REACH_SECONDS))
                return start, (*words[:-1], late)
            case "starts_early":
                early = evolve(words[0], start=max(0, start - self._draw(EARLY_SECONDS)))
                return start, (early, *words[1:])
            case "overlaps" if before is not None:
                off = self._rng.choice((-1, 1)) * self._draw(OFF_SECONDS)
                again = evolve(before, start=max(0, before.start + off), end=before.end + off)
                return max(0, before.start - self._draw(OVERLAP_SECONDS)), (again, *words)
        return start, words

    def _draw(self, limits: tuple[float, float]) -> int:
        return round(self._rng.uniform(*limits) * self._rate)
