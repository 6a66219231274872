"""Where one channel's finals begin and end: endpointing, long utterances, silence, Finalize.

Finals follow each other without a hole, and each ends in a pause between two words, never inside a
word: then a client that starts again from a final's end gets every word whole. Where they end
depends on the audio alone, not on the pieces it came in. All this is so as long as the borders are
clean; `omi_rt.fake.borders` tells how else they can be.

What Finalize brings is one of:

=================  ==============================================================================
``all``            a final of all that is buffered, up to the word that is being said
``never``          nothing
``speech``         the same as ``all`` where words are buffered, and nothing in silence
``last_word``      a final that ends where the last buffered word ends, and nothing in silence
``no_length``      an empty final of no length; what is buffered stays buffered
=================  ==============================================================================
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal, get_args

from attrs import field, frozen

from omi_rt.fake.borders import WITHIN_WORDS, Borders
from omi_rt.fake.recogniser import GAP_SECONDS, RecognisedWord, Recogniser

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from omi_rt.fake.language import Samples

GUARD_SECONDS = GAP_SECONDS
"""Only this far behind the newest sample is it certain that no word has begun."""
UNENDED_SECONDS = 3.0
"""This much silence ends an utterance where endpointing is off."""

FinalizeAnswer = Literal["all", "never", "speech", "last_word", "no_length"]
FINALIZE_ANSWERS: tuple[FinalizeAnswer, ...] = get_args(FinalizeAnswer)


@frozen
class Final:
    """A stretch of the channel that is decided, in samples of the stream."""

    start: int
    end: int
    words: tuple[RecognisedWord, ...] = field(repr=False)
    speech_final: bool = False
    from_finalize: bool = False
    starts_sentence: bool = True
    ends_sentence: bool = False


class ChannelTranscriber:
    """The finals of one channel of linear16."""

    __slots__ = (
        "_answer",
        "_borders",
        "_empty_after",
        "_endpointing",
        "_guard",
        "_in_sentence",
        "_last_end",
        "_max_utterance",
        "_minimum",
        "_pause",
        "_pending",
        "_rate",
        "_recogniser",
        "_spans",
    )

    def __init__(
        self,
        sample_rate: int,
        *,
        endpointing: float | None,
        max_utterance: float,
        empty_spans: Iterable[float] = (),
        minimum_finalize: float = 0.0,
        answer: FinalizeAnswer = "all",
        borders: Borders | None = None,
    ) -> None:
        """Start at the beginning of a stream.

        Args:
            sample_rate: the stream's rate, in Hz.
            endpointing: seconds of pause that end an utterance, or None for no endpointing.
            max_utterance: seconds of speech after which a final comes at the next gap.
            empty_spans: seconds of silence up to each empty final in turn; when they are used up,
                or if there are none, silence brings no finals.
            minimum_finalize: seconds of audio that Finalize needs to bring a final; with 0 it always
                brings one.
            answer: what Finalize brings.
            borders: how the finals meet; None means that all borders are clean.
        """
        self._rate = sample_rate
        self._recogniser = Recogniser(sample_rate)
        self._guard = self._samples(GUARD_SECONDS)
        self._endpointing = endpointing is not None
        pause = UNENDED_SECONDS if endpointing is None else max(endpointing, GUARD_SECONDS)
        self._pause = self._samples(pause)
        self._max_utterance = self._samples(max_utterance)
        self._minimum = self._samples(minimum_finalize)
        self._answer = answer
        self._borders = borders or Borders("clean", sample_rate, Random(0))
        self._spans: Iterator[float] = iter(empty_spans)
        self._empty_after = self._next_span()
        self._pending: list[RecognisedWord] = []
        self._last_end = 0
        self._in_sentence = False

    @property
    def position(self) -> int:
        """Samples taken so far."""
        return self._recogniser.position

    def feed(self, samples: Samples) -> list[Final]:
        """Take the next samples; return the finals that they decide."""
        finals: list[Final] = []
        for word in self._recogniser.feed(samples):
            self._add(word, finals)
        open_since = self._recogniser.open_since
        quiet_until = self.position - self._guard if open_since is None else open_since
        self._quiet_until(quiet_until, finals)
        return finals

    @property
    def guess(self) -> Final | None:
        """The words that are in no final yet; None without any. Nothing is decided by it."""
        if not self._pending:
            return None
        return Final(
            self._last_end,
            self._pending[-1].end,
            tuple(self._pending),
            starts_sentence=not self._in_sentence,
        )

    def finalize(self) -> list[Final]:
        """Answer Finalize."""
        match self._answer:
            case "never":
                return []
            case "no_length":
                end = self._last_end
                return [Final(end, end, (), from_finalize=True, starts_sentence=False)]
            case "speech" | "last_word" if not self._pending:
                return []
            case "last_word":
                end = self._pending[-1].end
            case _:
                end = self._buffered_until()
        if not self._pending and end - self._last_end < self._minimum:
            return []
        return [self._final(end, from_finalize=True)]

    def _buffered_until(self) -> int:
        """Up to where Finalize may decide, so that the word that is being said comes in a later final."""
        open_since = self._recogniser.open_since
        if open_since is None or self._borders.habit in {"in_second", "in_halves"}:
            return self.position
        before = self._pending[-1].end if self._pending else self._last_end
        return (before + open_since) // 2

    def close(self, *, empty: bool) -> list[Final]:
        """End the stream; return the last finals, with one of silence alone only if ``empty``."""
        finals: list[Final] = []
        for word in self._recogniser.flush():
            self._add(word, finals)
        if self._pending or (empty and self.position > self._last_end):
            finals.append(self._final(self.position))
        return finals

    def _add(self, word: RecognisedWord, finals: list[Final]) -> None:
        self._quiet_until(word.start, finals)
        if self._pending and word.end - self._pending[0].start > self._max_utterance:
            if self._borders.habit in WITHIN_WORDS:
                border = self._borders.within(word)
                before, after = self._borders.split(word, border)
                self._pending += before
                finals.append(self._final(border))
                self._pending += after
                return
            finals.append(self._final((self._pending[-1].end + word.start) // 2))
        self._pending.append(word)

    def _quiet_until(self, position: int, finals: list[Final]) -> None:
        """Decide what follows from the fact that no other word begins before ``position``."""
        if self._pending:
            last = self._pending[-1].end
            if position - last >= self._pause:
                # The middle of the pause is clear of both words even where their borders are vague.
                finals.append(self._final(last + self._pause // 2, ends=True))
        while (
            self._empty_after is not None
            and not self._pending
            and position - self._last_end >= self._empty_after
        ):
            finals.append(self._final(self._last_end + self._empty_after))
            self._empty_after = self._next_span()

    def _final(self, end: int, *, ends: bool = False, from_finalize: bool = False) -> Final:
        end = max(end, self._last_end)
        start, words = self._borders.blur(self._last_end, end, tuple(self._pending))
        final = Final(
            start,
            end,
            words,
            speech_final=ends and self._endpointing,
            from_finalize=from_finalize,
            starts_sentence=not self._in_sentence,
            ends_sentence=ends,
        )
        if self._pending:
            self._in_sentence = not ends
            self._pending.clear()
        self._last_end = end
        return final

    def _next_span(self) -> int | None:
        span = next(self._spans, None)
        return None if span is None else self._samples(span)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self._rate)
