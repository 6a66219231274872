"""Which speaker labels the fake's diarization gives. It may take several voices for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.fake.language import VOICES

if TYPE_CHECKING:
    from random import Random

    from omi_rt.fake.recogniser import RecognisedWord


def _groups(groups: tuple[frozenset[int], ...]) -> tuple[frozenset[int], ...]:
    if len(frozenset().union(*groups)) < sum(map(len, groups)):
        raise ValueError("a voice is in one group only")
    return groups


@frozen
class Labelling:
    """What goes wrong in the diarization of one connection. Labels are never in a fixed order."""

    merged: tuple[frozenset[int], ...] = field(default=(), converter=_groups)
    """Groups of voices that get one label."""
    split: frozenset[int] = frozenset()
    """Voices that get one of two labels by chance, drawn anew for every final."""

    @classmethod
    def one_label(cls) -> Labelling:
        """Return a labelling in which everybody gets the same label."""
        return cls(merged=(frozenset(VOICES),))


class Labels:
    """The labels of one channel of one connection."""

    __slots__ = ("_labels", "_rng", "_split")

    def __init__(self, labelling: Labelling, rng: Random) -> None:
        """Draw the labels; where nothing goes wrong they are the voices, permuted."""
        self._rng = rng
        self._labels = dict(zip(VOICES, rng.sample(VOICES, len(VOICES)), strict=True))
        for group in labelling.merged:
            for voice in group:
                self._labels[voice] = self._labels[min(group)]
        self._split = labelling.split

    def of_final(self, words: tuple[RecognisedWord, ...]) -> list[int]:
        """The label of each word of one final."""
        second = {voice for voice in sorted(self._split) if self._rng.random() < 0.5}
        return [
            self._labels[word.voice] + (len(VOICES) if word.voice in second else 0)
            for word in words
        ]
