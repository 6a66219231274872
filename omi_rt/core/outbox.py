"""What a session has told its client, numbered, and kept within bounds so that it can be told again.

All but the youngest messages are kept in blocks of text: the objects of a short message take twice the memory
of what it says, and where they outlive those of other sessions, the allocator cannot give any of it back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import frozen

from omi_rt.core.budget import BacklogBudget
from omi_rt.core.json import dumps, loads
from omi_rt.core.values import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_OUTBOX_BYTES = 1_048_576
RECENT_SECONDS = 60.0
"""So much is told again to a client that does not say what it has."""
_UNBOUNDED = 1 << 62
_ENTRY_BYTES = 80
"""Of memory that a message takes in its block beside its text: numbers, and what marks its quotation marks."""
_BLOCK_BYTES = 4096
"""Messages with so much text are put into a block."""


class Kept(Struct, frozen=True, gc=False):
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
class _Block:
    """Messages as one text."""

    last: int
    """The last number in it."""
    text: bytes
    """In UTF-8: one emoji makes a string four times as long in memory."""

    def __repr__(self) -> str:
        return f"_Block(..{self.last})"

    @classmethod
    def of(cls, messages: list[Kept]) -> _Block:
        """Write messages, which are in order."""
        rows = [(each.first, each.last, each.text, each.told_at) for each in messages]
        return cls(messages[-1].last, dumps(rows).encode())

    def read(self) -> list[Kept]:
        return [Kept(*row) for row in loads(self.text)]


@frozen
class MissingNumbers:
    """Numbers whose messages are not kept any more."""

    first: int
    last: int


class Outbox:
    """Numbers the messages of one session from 1, and keeps the last of them.

    It keeps `MAX_OUTBOX_BYTES` at most, and less where the outboxes of all sessions together hold much.
    """

    __slots__ = (
        "_blocks",
        "_budget",
        "_bytes",
        "_fell_out_at",
        "_is_kept",
        "_oldest",
        "_youngest",
        "_youngest_bytes",
        "last_seq",
    )

    def __init__(self, budget: BacklogBudget | None = None, *, is_kept: bool = True) -> None:
        """Start at 0. Where messages are not kept, they are numbered only."""
        self.last_seq = 0
        self._is_kept = is_kept
        self._budget = BacklogBudget(_UNBOUNDED) if budget is None else budget
        self._fell_out_at = -math.inf
        self._oldest: list[Kept] = []
        """What is left of the block from which messages are let go."""
        self._blocks: list[_Block] = []
        self._youngest: list[Kept] = []
        """What makes no block yet."""
        self._youngest_bytes = 0
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
        self._youngest.append(Kept(self.last_seq - count + 1, self.last_seq, text, now))
        characters = len(text)
        self._youngest_bytes += characters
        size = _ENTRY_BYTES + (characters if text.isascii() else len(text.encode()))
        # `_hold`, which every message would call.
        self._bytes += size
        self._budget.hold_for_outbox(size)
        if self._youngest_bytes >= _BLOCK_BYTES:
            self._blocks.append(_Block.of(self._youngest))
            self._youngest, self._youngest_bytes = [], 0
        while self._bytes and (
            self._bytes > MAX_OUTBOX_BYTES or self._budget.outbox_is_over(self._bytes)
        ):
            self._let_go_of_oldest()

    def _let_go_of_oldest(self) -> None:
        if not self._oldest:
            if self._blocks:
                self._oldest.extend(self._blocks.pop(0).read())
            else:
                self._oldest.extend(self._youngest)
                self._youngest, self._youngest_bytes = [], 0
        oldest = self._oldest.pop(0)
        self._fell_out_at = oldest.told_at
        self._hold(-_size(oldest.text))

    def close(self) -> None:
        """Let go of everything, because nobody can come back for it. It may be called twice."""
        self._is_kept = False
        self._oldest.clear()
        self._blocks.clear()
        self._youngest.clear()
        self._hold(-self._bytes)

    def missing_after(self, seq: int) -> MissingNumbers | None:
        """What of the numbers after ``seq`` is not kept any more."""
        oldest = next(self._after(0), None)
        first_kept = self.last_seq + 1 if oldest is None else oldest.first
        if first_kept <= seq + 1:
            return None
        return MissingNumbers(seq + 1, first_kept - 1)

    def take_after(self, seq: int, most_bytes: int) -> list[Kept]:
        """The messages after ``seq`` that are kept, in order: the first, and more up to ``most_bytes``."""
        taken: list[Kept] = []
        for each in self._after(seq):
            if taken and _size(each.text) > most_bytes:
                break
            taken.append(each)
            most_bytes -= _size(each.text)
        return taken

    def recent(self, now: float) -> int:
        """The number after which everything was told in the last `RECENT_SECONDS`.

        Where messages fell out of the store that were told within that time, they are after it as well.
        """
        oldest = self.last_seq + 1
        for each in self._newest_first():
            if now - each.told_at > RECENT_SECONDS:
                return oldest - 1
            oldest = each.first
        # Everything that is kept is recent: what fell out may be as well.
        return 0 if now - self._fell_out_at <= RECENT_SECONDS else oldest - 1

    def _after(self, seq: int) -> Iterator[Kept]:
        """What is kept and has a number after ``seq``, in order; a block is read when it is its turn."""
        yield from (each for each in self._oldest if each.last > seq)
        for block in self._blocks:
            if block.last > seq:
                yield from (each for each in block.read() if each.last > seq)
        yield from (each for each in self._youngest if each.last > seq)

    def _newest_first(self) -> Iterator[Kept]:
        yield from reversed(self._youngest)
        for block in reversed(self._blocks):
            yield from reversed(block.read())
        yield from reversed(self._oldest)

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._budget.hold_for_outbox(size)


def _size(text: str) -> int:
    """Bytes that a message takes in its block."""
    return _ENTRY_BYTES + (len(text) if text.isascii() else len(text.encode()))
