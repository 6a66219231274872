"""Process-wide protection of the provider: a breaker for refusals, a bucket for re-dials."""

from __future__ import annotations

import math
from http import HTTPStatus
from random import Random

from attrs import define

from omi_rt.core.token_bucket import TokenBucket

PROBE_SECONDS = 10.0
"""While the breaker is open, one session is let through this often, to see whether Deepgram still
refuses."""
OPENING_STATUSES = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.PAYMENT_REQUIRED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
    }
)
"""These HTTP statuses refuse every session alike: for the key, the credit, the model or the path."""


@define
class Breaker:
    """Answers new sessions without dialling once Deepgram refused what all sessions have in common.

    It is closed until a refusal opens it, and the next open connection closes it again.
    """

    _random: Random
    opened_by: int | None = None
    """The HTTP status that opened it, or None while it is closed."""
    _next_probe: float = 0.0

    def record_refusal(self, status: int, now: float) -> bool:
        """Note a final refusal; return whether that opened the breaker."""
        if status not in OPENING_STATUSES:
            return False
        was_closed = self.opened_by is None
        self.opened_by = status
        self._next_probe = now + PROBE_SECONDS
        return was_closed

    def record_success(self) -> None:
        """Note an open connection, which closes the breaker."""
        self.opened_by = None

    def retry_after(self, now: float) -> int | None:
        """Decide over a new session: None lets it in, else the seconds for ``Retry-After``.

        The seconds are jittered over two probes' time, so that those sent away do not come back
        together.
        """
        if self.opened_by is None:
            return None
        if now >= self._next_probe:
            self._next_probe = now + PROBE_SECONDS
            return None
        wait = self._next_probe - now + self._random.uniform(0.0, 2 * PROBE_SECONDS)
        return max(1, math.ceil(wait))


@define
class DialGate:
    """Spreads re-dials over time; a first dial passes, unless dials are failing."""

    _bucket: TokenBucket
    failing: bool = False
    """Whether the last dial of the process failed."""

    def reserve(self, now: float, *, is_redial: bool) -> float:
        """Take a place in the queue; return the seconds until its turn, 0.0 where nobody queues."""
        if not is_redial and not self.failing:
            return 0.0
        return self._bucket.reserve(now)

    def give_back(self) -> None:
        """Leave the queue, because the dial is not made after all."""
        self._bucket.give_back()


FULL_SECONDS = 60.0
"""After a refusal for want of room, connections that can wait are not opened for this long."""


@define
class PrimingGate:
    """Bounds the connections that are opened beside the sessions' own, to be primed.

    They give way: none begins while a session's own connection is being dialled, nor for
    `FULL_SECONDS` after one was refused for want of room.
    """

    most: int
    """The number of such connections that may exist at once."""
    primed: int = 0
    """The number of such connections that are open or being dialled."""
    dialling: int = 0
    """The number of sessions' own connections that are not open yet."""
    _full_until: float = -math.inf

    def may_begin(self, now: float) -> bool:
        """Whether another may be opened."""
        return self.primed < self.most and not self.dialling and now >= self._full_until

    def record_refusal(self, status: int, now: float) -> bool:
        """Note a refusal; return whether it was for want of room, so that whoever can wait must go."""
        if status != HTTPStatus.TOO_MANY_REQUESTS:
            return False
        self._full_until = now + FULL_SECONDS
        return True


class OwnDial:
    """The dial of a session's own connection, for which primed connections wait until it is over.

    Args:
        gate: of the primed connections; None where none has to wait.
    """

    __slots__ = ("_gate",)

    def __init__(self, gate: PrimingGate | None) -> None:
        self._gate = gate
        if gate is not None:
            gate.dialling += 1

    def over(self) -> None:
        """Let them wait no longer. A second call does nothing."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.dialling -= 1
