"""What all sessions may hold in memory together: who is not read, and who forgets, while there is little left."""

from __future__ import annotations

from typing import Final

_DRAINED_SHARE: Final = 1.0
_UNDRAINED_SHARE: Final = 0.25
"""One backlog may hold this share of what is still free, by whether finals drain it (the dynamic
thresholds of Choudhury and Hahne, 1998)."""
_SCARCE_SHARE: Final = 0.5
"""Once this share of the capacity is held, sessions ask whether their devices may be read."""
_FULL_SHARE: Final = 0.9
"""Once this share of the capacity is held, there is no room for a new session."""
_OUTBOX_SHARE: Final = 0.25
"""All outboxes together may hold this share of the capacity, for nobody drains them while a session lasts."""
_UNDRAINED_SECONDS: Final = 10.0
"""A backlog that no final has trimmed for this long is not being drained; in speech finals are closer
together."""
_UNBOUNDED: Final = 1 << 62


class BacklogBudget:
    """The bytes that backlogs, clips of the speakers and outboxes hold, and their bound.

    A backlog may grow as long as it holds less than a share of what is still free. So those that
    hold most stop first, those that nobody drains at a quarter of what the others may have, and a
    small one grows until nearly all is used; together they never reach the bound. Outboxes go by the same
    rule, within a share of their own: they let go of what is oldest.
    """

    __slots__ = ("capacity_bytes", "held_bytes", "outbox_bytes", "scarce_bytes")

    def __init__(self, capacity_bytes: int = _UNBOUNDED) -> None:
        self.capacity_bytes = capacity_bytes
        self.scarce_bytes = _SCARCE_SHARE * capacity_bytes
        """Where more is held than this, sessions must ask `has_room_for`."""
        self.held_bytes = 0
        """Bytes that all of them hold together; they keep this number themselves."""
        self.outbox_bytes = 0
        """Those of them that outboxes hold."""

    @property
    def is_scarce(self) -> bool:
        """Whether so much is held that sessions must ask `has_room_for`."""
        return self.held_bytes > self.scarce_bytes

    @property
    def is_full(self) -> bool:
        """Whether new sessions are to be refused."""
        return self.held_bytes >= _FULL_SHARE * self.capacity_bytes

    @property
    def backlog_bytes(self) -> int:
        """Bytes that all hold together but for the outboxes."""
        return self.held_bytes - self.outbox_bytes

    def hold_for_outbox(self, size: int) -> None:
        """Note that an outbox holds ``size`` bytes more, or fewer where that is negative."""
        self.held_bytes += size
        self.outbox_bytes += size

    def outbox_is_over(self, held_bytes: int) -> bool:
        """Whether an outbox that holds ``held_bytes`` is to let go of some: it has more than is free."""
        return held_bytes > _OUTBOX_SHARE * self.capacity_bytes - self.outbox_bytes

    def has_room_for(self, held_bytes: int, *, is_drained: bool) -> bool:
        """Whether a backlog that holds ``held_bytes`` may take more."""
        if not self.is_scarce:
            return True
        share = _DRAINED_SHARE if is_drained else _UNDRAINED_SHARE
        return held_bytes < share * (self.capacity_bytes - self.held_bytes)


class BacklogShare:
    """One backlog's part in the budget, by whether finals drain it."""

    __slots__ = ("_budget", "_drained_at", "_drained_to")

    def __init__(self, budget: BacklogBudget, now: float) -> None:
        self._budget = budget
        self._drained_to, self._drained_at = 0, now

    def has_room(self, held_bytes: int, start: int, now: float) -> bool:
        """Whether a backlog that holds ``held_bytes``, from position ``start`` on, may take more."""
        if start != self._drained_to:
            self._drained_to, self._drained_at = start, now
        is_drained = now - self._drained_at < _UNDRAINED_SECONDS
        return self._budget.has_room_for(held_bytes, is_drained=is_drained)
