"""Words on the session clock. Those delivered last tell a word that comes again from a new one."""

from __future__ import annotations

from array import array
from itertools import islice
from typing import TYPE_CHECKING

from attrs import define, field

from omi_rt.core.values import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

SAID_SECONDS = 10.0
"""Delivered words are remembered for this long; a word for earlier audio counts as one that comes again."""
MAX_WORDS = 1024
"""At most this many words are remembered; a final with more would be the longest ever seen."""
SAME_SHARE = 0.5
"""Two words lie on the same audio if they share this much of the shorter one."""
_NUMBERS = 3
"""The arrays have this many numbers for each word and each final."""
_END = 2
"""The place of the word's end among them."""


class HeardWord(Struct, frozen=True, gc=False):
    """A word on the session clock."""

    text: str
    start: int
    """Session position, in samples."""
    end: int
    channel: int
    label: int
    """The provider's speaker label; it means something in this epoch and channel only."""
    confidence: float = 1.0
    plain: str = ""
    """The word as it is said, without capitals and punctuation; empty where that is the text."""
    language: str = ""
    """Its language where the provider tells several apart."""

    def __repr__(self) -> str:
        return f"HeardWord(start={self.start}, end={self.end}, label={self.label})"


@define
class SaidWords:
    """The last delivered words of one channel, on the session clock.

    Words that a final can still bring again are kept: those of the last final, and those up to ten
    seconds before it.
    """

    end: int = 0
    """Session position behind the latest word."""
    horizon: int = 0
    """Session position before which nothing is remembered."""
    _numbers: array[int] = field(factory=lambda: array("q"), repr=False)
    """Of each word a hash of its letters, its start and its end. Numbers in an array take a tenth of the
    memory that words take."""
    _finals: array[int] = field(factory=lambda: array("q"), repr=False)
    """Of each final that brought any of them the words up to its last, counted from the channel's first
    word on, and the final's start and end."""
    _forgotten: int = 0
    """Words that were remembered once."""

    def add(self, words: list[HeardWord], bounds: tuple[int, int]) -> None:
        """Remember words that are delivered, and the bounds of the final that brought them."""
        if words:
            end, numbers = self.end, self._numbers
            new: list[int] = []
            for word in words:
                text, word_end = word.text, word.end
                # `_letters`, which would be called for each word.
                letters = text.casefold() if text.isalnum() else _letters(text)
                new += (hash(letters), word.start, word_end)
                if word_end > end:
                    end = word_end
            numbers.extend(new)
            self.end = end
            self._finals.extend((self._forgotten + len(numbers) // _NUMBERS, *bounds))

    def forget(self, position: int) -> None:
        """Forget the words that end before ``position``."""
        self.horizon = max(self.horizon, position)
        numbers = self._numbers
        size = len(numbers)
        # The oldest come first, so only they need be looked at: 120 are remembered of a fast speaker.
        gone = max(0, size - MAX_WORDS * _NUMBERS)
        while gone < size and numbers[gone + _END] < position:
            gone += _NUMBERS
        del numbers[:gone]
        self._forgotten += gone // _NUMBERS
        finals = self._finals
        while finals and finals[0] <= self._forgotten:
            del finals[:_NUMBERS]

    def has_same(self, word: HeardWord, bounds: tuple[int, int], tolerance: int) -> bool:
        """Tell whether this very word was delivered, in the same letters and at the same time.

        A word's start or end counts where it lies within the bounds of its final, because there
        providers are sure of it. Where neither counts for both words, both times must agree. Times
        agree if they differ by at most ``tolerance`` samples.
        """
        letters = hash(_letters(word.text))
        for said, start, end, lower, upper in self._each():
            if said != letters or _shared(word, start, end) <= 0:
                continue
            starts_differ = abs(word.start - start) > tolerance
            ends_differ = abs(word.end - end) > tolerance
            knows_start = start >= lower and word.start >= bounds[0]
            knows_end = end <= upper and word.end <= bounds[1]
            if not knows_start and not knows_end:
                knows_start = knows_end = True
            if not (knows_start and starts_differ) and not (knows_end and ends_differ):
                return True
        return False

    def has_like(self, word: HeardWord) -> bool:
        """Tell whether a delivered word is this one, maybe heard otherwise, since they share most audio."""
        return any(
            _shared(word, start, end) > SAME_SHARE * (max(word.end, end) - min(word.start, start))
            for _, start, end, *_ in self._each()
        )

    def covers(self, word: HeardWord) -> bool:
        """Tell whether a delivered word, whatever it is, lies on the same audio."""
        return any(_share_audio(word, start, end) for _, start, end, *_ in self._each())

    def covers_bare(self, transcript: HeardWord) -> bool:
        """Tell whether a transcript that has only its final's times was delivered, at least in part.

        Of a delivered word that reaches beyond its final only the part inside can be compared.
        """
        return self.covers(transcript) or any(
            _share_audio(transcript, max(start, lower), min(end, upper))
            for _, start, end, lower, upper in self._each()
        )

    def _each(self) -> Iterator[tuple[int, ...]]:
        """Yield of each word a hash of its letters, its start and end, and those of its final."""
        numbers, finals = iter(self._numbers), iter(self._finals)
        words = zip(numbers, numbers, numbers, strict=True)
        index = self._forgotten
        for until, lower, upper in zip(finals, finals, finals, strict=True):
            for said, start, end in islice(words, until - index):
                yield said, start, end, lower, upper
            index = until


def _share_audio(word: HeardWord, start: int, end: int) -> bool:
    shorter = min(word.end - word.start, end - start)
    return shorter > 0 and _shared(word, start, end) >= SAME_SHARE * shorter


def _shared(word: HeardWord, start: int, end: int) -> int:
    return min(word.end, end) - max(word.start, start)


def _letters(text: str) -> str:
    """The word without case and punctuation, which may differ from one final to the next."""
    if not text.isalnum():
        text = "".join(filter(str.isalnum, text)) or text
    return text.casefold()
