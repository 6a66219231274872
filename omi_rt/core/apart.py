"""Which voices of a session are not the same person's."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from omi_rt.core.voices import Voice
    from omi_rt.core.votes import Label

MAX_PAIRS = 1000
"""At most this many pairs are remembered; the oldest are forgotten first."""


class Apart:
    """Pairs of voices that had different labels in one epoch, on one channel."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        # The dictionary serves as an ordered set.
        self._pairs: dict[frozenset[Voice], None] = {}

    def note(self, one: Voice, another: Voice) -> None:
        """Note that two voices belong to two people."""
        if one != another:
            self._pairs[frozenset((one, another))] = None
            if len(self._pairs) > MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]

    def note_claims(self, claims: Mapping[Label, set[Voice]]) -> None:
        """Note which voices have different labels in one epoch and share no label on any channel."""
        together = {
            frozenset(pair) for claimants in claims.values() for pair in combinations(claimants, 2)
        }
        for (label, some), (other, more) in combinations(claims.items(), 2):
            if label[0] == other[0]:
                for one in some:
                    for another in more:
                        if frozenset((one, another)) not in together:
                            self.note(one, another)

    def has_pair(self, voices: Iterable[Voice]) -> bool:
        """Whether any two of the voices belong to two people."""
        return any(frozenset(pair) in self._pairs for pair in combinations(voices, 2))

    def merge(self, source: int, into: int) -> None:
        """Treat two numbers as one voice from now on, because they turned out to be one."""
        pairs = (frozenset(into if v == source else v for v in pair) for pair in self._pairs)
        self._pairs = {pair: None for pair in pairs if len(pair) == 2}
