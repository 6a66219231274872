"""Words on the session clock, and those delivered last: they tell a word that comes again from a new one."""

from __future__ import annotations

from attrs import define, field

MAX_WORDS = 1024
"""A final with more words than that would be the longest ever seen."""
SAME_SHARE = 0.5
"""Two words lie on the same audio if they share this much of the shorter one."""


@define
class HeardWord:
    """A word on the session clock. Nobody changes one: frozen would cost 0.4 µs for each."""

    text: str = field(repr=False)
    start: int
    """Session position, in samples."""
    end: int
    channel: int
    label: int
    """The provider's speaker label; it means something in this epoch and channel only."""
    confidence: float = 1.0


@define
class SaidWords:
    """The last delivered words of one channel, on the session clock.

    Those that a final can still bring again are kept: the words of the last one, and what lies up
    to ten seconds before it.
    """

    end: int = 0
    """Session position behind the latest word."""
    horizon: int = 0
    """Session position before which nothing is remembered."""
    _words: list[tuple[int, int, str]] = field(factory=list, repr=False)

    def add(self, word: HeardWord) -> None:
        """Remember a word that is delivered."""
        self._words.append((word.start, word.end, word.text))
        self.end = max(self.end, word.end)

    def forget(self, position: int) -> None:
        """Forget the words that end before ``position``."""
        self.horizon = max(self.horizon, position)
        words = self._words
        if words and (words[0][1] < position or len(words) > MAX_WORDS):
            self._words = [word for word in words if word[1] >= position][-MAX_WORDS:]

    def has_same(self, word: HeardWord) -> bool:
        """Tell whether this very word was delivered: on the same audio, in the same letters."""
        letters = _letters(word.text)
        return any(
            _share_audio(word, start, end) and _letters(text) == letters
            for start, end, text in self._words
        )

    def covers(self, word: HeardWord) -> bool:
        """Tell whether a delivered word, whatever it is, lies on the same audio."""
        return any(_share_audio(word, start, end) for start, end, _ in self._words)


def _share_audio(word: HeardWord, start: int, end: int) -> bool:
    shorter = min(word.end - word.start, end - start)
    shared = min(word.end, end) - max(word.start, start)
    return shorter > 0 and shared >= SAME_SHARE * shorter


def _letters(text: str) -> str:
    """The word without case and punctuation, which may differ from one final to the next."""
    return "".join(filter(str.isalnum, text)).casefold() or text
