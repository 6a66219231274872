"""Learns from the lead-in of the epoch that serves who has which label, before any word under it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.core.short_lead_in import ShortLeadIn
from omi_rt.core.votes import count_votes

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.heard import Heard
    from omi_rt.core.lead_in import LeadIn
    from omi_rt.core.transcript import Transcript
    from omi_rt.core.votes import Vote
    from omi_rt.deepgram.epoch import Epoch
    from omi_rt.deepgram.primer import Primer

_NO_CHANNELS: frozenset[int] = frozenset()


class Recognition:
    """What the session's own epoch has still to learn.

    Args:
        coverage: the session's audio.
        transcript: knows the speakers, and tells what is corrected.
        primer: is told what a lead-in was good for; None where there are none.
    """

    __slots__ = ("_coverage", "_primer", "_transcript", "_unheard", "_unheard_on")

    def __init__(self, coverage: Coverage, transcript: Transcript, primer: Primer | None) -> None:
        self._coverage = coverage
        self._transcript = transcript
        self._primer = primer
        self._unheard: LeadIn | ShortLeadIn | None = None
        """The lead-in in front of the session's audio whose votes have not been counted on all channels."""
        self._unheard_on = _NO_CHANNELS
        """Those channels: on each the votes are complete once a final covers any of the session's audio."""

    def begin(self, unheard: LeadIn | ShortLeadIn | None) -> None:
        """Begin with an epoch that serves from now on.

        ``unheard`` is its lead-in where that goes up right before the session's audio, else None.
        """
        self._unheard = unheard
        channels = self._coverage.audio_format.channels
        self._unheard_on = _NO_CHANNELS if unheard is None else frozenset(range(channels))

    def learn_at_once(self, epoch: Epoch, lead_in: LeadIn | ShortLeadIn, votes: list[Vote]) -> None:
        """Learn from votes that were counted already; words that come later are the tail's."""
        epoch.exchange.timeline.lead_in_words.clear()
        self._learn(epoch, lead_in, votes)

    def take(self, epoch: Epoch, heard: Heard) -> bool:
        """Learn what a final says of the lead-in; returns whether it has anything else to tell."""
        if self._unheard is not None and not self._unheard_on.isdisjoint(heard.channels):
            if heard.covered is None and not heard.words:
                # A final of the lead-in alone is for the votes alone.
                return False
            self._take_votes(self._unheard, epoch, heard)
        elif epoch.exchange.timeline.lead_in_words:
            words = epoch.exchange.timeline.take_lead_in_words(heard)
            if words and epoch.lead_in is not None:
                self._transcript.recall(epoch.labels, words, epoch.lead_in.whose)
        return True

    def _take_votes(self, lead_in: LeadIn | ShortLeadIn, epoch: Epoch, heard: Heard) -> None:
        """Count the votes on a final's channels."""
        self._unheard_on -= set(heard.channels)
        if not self._unheard_on:
            self._unheard = None
        words = epoch.exchange.timeline.take_lead_in_words(heard)
        votes = count_votes(words, self._coverage.audio_format.sample_rate)
        self._learn(epoch, lead_in, votes)
        if self._primer is None:
            return
        if isinstance(lead_in, ShortLeadIn):
            share = lead_in.recognised(votes, epoch.labels.contested, len(heard.channels))
            self._primer.note_short_heard(share)
        else:
            self._primer.note_heard(lead_in, votes, is_all=self._unheard is None)

    def _learn(self, epoch: Epoch, lead_in: LeadIn | ShortLeadIn, votes: list[Vote]) -> None:
        position = self._coverage.high_watermark
        self._transcript.learn(epoch.labels, votes, lead_in.whose, position)
