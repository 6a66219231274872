"""Who speaks: the session's own speaker numbers, over all epochs.

Deepgram's labels start afresh on every connection, in no fixed order. A session's speaker keeps the
number under which it first appeared.
"""

from __future__ import annotations

from attrs import define, field, frozen


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
    """What one epoch's labels mean: (channel, label) to the session's speaker number."""

    numbers: dict[tuple[int, int], int] = field(factory=dict)


class Speakers:
    """The session's speakers, numbered in order of first appearance."""

    __slots__ = ("_identities", "_next")

    def __init__(self) -> None:
        self._next = 0
        self._identities: dict[int, Identity] = {}

    def number_of(self, labels: EpochLabels, channel: int, label: int) -> int:
        """The speaker behind a label; an unknown one gets the next free number."""
        number = labels.numbers.get((channel, label))
        if number is None:
            number = self._next
            self._next += 1
            labels.numbers[channel, label] = number
        return number

    def identity_of(self, number: int) -> Identity | None:
        """Who that is, if a vote has told."""
        return self._identities.get(number)
