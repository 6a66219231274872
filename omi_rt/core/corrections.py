"""Which of the segments that went out a correction names.

A speaker's number may stand for several people: a connection may have given them one label. So a
segment is said to be somebody's only where its own words were heard again, in a lead-in, under the
label that is this person's there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omi_rt.core.segments import Segment
    from omi_rt.core.voices import Identity
    from omi_rt.core.votes import HeardAgain, Label

MAX_CORRECTED_SEGMENTS = 200
"""A correction can name at most this many of a session's segments, the last ones."""
VERIFIED_SHARE = 0.9
"""Of those words of a segment that were heard again, this share of the time must be under the label."""
COVERED_SHARE = 0.5
"""Of the time of all words of a segment, this share must have been heard again under the label."""


class SentSegments:
    """The last `MAX_CORRECTED_SEGMENTS` of a session."""

    __slots__ = ("_segments", "count")

    def __init__(self) -> None:
        self._segments: deque[Segment] = deque(maxlen=MAX_CORRECTED_SEGMENTS)
        self.count = 0
        """The number of segments that have gone out so far."""

    def remember(self, segment: Segment) -> None:
        """Keep a segment that goes out, without its words."""
        segment.words.clear()
        self.count += 1
        self._segments.append(segment)

    def merge(self, source: int, into: int) -> tuple[str, ...]:
        """Give the segments of one number to another; return their ids."""
        moved = [segment for segment in self._segments if segment.speaker == source]
        for segment in moved:
            segment.speaker = into
        return tuple(segment.id for segment in moved)

    def take_back(self, number: int) -> tuple[str, ...]:
        """Let all segments of a speaker be nobody's; return their ids."""
        taken = [segment for segment in self._segments if segment.speaker == number]
        for segment in taken:
            segment.is_user, segment.person_id = False, None
        return tuple(segment.id for segment in taken)

    def identify(
        self,
        number: int,
        identity: Identity,
        is_verified: Callable[[Segment], bool],
        since: int,
    ) -> tuple[str, ...]:
        """Let the verified segments of a speaker be somebody's; return the ids that this is new for.

        Args:
            number: the speaker's number.
            identity: whose segments they are.
            is_verified: tells whether a segment's words were heard again.
            since: segments from this one on, counted from the session's first, need no proof.
        """
        whose = identity.is_user, identity.person_id
        first = self.count - len(self._segments)
        found = [
            segment
            for place, segment in enumerate(self._segments, start=first)
            if segment.speaker == number
            and (segment.is_user, segment.person_id) != whose
            and (place >= since or is_verified(segment))
        ]
        for segment in found:
            segment.is_user, segment.person_id = whose
        return tuple(segment.id for segment in found)


def is_verified(segment: Segment, words: Sequence[HeardAgain], labels: set[Label]) -> bool:
    """Tell whether a segment was heard again under the right labels.

    Args:
        segment: a segment that went out.
        words: its speaker's words, as the lead-in brought them again.
        labels: the labels that are this speaker's.
    """
    right = heard = 0
    for word in words:
        shared = min(segment.end, word.end) - max(segment.start, word.start)
        if shared > 0 and word.channel == segment.channel == word.label[0]:
            heard += shared
            right += shared if word.label in labels else 0
    return right > 0 and right >= VERIFIED_SHARE * heard and right >= COVERED_SHARE * segment.spoken
