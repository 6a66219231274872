"""What one final brought, as values: words on the session clock, votes, and what was discarded."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.values import Struct
from omi_rt.core.voices import Place
from omi_rt.core.words import SAID_SECONDS

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Results
    from omi_rt.core.words import HeardWord


class Discard(Enum):
    """Why a word does not reach the transcript."""

    REPLAYED = "replayed"
    """It lies before the epoch's origin: an earlier epoch had it."""
    REPEATED = "repeated"
    """It was delivered before, in this epoch or the one before."""
    UNSENT = "unsent"
    """It lies behind all the audio that was sent."""
    FOREIGN = "foreign"
    """It lies in silence or a voice that was put in before the session's audio."""
    NO_CHANNEL = "no_channel"
    """The session does not have its channel."""
    SUPERSEDED = "superseded"
    """Its epoch had been replaced when it came."""


@frozen
class LeadInWord:
    """A word that was heard in an anchor: a vote on whose label that is."""

    anchor: int
    channel: int
    label: int
    samples: int
    said_at: Place | None = None
    """Where in the session it was said; None where the anchor is not from the session."""


class Heard(Struct, frozen=True, gc=False):
    """What one final brought; the audio that it covers is still in the backlog."""

    words: list[HeardWord]
    channels: range
    """The channels that it speaks for."""
    covered: int | None
    """Session position up to which it covers those channels; None where it covers no session audio."""
    discarded: Counter[Discard] | None = None
    """How many words were dropped, by reason; None where none were."""
    claims_unsent: bool = False
    """Whether it claims to cover more than was sent, or shows that an earlier final claimed too much."""

    remember_from: int | None = None
    """Session position where its final begins, if its words are yet to be remembered as said: that can wait
    until they have been told. None where it has been done."""

    def finalise(self, coverage: Coverage) -> bool:
        """Move the watermarks; return whether one moved.

        It must be called before the next final of the session is heard, by any epoch.
        """
        if self.covered is None:
            return False
        if self.remember_from is not None:
            first = self.words[0]
            said = coverage.said[first.channel]
            said.add(self.words, (self.remember_from, self.covered))
            said.forget(first.start - coverage.audio_format.samples(SAID_SECONDS))
        moved = False
        for channel in self.channels:
            moved |= coverage.finalise(channel, self.covered)
        return moved


def superseded(results: Results) -> Heard:
    """Return that a final brings nothing, because its epoch has been replaced."""
    discarded = counted(Discard.SUPERSEDED, len(results.words))
    return Heard([], range(0), None, discarded=discarded)


def counted(reason: Discard, count: int) -> Counter[Discard] | None:
    """Return ``count`` words that were dropped for one reason; None where there are none."""
    return Counter({reason: count}) if count else None
