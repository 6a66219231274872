"""Who speaks: the session's own speaker numbers, over all epochs, and whose they are.

Deepgram's labels start afresh on every connection, in no fixed order. A session's speaker keeps the
number under which it first appeared. What a label means is learned by *vote*: an epoch's lead-in
holds anchors, stretches of known voices, and the label that most of an anchor's words get is the
anchor's. "Speaker 0 is the user" is never assumed.

A provider may also give several people one label, or one person several. So nobody is recognised by
a label alone:

* Voices that once had different labels in one epoch are *apart*. A label that two such voices share
  is *contested*: it is nobody's, and what is said under it is in no later lead-in. A part of a
  number's words is enough: the number may stand for several people, one of whom has the label.
* A label identifies somebody only in an epoch that has given another voice another label. Until it
  has, the identity is *pending*.
* A speaker whose voice gets another label than the stored voice that it was taken for is nobody
  known any more.

Nor is a segment somebody's because its number is: the connection that gave the number may have heard
several people as one. What went out before is corrected only where its own words were heard again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from omi_rt.core.apart import Apart
from omi_rt.core.corrections import SentSegments, is_verified
from omi_rt.core.voices import Identity, Voice
from omi_rt.core.votes import WINNING_SECONDS, HeardAgain, Label, Vote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from omi_rt.core.segments import Segment
    from omi_rt.core.words import HeardWord

PART_SHARE = 0.1
PART_WORDS = 2
"""If this share of the words of a speaker's number is under a label, and so many words at least, one of the
number's voices has that label. A single word is more often a mistake: it alone is 15 % of a clip."""
MAX_LABELS = 128
"""So many labels of one epoch have a number of their own. Those that come after them share one, as if they
were contested: a provider that gives so many does not tell voices apart."""
MAX_SHARED_NUMBERS = 16
"""The numbers of at most this many contested labels are remembered, by the speakers who share them."""


@define
class EpochLabels:
    """What one epoch's labels mean.

    (Most sets stay empty: a frozen one that is replaced takes 216 bytes less until then.)
    """

    numbers: dict[Label, int] = field(factory=dict)
    """The session's speaker number behind each label."""
    identities: dict[Label, Identity] = field(factory=dict)
    """Who each label is, where a vote has told it before the first word under that label has come; with
    that word the label gets a number too."""
    pending: dict[Label, Identity] = field(factory=dict)
    """Who each label would be if this epoch told voices apart, which it has not shown yet."""
    contested: frozenset[Label] = frozenset()
    """Labels that are shared by voices that are apart."""
    stored: dict[Label, set[Identity]] = field(factory=dict)
    """Whose stored voices won each label, be it contested or not."""
    heard: dict[Label, int] = field(factory=dict)
    """Samples of the session's words under each label, counted while an identity is pending."""
    unproven: frozenset[Label] = frozenset()
    """Labels that somebody known and the contrast shared at first. What was said under them before
    another label was heard may have been said by anybody."""
    again: list[tuple[int, HeardAgain]] = field(factory=list)
    """Words of the session that the lead-in brought again, each with the number that its speaker had
    then."""
    since: int | None = None
    """The number of segments that had gone out when the first votes were counted; None before that."""


@frozen
class Merged:
    """Two numbers that turned out to be one voice."""

    source: int
    into: int
    segment_ids: tuple[str, ...]


@frozen
class Identified:
    """A speaker who turned out to be somebody known, or not to be after all."""

    speaker: int
    identity: Identity | None
    """None takes back what was told of this speaker before."""
    segment_ids: tuple[str, ...]


class Speakers:
    """The session's speakers, numbered in order of first appearance."""

    __slots__ = ("_apart", "_merged", "_next", "_sent", "_shared", "identities")

    def __init__(self) -> None:
        self._next = 0
        self.identities: dict[int, Identity] = {}
        """Who those are that are known, by their numbers."""
        self._merged: dict[int, int] = {}
        self._sent = SentSegments()
        self._apart = Apart()
        self._shared: dict[frozenset[int], int] = {}

    def number_of(self, labels: EpochLabels, channel: int, label: int) -> int:
        """The number of the speaker behind a label; an unknown speaker gets the next free number."""
        number = labels.numbers.get((channel, label))
        if number is None:
            identity = labels.identities.get((channel, label))
            if identity is None and self._is_too_many(labels, (channel, label)):
                return self._contest(labels, (channel, label), set())
            number = self._number_with(identity) if identity is not None else None
            if number is None:
                number = self._new_number()
                if identity is not None:
                    self.identities[number] = identity
                self._note_newcomer(labels, (channel, label), number)
            self._assign(labels, (channel, label), number)
        # `current`, which every final would call.
        return self._merged.get(number, number)

    def expect(self, labels: EpochLabels, word_labels: Iterable[Label]) -> dict[Label, int]:
        """The numbers that labels have, or would get if they came in this order. Nothing changes."""
        expected: dict[Label, int] = {}
        upcoming, crowd = self._next, self._shared.get(frozenset())
        for label in word_labels:
            if label in expected:
                continue
            number = labels.numbers.get(label)
            identity = labels.identities.get(label)
            if number is None and identity is not None:
                number = self._number_with(identity)
            elif number is None and self._is_too_many(labels, label):
                if crowd is None:
                    crowd, upcoming = upcoming, upcoming + 1
                number = crowd
            if number is None:
                number, upcoming = upcoming, upcoming + 1
            expected[label] = self.current(number)
        return expected

    def current(self, number: int) -> int:
        """The number that a speaker has now, after merges."""
        return self._merged.get(number, number)

    def identity_of(self, number: int) -> Identity | None:
        """Who the speaker with this number is; None where no vote has told it."""
        return self.identities.get(number)

    def identities_of(self, numbered: Iterable[tuple[int, Any]]) -> dict[int, Identity]:
        """Who those of the given numbers are that are known."""
        known = self.identities
        return {number: known[number] for number, _ in numbered if number in known}

    @property
    def identified(self) -> set[int]:
        """The numbers of those who are known."""
        return set(self.identities)

    def recognises(self, labels: EpochLabels) -> bool:
        """Whether any label of an epoch stands for somebody known."""
        return bool(labels.identities) or any(
            self.current(number) in self.identities for number in labels.numbers.values()
        )

    def remember(self, segment: Segment) -> None:
        """Note a segment that goes out, for later corrections."""
        self._sent.remember(segment)

    def last_segments(self, most: int) -> list[Segment]:
        """Return the last segments that went out as they stand, ``most`` of them at most, the oldest first."""
        return self._sent.last(most)

    def resolve(
        self, labels: EpochLabels, votes: Sequence[Vote], anchors: Sequence[Voice | None]
    ) -> list[Merged | Identified]:
        """Learn what the labels of a primed epoch mean.

        Args:
            labels: the epoch's labels, which are filled in here.
            votes: what `count_votes` returned.
            anchors: whose voice each anchor is; None stands for the voice of nobody in the session.

        Returns:
            What the device must be told about speakers of whom segments have been sent.
        """
        before = dict(self.identities)
        if labels.since is None:
            labels.since = self._sent.count
        claims: defaultdict[Label, set[Voice]] = defaultdict(set)
        partly: defaultdict[Label, set[Voice]] = defaultdict(set)
        for vote in votes:
            who = anchors[vote.anchor]
            if isinstance(who, int):
                labels.again += [(who, word) for word in vote.words]
                under = Counter(word.label[1] for word in vote.words)
                for each, share in vote.shares.items():
                    if share >= PART_SHARE and under[each] >= PART_WORDS:
                        partly[vote.channel, each].add(self.current(who))
            if who is None:
                heard_as = ((vote.channel, each) for each in vote.shares)
                labels.unproven |= {each for each in heard_as if not vote.is_against(each)}
            elif vote.winner is not None:
                claims[vote.winner].add(self.current(who) if isinstance(who, int) else who)
        self._apart.note_claims(claims)
        self._take_back(claims)
        merges: list[Merged] = []
        for label, claims_of_label in sorted(claims.items()):
            # A label on one channel may have merged those who claim another on the next.
            claimants = self._current_voices(claims_of_label)
            labels.stored[label] = {who for who in claimants if isinstance(who, Identity)}
            has_contrast = any(vote.is_against(label) for vote in votes)
            if self._apart.has_pair(claimants | self._current_voices(partly[label])):
                self._contest(labels, label, {who for who in claimants if isinstance(who, int)})
                continue
            merges += self._claim(labels, label, claimants, has_contrast=has_contrast)
        return [*merges, *self._identified_since(before, labels)]

    def confirm(
        self, labels: EpochLabels, words: Iterable[HeardWord], sample_rate: int
    ) -> list[Merged | Identified]:
        """Grant pending identities when the session's own words show that voices are told apart."""
        if not labels.pending:
            return []
        for word in words:
            label = word.channel, word.label
            labels.heard[label] = labels.heard.get(label, 0) + word.end - word.start
        least = WINNING_SECONDS * sample_rate
        shown = [label for label, samples in labels.heard.items() if samples >= least]
        before = dict(self.identities)
        merges: list[Merged] = []
        for label, identity in list(labels.pending.items()):
            if any(each[0] == label[0] and each != label for each in shown):
                del labels.pending[label]
                number = labels.numbers.get(label)
                numbers = set() if number is None else {self.current(number)}
                merges += self._grant(labels, label, identity, numbers)
        return [*merges, *self._identified_since(before, labels)]

    def recall(
        self, labels: EpochLabels, words: Iterable[tuple[int, HeardAgain]]
    ) -> list[Identified]:
        """Take words of the session, with their speakers' numbers, that an epoch has heard again.

        A label for which they stand turns out to be contested where voices that are apart share it.
        """
        labels.again += words
        before = dict(self.identities)
        under = Counter((word.label, self.current(who)) for who, word in labels.again)
        of_number = Counter(self.current(who) for who, _ in labels.again)
        sharing: defaultdict[Label, set[Voice]] = defaultdict(set)
        for (label, number), count in under.items():
            if count >= PART_WORDS and count >= PART_SHARE * of_number[number]:
                sharing[label].add(number)
        for label, voices in sharing.items():
            known = {labels.identities[label]} if label in labels.identities else set()
            if label not in labels.contested and self._apart.has_pair(voices | known):
                labels.identities.pop(label, None)
                labels.pending.pop(label, None)
                self._contest(labels, label, {who for who in voices if isinstance(who, int)})
        return self._identified_since(before, labels)

    def assign(
        self, number: int, identity: Identity, segment_ids: Sequence[str] = ()
    ) -> list[Merged | Identified] | None:
        """Let a speaker be somebody because the client says so, who knows best.

        Args:
            number: the speaker's, now or before a merge.
            identity: whose voice it is.
            segment_ids: the segments that are corrected; none means all of the speaker's.

        Returns:
            What that changes, to be told; None where there is no such speaker.
        """
        if not 0 <= number < self._next:
            return None
        number = self.current(number)
        told: list[Merged | Identified] = []
        known_as = self._number_with(identity)
        if known_as is not None and known_as != number:
            if self._apart.has_pair({known_as, number}):
                # Two voices cannot be one person: the other was taken for this one.
                del self.identities[known_as]
                told.append(Identified(known_as, None, self._sent.take_back(known_as)))
            else:
                into = min(known_as, number)
                told.append(self._merge(max(known_as, number), into))
                number = into
        self.identities[number] = identity
        ids = self._sent.identify_named(number, identity, set(segment_ids))
        return [*told, Identified(number, identity, ids)]

    def introduce(
        self, labels: EpochLabels, label: Label, identity: Identity
    ) -> list[Merged | Identified]:
        """Let a label be somebody because whoever gives the labels says so with a word.

        Only who was nobody known becomes somebody, and only whom nobody else was taken for: what
        contradicts this is for `assign`, in which a person says it once.

        Returns:
            What that changes, to be told.
        """
        number = labels.numbers.get(label)
        if number is None:
            labels.identities[label] = identity
            return []
        number = self.current(number)
        if number in self.identities or self._number_with(identity) is not None:
            return []
        return self.assign(number, identity) or []

    # What a vote tells.

    def _claim(
        self, labels: EpochLabels, label: Label, claimants: set[Voice], *, has_contrast: bool
    ) -> list[Merged]:
        """Give one label to those who won it, if they can be one person."""
        numbers = {who for who in claimants if isinstance(who, int)}
        known = {who for who in claimants if isinstance(who, Identity)}
        known |= {self.identities[n] for n in numbers if n in self.identities}
        if len(known) > 1 or self._apart.has_pair(claimants | known):
            self._contest(labels, label, numbers)
            return []
        if not known:
            return self._join(labels, label, numbers)
        (identity,) = known
        if has_contrast:
            return self._grant(labels, label, identity, numbers)
        labels.pending[label] = identity
        # Nobody speaks under a known number before it is certain.
        return self._join(labels, label, numbers - self.identities.keys())

    def _grant(
        self, labels: EpochLabels, label: Label, identity: Identity, numbers: set[int]
    ) -> list[Merged]:
        """Make a label somebody known, and those who share it one speaker."""
        known_as = self._number_with(identity)
        members = numbers if known_as is None else numbers | {known_as}
        if self._apart.has_pair({*members, identity}):
            self._contest(labels, label, numbers)
            return []
        if not members:
            labels.identities[label] = identity
            return []
        merges = self._join(labels, label, members)
        self.identities[min(members)] = identity
        return merges

    def _join(self, labels: EpochLabels, label: Label, numbers: set[int]) -> list[Merged]:
        """Make a label one speaker: the lowest of the numbers, if there is any."""
        if not numbers:
            return []
        into = min(numbers)
        merges = [self._merge(source, into) for source in sorted(numbers - {into})]
        self._assign(labels, label, into)
        return merges

    def _contest(self, labels: EpochLabels, label: Label, numbers: set[int]) -> int:
        """Give a label that several people share to none of them, but to the same number again.

        Returns that number.
        """
        labels.contested |= {label}
        sharing = frozenset(numbers)
        number = self._shared.get(sharing)
        if number is None:
            number = self._shared[sharing] = self._new_number()
            if len(self._shared) > MAX_SHARED_NUMBERS:
                del self._shared[next(iter(self._shared))]
        labels.numbers[label] = number
        return number

    def _take_back(self, claims: dict[Label, set[Voice]]) -> None:
        """Forget whom a speaker was taken for, where the stored voice now has another label."""
        for claimants in claims.values():
            for who in claimants:
                if isinstance(who, Identity):
                    known_as = self._number_with(who)
                    if known_as is not None and self._apart.has_pair({known_as, who}):
                        del self.identities[known_as]

    def _identified_since(
        self, before: dict[int, Identity], labels: EpochLabels
    ) -> list[Identified]:
        """Tell whose earlier segments are after all, and whose are nobody's any more."""
        told = []
        for number in sorted(self.identities.keys() | before.keys() - self._merged.keys()):
            identity = self.identities.get(number)
            if before.get(number, identity) != identity:
                told.append(Identified(number, None, self._sent.take_back(number)))
            segment_ids = () if identity is None else self._verify(number, identity, labels)
            if segment_ids:
                told.append(Identified(number, identity, segment_ids))
        return told

    def _verify(self, number: int, identity: Identity, labels: EpochLabels) -> tuple[str, ...]:
        """Correct the segments of a speaker whose words have the speaker's labels in this epoch."""
        own = {label for label, of in labels.numbers.items() if self.current(of) == number}
        own -= labels.contested | labels.unproven
        words = [word for of, word in labels.again if self.current(of) == number]
        # Segments that went out since this epoch took over need no proof: it gave them their labels.
        since = labels.since if own and labels.since is not None else self._sent.count
        return self._sent.identify(
            number, identity, lambda segment: is_verified(segment, words, own), since
        )

    # Numbers.

    def _current_voices(self, voices: Iterable[Voice]) -> set[Voice]:
        return {self.current(who) if isinstance(who, int) else who for who in voices}

    def _new_number(self) -> int:
        self._next += 1
        return self._next - 1

    def _is_too_many(self, labels: EpochLabels, label: Label) -> bool:
        """Whether a label that has no number yet is to get none of its own."""
        return len(labels.numbers) >= MAX_LABELS and label not in labels.pending

    def _note_newcomer(self, labels: EpochLabels, label: Label, number: int) -> None:
        """Note that a new speaker is none of those whose stored voices won other labels on the channel."""
        for each, known in labels.stored.items():
            if each[0] == label[0] and each != label:
                for who in known:
                    self._apart.note(number, who)

    def _assign(self, labels: EpochLabels, label: Label, number: int) -> None:
        """Give a label its number; whoever has another label on the same channel is somebody else."""
        for each, other in labels.numbers.items():
            if each[0] == label[0] and each != label and each not in labels.contested:
                self._apart.note(number, self.current(other))
        labels.numbers[label] = number

    def _merge(self, source: int, into: int) -> Merged:
        segment_ids = self._sent.merge(source, into)
        self._merged = {
            number: into if target == source else target for number, target in self._merged.items()
        }
        self._merged[source] = into
        self.identities.pop(source, None)
        self._apart.merge(source, into)
        return Merged(source, into, segment_ids)

    def _number_with(self, identity: Identity) -> int | None:
        return next((n for n, known in self.identities.items() if known == identity), None)
