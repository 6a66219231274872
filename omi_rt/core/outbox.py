"""What a session has told its client, numbered, and kept within bounds so that it can be told again."""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile
from typing import Any

from attrs import frozen

from omi_rt.core.budget import BacklogBudget
from omi_rt.core.json import dumps, loads

MAX_OUTBOX_BYTES = 1_048_576
RECENT_SECONDS = 60.0
"""So much is told again to a client that does not say what it has."""
_UNBOUNDED = 1 << 62
_ENTRY_BYTES = 200
"""Of memory beside the text: the entry, and the headers of its objects."""


@frozen
class Kept:
    """One message as it went out."""

    first: int
    last: int
    """The numbers in it: a message of several segments has several."""
    text: str
    told_at: float

    def __repr__(self) -> str:
        return f"Kept({self.first}..{self.last})"

    def after(self, seq: int) -> str:
        """The message without what has a number up to ``seq``, which is less than `last`."""
        if seq < self.first:
            return self.text
        return dumps([each for each in loads(self.text) if each["seq"] > seq])


@frozen
class MissingNumbers:
    """Numbers whose messages are not kept any more."""

    first: int
    last: int


class Outbox:
    """Numbers the messages of one session from 1, and keeps the last of them.

    It keeps `MAX_OUTBOX_BYTES` at most, and less where the outboxes of all sessions together hold much.
    """

    __slots__ = ("_budget", "_bytes", "_fell_out_at", "_is_kept", "_kept", "last_seq")

    def __init__(self, budget: BacklogBudget | None = None, *, is_kept: bool = True) -> None:
        """Start at 0. Where messages are not kept, they are numbered only."""
        self.last_seq = 0
        self._is_kept = is_kept
        self._budget = BacklogBudget(_UNBOUNDED) if budget is None else budget
        self._fell_out_at = -math.inf
        self._kept: deque[Kept] = deque()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the kept messages take."""
        return self._bytes

    def number(self, message: Any) -> Any:
        """Return ``message`` with the next number, or the segments of an array with one each."""
        if isinstance(message, list):
            numbered: list[dict[str, Any]] = []
            for each in message:
                self.last_seq += 1
                numbered.append({**each, "seq": self.last_seq})
            return numbered
        self.last_seq += 1
        return {**message, "seq": self.last_seq}

    def keep(self, count: int, text: str, now: float) -> None:
        """Keep the text of what got the last ``count`` numbers; the oldest goes where it is too much."""
        if not self._is_kept:
            return
        self._kept.append(Kept(self.last_seq - count + 1, self.last_seq, text, now))
        self._hold(len(text) + _ENTRY_BYTES)
        while self._kept and (
            self._bytes > MAX_OUTBOX_BYTES or self._budget.outbox_is_over(self._bytes)
        ):
            oldest = self._kept.popleft()
            self._fell_out_at = oldest.told_at
            self._hold(-len(oldest.text) - _ENTRY_BYTES)

    def close(self) -> None:
        """Let go of everything, because nobody can come back for it. It may be called twice."""
        self._is_kept = False
        self._kept.clear()
        self._hold(-self._bytes)

    def missing_after(self, seq: int) -> MissingNumbers | None:
        """What of the numbers after ``seq`` is not kept any more."""
        first_kept = self._kept[0].first if self._kept else self.last_seq + 1
        if first_kept <= seq + 1:
            return None
        return MissingNumbers(seq + 1, first_kept - 1)

    def take_after(self, seq: int, most_bytes: int) -> list[Kept]:
        """The messages after ``seq`` that are kept, in order: the first, and more up to ``most_bytes``."""
        newer = list(takewhile(lambda each: each.last > seq, reversed(self._kept)))
        taken: list[Kept] = []
        for each in reversed(newer):
            if taken and len(each.text) > most_bytes:
                break
            taken.append(each)
            most_bytes -= len(each.text)
        return taken

    def recent(self, now: float) -> int:
        """The number after which everything was told in the last `RECENT_SECONDS`.

        Where messages fell out of the store that were told within that time, they are after it as well.
        """
        oldest = self.last_seq + 1
        for each in reversed(self._kept):
            if now - each.told_at > RECENT_SECONDS:
                return oldest - 1
            oldest = each.first
        # Everything that is kept is recent: what fell out may be as well.
        return 0 if now - self._fell_out_at <= RECENT_SECONDS else oldest - 1

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._budget.hold_for_outbox(size)
