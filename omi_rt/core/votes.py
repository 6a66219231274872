"""Votes: which of an epoch's labels the words of each anchor got."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omi_rt.core.heard import LeadInWord

WINNING_SHARE = 0.6
"""A label must have this share of an anchor's word time to be the anchor's."""
WINNING_SECONDS = 1.0
"""A label must also have this much word time in the anchor."""

Label = tuple[int, int]
"""(channel, the provider's label): a voice, inside one epoch."""


@frozen
class HeardAgain:
    """A word of the session that a lead-in brought again."""

    start: int
    """Session position, in samples."""
    end: int
    channel: int
    """The channel of the session on which it was said."""
    label: Label
    """The label that it got when it was heard again."""


@frozen
class Vote:
    """How the words of one anchor were labelled on one channel."""

    anchor: int
    channel: int
    shares: Mapping[int, float]
    """Each label's share (0..1) of the anchor's own word time, so that a longer anchor has no stronger
    vote."""
    winner: Label | None
    """The label that is the anchor's; None where no label won."""
    words: tuple[HeardAgain, ...] = ()
    """The anchor's words that are the session's own, as they were heard again."""

    def is_against(self, label: Label) -> bool:
        """Whether most of the words got other labels, on the label's channel."""
        share = self.shares.get(label[1], 0.0)
        return label[0] == self.channel and share <= 1 - WINNING_SHARE


def heard_again(word: LeadInWord) -> HeardAgain | None:
    """The session's word that a word of a lead-in brings again; None where it is not the session's."""
    place = word.said_at
    if place is None:
        return None
    end = place.position + word.samples
    return HeardAgain(place.position, end, place.channel, (word.channel, word.label))


def count_votes(words: Iterable[LeadInWord], sample_rate: int) -> list[Vote]:
    """Count the votes of all anchors of which at least `WINNING_SECONDS` of words were heard."""
    times: defaultdict[tuple[int, int], defaultdict[int, int]] = defaultdict(
        lambda: defaultdict(int)
    )
    again: defaultdict[tuple[int, int], list[HeardAgain]] = defaultdict(list)
    for word in words:
        times[word.anchor, word.channel][word.label] += word.samples
        heard = heard_again(word)
        if heard is not None:
            again[word.anchor, word.channel].append(heard)
    votes = []
    for (anchor, channel), by_label in sorted(times.items()):
        total, least = sum(by_label.values()), WINNING_SECONDS * sample_rate
        if total < least:
            continue
        most, samples = max(by_label.items(), key=lambda item: item[1])
        winner = (channel, most) if samples >= max(least, WINNING_SHARE * total) else None
        shares = {each: time / total for each, time in by_label.items()}
        votes.append(Vote(anchor, channel, shares, winner, tuple(again[anchor, channel])))
    return votes
