"""Which faults of a connection are due. There is no clock in here; the time is passed in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.fake.faults import OpenFault

if TYPE_CHECKING:
    from collections.abc import Iterable


@frozen
class _Waiting:
    fault: OpenFault
    audio: float
    results: int
    at: float

    def is_due(self, audio: float, results: int, now: float) -> bool:
        return audio >= self.audio and results >= self.results and now >= self.at


class FaultQueue:
    """The faults of an open connection that have not come yet.

    Every question has the same three arguments: seconds of audio received, messages of results sent, and
    the time.
    """

    __slots__ = ("_waiting",)

    def __init__(self, faults: Iterable[OpenFault], opened_at: float) -> None:
        self._waiting = [
            _Waiting(
                fault,
                audio=fault.after_audio or 0.0,
                results=fault.after_results or 0,
                at=opened_at + (fault.after_seconds or 0.0),
            )
            for fault in faults
        ]

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, fault: OpenFault, at: float) -> None:
        """Add a fault that comes at the time ``at``."""
        self._waiting.append(_Waiting(fault, audio=0.0, results=0, at=at))

    def next_at(self, now: float) -> float:
        """The next time after ``now`` at which a fault may be due by time alone; infinity for never."""
        return min((one.at for one in self._waiting if one.at > now), default=math.inf)

    def is_due(self, audio: float, results: int, now: float) -> bool:
        """Tell whether any fault is due."""
        return any(one.is_due(audio, results, now) for one in self._waiting)

    def take(self, audio: float, results: int, now: float) -> list[OpenFault]:
        """Take the faults that are due, in the order of the script."""
        due = [one.fault for one in self._waiting if one.is_due(audio, results, now)]
        self._waiting = [one for one in self._waiting if not one.is_due(audio, results, now)]
        return due
