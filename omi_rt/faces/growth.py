"""Segments that grow: what one speaker says in one go is one segment, sent again as it gets longer.

The pieces that a segment is made of are kept, so that a correction that concerns some of them only
can part them again: each part then is a segment of its own.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from attrs import define, field

from omi_rt.core.corrections import MAX_CORRECTED_SEGMENTS, MAX_KEPT_CHARACTERS
from omi_rt.core.segments import Segment
from omi_rt.core.sentences import ends_sentence
from omi_rt.core.speakers import Merged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omi_rt.core.speakers import Identified

GROWTH_PAUSE_SECONDS = 2.0
"""A speaker who goes on after a longer pause than that begins another segment."""
MAX_GROWN_SECONDS = 60.0
"""From the first word of a grown segment to its last."""
MAX_GROWN_CHARACTERS = 10_000
"""Of a grown segment, which is sent again as a whole: a minute of fast speech has 1,500."""


@define
class _Piece:
    """A segment of the session's."""

    id: str
    speaker: int
    start: int
    end: int
    text: str = field(repr=False)
    is_user: bool
    person_id: str | None

    @property
    def whose(self) -> tuple[int, bool, str | None]:
        return self.speaker, self.is_user, self.person_id


@define
class _Grown:
    """A segment as the client has it: under the id of its first piece."""

    channel: int
    pieces: list[_Piece]

    def as_segment(self) -> Segment:
        first = self.pieces[0]
        return Segment(
            id=first.id,
            speaker=first.speaker,
            start=first.start,
            end=max(piece.end for piece in self.pieces),
            channel=self.channel,
            words=[piece.text for piece in self.pieces],
            is_user=first.is_user,
            person_id=first.person_id,
        )

    def parted(self) -> list[_Grown]:
        """This one, or its parts where its pieces are no longer one speaker's."""
        parts = [_Grown(self.channel, self.pieces[:1])]
        for piece in self.pieces[1:]:
            if piece.whose == parts[-1].pieces[-1].whose:
                parts[-1].pieces.append(piece)
            else:
                parts.append(_Grown(self.channel, [piece]))
        return parts


class GrowingSegments:
    """The last segments of one session, as a client has them that replaces a segment by its id.

    Args:
        sample_rate: of the session, in Hz.
    """

    __slots__ = ("_characters", "_grown", "_last", "_longest", "_pause", "_pieces")

    def __init__(self, sample_rate: int) -> None:
        self._pause = round(GROWTH_PAUSE_SECONDS * sample_rate)
        self._longest = round(MAX_GROWN_SECONDS * sample_rate)
        self._grown: deque[_Grown] = deque()
        self._last: dict[int, _Grown] = {}
        """By channel."""
        self._pieces = 0
        self._characters = 0

    def add(self, segments: Iterable[Segment]) -> list[Segment]:
        """Take new segments of the session; returns those to be sent, new ones and grown ones."""
        return [grown.as_segment() for grown in self._take(segments)]

    def last(self, most: int) -> list[Segment]:
        """Return the last segments as they stand, ``most`` of them at most, in the order in which they began."""
        first = max(0, len(self._grown) - most)
        return [grown.as_segment() for grown in islice(self._grown, first, None)]

    def _take(self, segments: Iterable[Segment]) -> Iterable[_Grown]:
        changed: dict[str, _Grown] = {}
        for segment in segments:
            piece = _Piece(
                segment.id,
                segment.speaker,
                segment.start,
                segment.end,
                " ".join(segment.words),
                segment.is_user,
                segment.person_id,
            )
            self._pieces += 1
            self._characters += len(piece.text)
            grown = self._last.get(segment.channel)
            if grown is not None and self._goes_on(grown, piece):
                grown.pieces.append(piece)
            else:
                grown = self._last[segment.channel] = _Grown(segment.channel, [piece])
                self._grown.append(grown)
            changed[grown.pieces[0].id] = grown
        while len(self._grown) > len(self._last) and (
            self._pieces > MAX_CORRECTED_SEGMENTS or self._characters > MAX_KEPT_CHARACTERS
        ):
            gone = self._grown.popleft().pieces
            self._pieces -= len(gone)
            self._characters -= sum(len(piece.text) for piece in gone)
        return changed.values()

    def correct(self, correction: Merged | Identified) -> tuple[tuple[str, ...], list[Segment]]:
        """Apply a correction of the session's.

        Returns:
            The ids that it concerns, as the client has them, and the corrected segments.
        """
        concerned = set(correction.segment_ids)
        ids: list[str] = []
        corrected: list[Segment] = []
        kept: deque[_Grown] = deque()
        for grown in self._grown:
            pieces = [piece for piece in grown.pieces if piece.id in concerned]
            for piece in pieces:
                _apply(correction, piece)
            parts = grown.parted() if pieces else [grown]
            kept += parts
            if pieces:
                corrected += [part.as_segment() for part in parts]
                ids += [p.pieces[0].id for p in parts if concerned & {x.id for x in p.pieces}]
                if self._last.get(grown.channel) is grown:
                    self._last[grown.channel] = parts[-1]
        self._grown = kept
        return tuple(ids), corrected

    def _goes_on(self, grown: _Grown, piece: _Piece) -> bool:
        last = grown.pieces[-1]
        return (
            last.whose == piece.whose
            and last.start <= piece.start
            and piece.start - last.end <= self._pause
            and piece.end - grown.pieces[0].start <= self._longest
            and sum(len(each.text) for each in (*grown.pieces, piece)) <= MAX_GROWN_CHARACTERS
            and not ends_sentence(last.text)
        )


def _apply(correction: Merged | Identified, piece: _Piece) -> None:
    if isinstance(correction, Merged):
        piece.speaker = correction.into
        return
    identity = correction.identity
    piece.is_user = identity is not None and identity.is_user
    piece.person_id = None if identity is None else identity.person_id
