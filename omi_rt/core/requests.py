"""What a client has asked of the provider and has no answer to yet, over all epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from omi_rt.core.coverage import Coverage

if TYPE_CHECKING:
    from omi_rt.core.heard import Heard

ANSWER_SECONDS = 0.1
"""A Finalize that comes so soon after an answer, with nothing to finalise, is answered by that."""
SAME_SECONDS = 0.1
"""A final that was asked for may end so much before the audio that had come by then."""
CONFIGURE_SECONDS = 5.0
"""A provider that has not answered a Configure within this time will not answer it."""
MAX_KEYTERM_WORDS = 500
"""Of all key terms together. Deepgram's limit is 500 tokens, beyond which it says nothing and stops
transcribing; a word is a token or more."""


@define
class FinalizeRequests:
    """The client's requests to finalise what it has sent, each to be answered once.

    Requests that come while one is open wait for its answer, and are then one: so any number of them
    costs the provider one at a time.
    """

    _coverage: Coverage
    wanted: dict[int, int] = field(factory=dict)
    """By channel: the session position up to which finals are wanted; empty where no request waits."""
    _later: dict[int, int] = field(factory=dict)
    """The same for requests that wait."""
    _answered_at: float | None = None

    def ask(self, channel: int | None, now: float) -> range | None:
        """Take a request for one channel, counted from 0, or for all.

        Returns:
            The channels to be answered at once, because all that came is final; None where an
            answer is to come, or has just gone out.
        """
        coverage, end = self._coverage, self._coverage.backlog.end
        count = coverage.audio_format.channels
        asked = range(count) if channel is None else range(channel, channel + 1)
        if all(coverage.watermark_of(each) >= end for each in asked):
            if self._answered_at is not None and now - self._answered_at < ANSWER_SECONDS:
                return None
            self._answered_at = now
            return asked
        for each in asked:
            if each in self.wanted:
                self._later[each] = end
            elif coverage.watermark_of(each) < end:
                self.wanted[each] = end
        return None

    @property
    def position(self) -> int | None:
        """Session position up to which finals are wanted on any channel; None where none are."""
        return max(self.wanted.values(), default=None)

    def take_final(self, heard: Heard, *, from_finalize: bool, now: float) -> bool:
        """Note what a final covers; returns whether it answers a request.

        ``from_finalize`` is whether the provider says that it was asked for.
        """
        if not self.wanted or heard.covered is None:
            return False
        slack = self._coverage.audio_format.samples(SAME_SECONDS) if from_finalize else 0
        return self._answer(set(heard.channels), heard.covered + slack, now)

    def take_progress(self, now: float) -> list[int]:
        """Return the channels whose watermark has come so far without a final, to be answered."""
        coverage = self._coverage
        return [
            channel
            for channel in list(self.wanted)
            if self._answer({channel}, coverage.watermark_of(channel), now)
        ]

    def _answer(self, channels: set[int], position: int, now: float) -> bool:
        met = [each for each in channels if self.wanted.get(each, position + 1) <= position]
        for each in met:
            del self.wanted[each]
            later = self._later.pop(each, position)
            if later > position:
                self.wanted[each] = later
        if met:
            self._answered_at = now
        return bool(met)


@define
class ConfigureRequest:
    """The client's request for other options, of which there may be one at a time."""

    keyterms: tuple[str, ...] | None = field(default=None, repr=False)
    _asked_at: float | None = None

    def find_obstacle(self, keyterms: tuple[str, ...] | None, model: str, now: float) -> str | None:
        """Return Deepgram's code for why a request cannot be passed on; None where it can."""
        if self._asked_at is not None and now - self._asked_at < CONFIGURE_SECONDS:
            return "CONFIGURE_ALREADY_PENDING"
        if keyterms is not None and not model.startswith("nova-3"):
            return "CONFIGURE_KEYTERMS_NOT_SUPPORTED"
        if sum(len(term.split()) for term in keyterms or ()) > MAX_KEYTERM_WORDS:
            return "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"
        return None

    def begin(self, keyterms: tuple[str, ...] | None, now: float) -> None:
        """Note that a request goes up."""
        self.keyterms, self._asked_at = keyterms, now

    def end(self) -> bool:
        """Note an answer; returns whether one was awaited."""
        was_open, self._asked_at = self._asked_at is not None, None
        return was_open
