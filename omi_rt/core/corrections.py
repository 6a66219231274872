"""Which of the segments that went out a correction names.

A speaker's number may stand for several people: a connection may have given them one label. So a
segment is said to be somebody's only where its own words were heard again, in a lead-in, under the
label that is this person's there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.core.json import dumps, loads
from omi_rt.core.segments import Segment
from omi_rt.core.voices import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omi_rt.core.votes import HeardAgain, Label

MAX_CORRECTED_SEGMENTS = 200
"""A correction can name at most this many of a session's segments, the last ones."""
VERIFIED_SHARE = 0.9
"""Of those words of a segment that were heard again, this share of the time must be under the label."""
COVERED_SHARE = 0.5
"""Of the time of all words of a segment, this share must have been heard again under the label."""
MAX_KEPT_CHARACTERS = 262_144
"""Of the texts of a session's segments, or bytes where they are kept in UTF-8. Only finals with thousands
of words come near it: 200 usual segments have 15,000. The oldest segments are then forgotten sooner, and no
correction names them."""
_BLOCK_SEGMENTS = 25
_BLOCK_CHARACTERS = 16_384
"""The names and texts of so many segments stand in one text, or of fewer with so many characters."""
_NUMBERS = 5
"""The array has this many numbers for each segment."""
_SPEAKER = 0
"""The place of the speaker's among them."""


@frozen
class _Block:
    """The ids and texts of segments as one text."""

    count: int
    """The number of segments."""
    text: bytes = field(repr=False)
    """In UTF-8: one emoji makes a string four times as long in memory."""


class SentSegments:
    """The last `MAX_CORRECTED_SEGMENTS` of a session, as they stand after all corrections.

    What is searched stands in an array, and the rest in blocks of text: as objects they would take four
    times the memory, in pieces that outlive what was made beside them.
    """

    __slots__ = (
        "_block_bytes",
        "_blocks",
        "_characters",
        "_names",
        "_numbers",
        "_whose",
        "count",
    )

    def __init__(self) -> None:
        self._numbers = array("q")
        """Of each segment its speaker, start, end, channel and the samples that its words take."""
        self._whose: list[Identity | None] = []
        self._names: list[str] = []
        """The ids and texts of the youngest, in turns: a pair would take 72 bytes."""
        self._characters = 0
        """Those of the texts among them."""
        self._blocks: list[_Block] = []
        """The others."""
        self._block_bytes = 0
        self.count = 0
        """The number of segments that have gone out so far."""

    def remember(self, segment: Segment) -> None:
        """Keep what a segment says that goes out."""
        self.count += 1
        self._numbers.extend(
            (segment.speaker, segment.start, segment.end, segment.channel, segment.spoken)
        )
        self._whose.append(self._identity(segment))
        text = " ".join(segment.words)
        self._names += (segment.id, text)
        self._characters += len(text)
        young = len(self._names) // 2
        if young == _BLOCK_SEGMENTS or self._characters >= _BLOCK_CHARACTERS:
            block = _Block(young, dumps(self._names).encode())
            self._blocks.append(block)
            self._block_bytes += len(block.text)
            self._names, self._characters = [], 0
        while len(self._blocks) > 1 and (
            len(self._whose) - self._blocks[0].count >= MAX_CORRECTED_SEGMENTS
            or self._block_bytes > MAX_KEPT_CHARACTERS
        ):
            self._forget(self._blocks.pop(0))

    def _forget(self, block: _Block) -> None:
        self._block_bytes -= len(block.text)
        del self._whose[: block.count], self._numbers[: block.count * _NUMBERS]

    def _identity(self, segment: Segment) -> Identity | None:
        """Whose a segment is: the same object as for the one before, where it is the same."""
        if not segment.is_user and segment.person_id is None:
            return None
        identity, before = Identity(segment.person_id), self._whose[-1] if self._whose else None
        return before if before == identity else identity

    def last(self, most: int) -> list[Segment]:
        """Return the last segments, ``most`` of them at most, the oldest first."""
        first = max(self._first, len(self._whose) - most)
        names = [*chain.from_iterable(loads(block.text) for block in self._blocks), *self._names]
        return [
            self._at(index, names[2 * index], names[2 * index + 1])
            for index in range(first, len(names) // 2)
        ]

    def merge(self, source: int, into: int) -> tuple[str, ...]:
        """Give the segments of one number to another; return their ids."""
        moved = self._of(source)
        for index in moved:
            self._numbers[index * _NUMBERS + _SPEAKER] = into
        return self._ids(moved)

    def take_back(self, number: int) -> tuple[str, ...]:
        """Let all segments of a speaker be nobody's; return their ids."""
        taken = self._of(number)
        for index in taken:
            self._whose[index] = None
        return self._ids(taken)

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
            is_verified: tells by its times whether a segment's words were heard again.
            since: segments from this one on, counted from the session's first, need no proof.
        """
        gone = self.count - len(self._whose)
        found = [
            index
            for index in self._of(number)
            if self._whose[index] != identity
            and (gone + index >= since or is_verified(self._at(index)))
        ]
        return self._identify(found, identity)

    def identify_named(self, number: int, identity: Identity, ids: set[str]) -> tuple[str, ...]:
        """Let those segments of a speaker be somebody's that are named; return the ids that this is new for.

        No id at all means all of them.
        """
        others = [index for index in self._of(number) if self._whose[index] != identity]
        named = zip(others, self._ids(others), strict=True)
        return self._identify([index for index, name in named if not ids or name in ids], identity)

    def _identify(self, found: list[int], identity: Identity) -> tuple[str, ...]:
        for index in found:
            self._whose[index] = identity
        return self._ids(found)

    @property
    def _first(self) -> int:
        """The index of the first segment that counts: blocks are let go whole."""
        return max(0, len(self._whose) - MAX_CORRECTED_SEGMENTS)

    def _of(self, number: int) -> list[int]:
        """The indices of a speaker's segments."""
        speakers = self._numbers[_SPEAKER::_NUMBERS]
        return [index for index in range(self._first, len(speakers)) if speakers[index] == number]

    def _at(self, index: int, name: str = "", text: str = "") -> Segment:
        start = index * _NUMBERS
        speaker, first, end, channel, spoken = self._numbers[start : start + _NUMBERS]
        whose = self._whose[index]
        return Segment(
            id=name,
            speaker=speaker,
            start=first,
            end=end,
            channel=channel,
            words=[text],
            spoken=spoken,
            is_user=whose is not None and whose.is_user,
            person_id=None if whose is None else whose.person_id,
        )

    def _ids(self, indices: Sequence[int]) -> tuple[str, ...]:
        """The ids at ascending indices; each block is read once, where any is in it."""
        return tuple(self._each_id(indices))

    def _each_id(self, indices: Sequence[int]) -> Iterator[str]:
        starts = [*accumulate((block.count for block in self._blocks), initial=0)]
        read, names = -1, self._names
        for index in indices:
            number = bisect_right(starts, index) - 1
            if number != read:
                read, is_block = number, number < len(self._blocks)
                names = loads(self._blocks[number].text) if is_block else self._names
            yield names[2 * (index - starts[number])]


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
