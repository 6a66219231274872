"""How hard the process works, and for how long nobody is read because of it."""

from __future__ import annotations

from time import perf_counter, thread_time
from typing import TYPE_CHECKING

from omi_rt.core.load import LoadMeter, read_pause

if TYPE_CHECKING:
    from collections.abc import Callable

METER_SECONDS = 0.05


class Pace:
    """The load of the process, and the pause between two turns of the poller that follows from it.

    The load is this thread's CPU time: the loop waits when it takes none. Trio's hooks around each
    wait would tell the same for 4 % of the work. Where others take the CPU away the load seems less
    than it is; then audio piles up before the reads, and they grow by themselves.

    Args:
        cap: the longest pause, in seconds.
        clock: seconds, for the load.
        cpu_clock: seconds that this thread has worked.
    """

    __slots__ = ("_cap", "_clock", "_cpu_clock", "_meter", "_pause", "_since", "_worked")

    def __init__(
        self,
        cap: float,
        clock: Callable[[], float] = perf_counter,
        cpu_clock: Callable[[], float] = thread_time,
    ) -> None:
        self._meter = LoadMeter()
        self._clock, self._cpu_clock = clock, cpu_clock
        self._since, self._worked = clock(), cpu_clock()
        self._cap, self._pause = cap, 0.0

    @property
    def load(self) -> float:
        """The share of time that the loop works, 0..1; to be asked from its own thread."""
        self.turn_pause()
        return self._meter.load

    def turn_pause(self) -> float:
        """Seconds for which to read nobody, after a turn of the poller."""
        now = self._clock()
        if now - self._since >= METER_SECONDS:
            worked = self._cpu_clock()
            self._meter.note(worked - self._worked, now - self._since)
            self._since, self._worked = now, worked
            self._pause = read_pause(self._meter.load, self._cap)
        return self._pause
