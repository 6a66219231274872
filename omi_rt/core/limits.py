"""Limits: how much of the server one uid or one address may have, and what a day has cost."""

from __future__ import annotations

from collections import Counter, deque
from datetime import date
from enum import Enum
from statistics import median
from typing import ClassVar

from omi_rt.core.errors import DeviceError
from omi_rt.core.json import JSONError, dumps, loads
from omi_rt.core.login import address_group

LAG_SAMPLES = 5
"""The lag is the median of so many: one long step of the loop is no reason to send anybody away."""


class Limit(Enum):
    """What a client has reached; the values are labels of a metric."""

    UID = "uid"
    DAY = "day"


class LimitReached(DeviceError):
    """A uid has as much as it may have; the message says of what."""

    limit: ClassVar[Limit]
    status: ClassVar[int]
    """The HTTP status for clients that are told before the upgrade."""


class TooManySessions(LimitReached):
    """The uid has as many sessions as it may have at once. The close code says: try again later."""

    limit = Limit.UID
    status = 429
    close_code = 1013


class DayUsedUp(LimitReached):
    """The uid has used up its seconds of the day. Omi's apps know this close code."""

    limit = Limit.DAY
    status = 402
    close_code = 4002


class Occupancy:
    """How many connections each address has now.

    Args:
        most: connections of one address (IPv6: of a /64); 0 is any number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._connections: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a connection; whether it is one too many, and was not counted."""
        group = address_group(address)
        if address and 0 < self._most <= self._connections[group]:
            return False
        self._connections[group] += 1
        return True

    def leave(self, address: str) -> None:
        """Count a connection no longer that `enter` has counted."""
        group = address_group(address)
        self._connections[group] -= 1
        if self._connections[group] <= 0:
            del self._connections[group]


class DailyAccount:
    """The seconds of audio that each uid has used on a day (UTC).

    Args:
        limit: seconds for one uid; 0 is any number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._day = date.min
        self._used: dict[str, float] = {}
        self.has_changed = False
        """Whether something was noted since `write`."""

    def note(self, uid: str, seconds: float, today: date) -> None:
        """Count ``seconds`` of audio."""
        self._turn(today)
        self._used[uid] = self._used.get(uid, 0.0) + seconds
        self.has_changed = True

    def is_used_up(self, uid: str, today: date) -> bool:
        """Whether nothing is left of a uid's day."""
        self._turn(today)
        return 0 < self._limit <= self._used.get(uid, 0.0)

    def write(self) -> str:
        """Return the account as text for `read`."""
        self.has_changed = False
        return dumps({"day": self._day.isoformat(), "seconds": self._used})

    def read(self, text: str) -> None:
        """Take up an account where it was left; raises ``ValueError`` where the text is none."""
        try:
            found = loads(text)
            day = date.fromisoformat(found["day"])
            used = {str(uid): float(seconds) for uid, seconds in found["seconds"].items()}
        except (JSONError, KeyError, TypeError, AttributeError, ValueError):
            raise ValueError("it is no account") from None
        self._day, self._used = day, used

    def _turn(self, today: date) -> None:
        if today != self._day:
            self._day, self._used = today, {}


class IdleWatch:
    """Tells for how long each session has brought no audio."""

    __slots__ = ("_since", "received")

    def __init__(self, now: float) -> None:
        self.received = 0
        """Samples, when they were last looked at."""
        self._since = now

    def look(self, received: int, now: float, *, is_read: bool) -> int:
        """Note the samples that have come so far; returns how many are new.

        A session that the server itself does not read (``is_read``) is not idle.
        """
        new, self.received = received - self.received, received
        if new or not is_read:
            self._since = now
        return new

    def idle_seconds(self, now: float) -> float:
        """Since when nothing has come."""
        return now - self._since


class LagMeter:
    """How late the event loop is, from the last few looks."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=LAG_SAMPLES)

    def note(self, seconds: float) -> None:
        """Note by how much a wake-up was late."""
        self._samples.append(max(0.0, seconds))

    @property
    def lag(self) -> float:
        """Seconds; 0 before there were enough looks."""
        return median(self._samples) if len(self._samples) == LAG_SAMPLES else 0.0
