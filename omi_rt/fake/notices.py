"""What a provider says of one channel besides its finals: interims, speech that begins or pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from omi_rt.fake.finals import Final

if TYPE_CHECKING:
    from collections.abc import Iterable


@frozen
class SpeechStarts:
    """A first word after a pause, at this sample of the stream."""

    sample: int


@frozen
class UtteranceEnds:
    """No word since this sample of the stream, for as long as was asked."""

    sample: int


@frozen
class Guess:
    """What has been heard and is not final; a `Final` in form alone."""

    heard: Final


Notice = SpeechStarts | UtteranceEnds | Guess


@define
class ChannelNotices:
    """Keeps track of one channel."""

    guesses: bool
    """Whether interims are wanted."""
    speech: bool
    """Whether the beginning of speech is wanted."""
    pause: int | None
    """Samples without a word that are told of; None for never."""
    _last_word_end: int | None = None
    _speaks: bool = False
    _has_told_end: bool = True
    _guessed: tuple[int, int] = (0, 0)
    _notices: list[Notice] = field(factory=list)

    def after(self, finals: Iterable[Final], guess: Final | None, position: int) -> list[Notice]:
        """Return what is to be said after some audio, with the finals that it brought."""
        self._notices = []
        for final in finals:
            self._note_words(final)
            if final.speech_final:
                self._speaks = False
        if guess is not None:
            self._note_words(guess)
            state = len(guess.words), guess.start
            if self.guesses and state != self._guessed:
                self._guessed = state
                self._notices.append(Guess(guess))
        end = self._last_word_end
        if self.pause is None or end is None or self._has_told_end:
            return self._notices
        if position - end >= self.pause:
            self._has_told_end = True
            self._notices.append(UtteranceEnds(end))
        return self._notices

    def _note_words(self, heard: Final) -> None:
        for word in heard.words:
            if self._last_word_end is None or word.end > self._last_word_end:
                if self.speech and not self._speaks:
                    self._notices.append(SpeechStarts(word.start))
                self._speaks = True
                self._last_word_end = word.end
                self._has_told_end = False
