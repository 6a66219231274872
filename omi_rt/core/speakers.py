"""Who speaks: the session's own speaker numbers, over all epochs, and whose they are.

Deepgram's labels start afresh on every connection, in no fixed order. A session's speaker keeps the
number under which it first appeared. What a label means is learned by *vote*: an epoch's lead-in
holds anchors, stretches of known voices, and the label that most of an anchor's words get is the
anchor's. "Speaker 0 is the user" is never assumed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from omi_rt.core.epoch import LeadInWord

WINNING_SHARE = 0.6
"""Of an anchor's word time that one label must have to be the anchor's."""
WINNING_SECONDS = 1.0
"""Of word time that the label must have at least."""
CONFLICT_MARGIN = 0.2
"""Two known identities on one label: one must be stronger by this share of itself to have it."""
MAX_CORRECTED_SEGMENTS = 200
"""The last ones of a session, which a correction names."""

Label = tuple[int, int]
"""(channel, the provider's label): a voice, inside one epoch."""


@frozen
class Identity:
    """Somebody known: the user, or a person of theirs."""

    person_id: str | None = None
    """None is the user."""

    @property
    def is_user(self) -> bool:
        """Whether it is the user."""
        return self.person_id is None


USER = Identity()


@define
class EpochLabels:
    """What one epoch's labels mean."""

    numbers: dict[Label, int] = field(factory=dict)
    """The session's speaker number."""
    identities: dict[Label, Identity] = field(factory=dict)
    """Known before the first word: the number comes with it."""


@frozen
class Win:
    """A label that an anchor has won."""

    anchor: int
    label: Label
    samples: int
    """Word time that the label has in the anchor."""


@frozen
class Merged:
    """Two numbers that turned out to be one voice."""

    source: int
    into: int
    segment_ids: tuple[str, ...]


@frozen
class Identified:
    """A speaker who turned out to be somebody known."""

    speaker: int
    identity: Identity
    segment_ids: tuple[str, ...]


def count_votes(words: Iterable[LeadInWord], sample_rate: int) -> list[Win]:
    """Tell which label each anchor has won, on each channel, if any."""
    spans: defaultdict[tuple[int, int], defaultdict[int, int]] = defaultdict(
        lambda: defaultdict(int)
    )
    for word in words:
        spans[word.anchor, word.channel][word.label] += word.samples
    wins = []
    for (anchor, channel), times in sorted(spans.items()):
        label, samples = max(times.items(), key=lambda item: item[1])
        if samples >= WINNING_SECONDS * sample_rate and samples >= WINNING_SHARE * sum(
            times.values()
        ):
            wins.append(Win(anchor, (channel, label), samples))
    return wins


class Speakers:
    """The session's speakers, numbered in order of first appearance."""

    __slots__ = ("_identities", "_merged", "_next", "_segments")

    def __init__(self) -> None:
        self._next = 0
        self._identities: dict[int, Identity] = {}
        self._merged: dict[int, int] = {}
        self._segments: deque[tuple[str, int]] = deque(maxlen=MAX_CORRECTED_SEGMENTS)

    def number_of(self, labels: EpochLabels, channel: int, label: int) -> int:
        """The speaker behind a label; an unknown one gets the next free number."""
        number = labels.numbers.get((channel, label))
        if number is None:
            identity = labels.identities.get((channel, label))
            number = self._number_with(identity) if identity is not None else None
            if number is None:
                number = self._next
                self._next += 1
                if identity is not None:
                    self._identities[number] = identity
            labels.numbers[channel, label] = number
        return self.current(number)

    def current(self, number: int) -> int:
        """The number that a speaker has now, after merges."""
        return self._merged.get(number, number)

    def identity_of(self, number: int) -> Identity | None:
        """Who that is, if a vote has told."""
        return self._identities.get(number)

    @property
    def identified(self) -> set[int]:
        """The numbers of those who are known."""
        return set(self._identities)

    def remember(self, segment_id: str, number: int) -> None:
        """Note a segment that went out, for later corrections."""
        self._segments.append((segment_id, number))

    def resolve(
        self, labels: EpochLabels, wins: Iterable[Win], anchors: Sequence[Identity | int]
    ) -> list[Merged | Identified]:
        """Learn what the labels of a primed epoch mean.

        Args:
            labels: of the epoch; filled in here.
            wins: what `count_votes` told.
            anchors: who each anchor is: a known identity, or a speaker of this session.

        Returns:
            What has become known of speakers that segments were sent of, to be told.
        """
        before = dict(self._identities)
        claims: defaultdict[Label, list[tuple[int, Identity | int]]] = defaultdict(list)
        for win in wins:
            claims[win.label].append((win.samples, anchors[win.anchor]))
        merges: list[Merged] = []
        for label, claimants in sorted(claims.items()):
            merges += self._claim(labels, label, claimants)
        identified = [
            Identified(number, identity, self._segments_of(number))
            for number, identity in sorted(self._identities.items())
            if before.get(number) != identity
        ]
        return [*merges, *identified]

    def _claim(
        self, labels: EpochLabels, label: Label, claimants: list[tuple[int, Identity | int]]
    ) -> list[Merged]:
        """Give one label to those who won it; they are one person."""
        numbers = {self.current(who) for _, who in claimants if isinstance(who, int)}
        strengths: dict[Identity, int] = {}
        for samples, who in claimants:
            identity = self._identities.get(self.current(who)) if isinstance(who, int) else who
            if identity is not None:
                strengths[identity] = max(strengths.get(identity, 0), samples)
        identity = _strongest(strengths)
        # Who is known to be somebody else does not share this voice.
        others = {n for n in numbers if self._identities.get(n) not in {None, identity}}
        numbers -= others
        if identity is not None:
            known_as = self._number_with(identity)
            if known_as is not None:
                numbers.add(known_as)
        if not numbers:
            if identity is not None:
                labels.identities[label] = identity
            return []
        into = min(numbers)
        merges = [self._merge(source, into) for source in sorted(numbers - {into})]
        if identity is not None:
            self._identities[into] = identity
        labels.numbers[label] = into
        return merges

    def _merge(self, source: int, into: int) -> Merged:
        segment_ids = self._segments_of(source)
        self._merged = {
            number: into if target == source else target for number, target in self._merged.items()
        }
        self._merged[source] = into
        self._identities.pop(source, None)
        self._segments = deque(
            ((each, into if number == source else number) for each, number in self._segments),
            maxlen=MAX_CORRECTED_SEGMENTS,
        )
        return Merged(source, into, segment_ids)

    def _segments_of(self, number: int) -> tuple[str, ...]:
        return tuple(each for each, of in self._segments if of == number)

    def _number_with(self, identity: Identity) -> int | None:
        return next((n for n, known in self._identities.items() if known == identity), None)


def _strongest(strengths: dict[Identity, int]) -> Identity | None:
    """The identity that a label is given to; of two that are about as strong neither."""
    ranked = sorted(strengths.items(), key=lambda item: -item[1])
    if not ranked:
        return None
    if len(ranked) > 1 and ranked[1][1] > ranked[0][1] * (1 - CONFLICT_MARGIN):
        return None
    return ranked[0][0]
