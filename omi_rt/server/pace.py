"""When each device is read again: at once, or a little later together with others."""

from __future__ import annotations

import math
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import trio

from omi_rt.core.load import SLACK_LOAD, LoadMeter, read_pause

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_SECONDS = 0.005
METER_SECONDS = 0.05


class Pace:
    """The load of the process, and the clock that wakes whoever rests because of it.

    The load is this thread's CPU time: the loop waits when it takes none. Trio's hooks around each
    wait would tell the same for 4 % of the work. Where others take the CPU away the load seems less
    than it is; then audio piles up before the reads, and they grow by themselves.

    A timer for each rest would cost 15 µs, as much as the read that it saves; here one timer wakes all
    whose time has come. ``run`` must run for anybody to be woken.

    Args:
        cap: the longest rest, in seconds.
        clock: seconds, for the load.
        cpu_clock: seconds that this thread has worked.
    """

    __slots__ = (
        "_cap",
        "_clock",
        "_cpu_clock",
        "_due",
        "_measure_at",
        "_meter",
        "_since",
        "_work",
        "_worked",
    )

    def __init__(
        self,
        cap: float,
        clock: Callable[[], float] = perf_counter,
        cpu_clock: Callable[[], float] = thread_time,
    ) -> None:
        self._meter = LoadMeter()
        self._clock, self._cpu_clock = clock, cpu_clock
        self._since, self._worked = clock(), cpu_clock()
        self._measure_at = -math.inf
        self._cap = cap
        self._due: dict[int, trio.Event] = {}
        """By tick; at most as many as the longest rest has."""
        self._work = trio.Event()

    @property
    def load(self) -> float:
        """The share of time that the loop works, 0..1; to be asked from its own thread."""
        now = self._clock()
        if now - self._since >= METER_SECONDS:
            worked = self._cpu_clock()
            self._meter.note(worked - self._worked, now - self._since)
            self._since, self._worked = now, worked
        return self._meter.load

    def has_slack(self, now: float) -> bool:
        """Whether nobody need rest, at ``now`` (`trio.current_time`)."""
        if now >= self._measure_at:
            self._measure_at = now + METER_SECONDS
            return self.load <= SLACK_LOAD
        return self._meter.load <= SLACK_LOAD

    def turn_pause(self) -> float:
        """Seconds for which to read nobody, after a turn of the poller."""
        now = self._clock()
        return 0.0 if self.has_slack(now) else read_pause(self._meter.load, self._cap, 0.0)

    def pause(self, message_seconds: float) -> float:
        """Seconds to leave a stream alone whose messages hold ``message_seconds`` each."""
        return read_pause(self._meter.load, self._cap, message_seconds)

    async def rest(self, seconds: float) -> None:
        """Wait ``seconds``, and up to a tick more. Cancelling is safe."""
        tick = int((trio.current_time() + seconds) / TICK_SECONDS) + 1
        event = self._due.get(tick)
        if event is None:
            event = self._due[tick] = trio.Event()
            self._work.set()
        await event.wait()

    async def run(self) -> None:
        """Wake each stream when its rest is over. This runs until it is cancelled."""
        tick = 0
        while True:
            if not self._due:
                self._work = trio.Event()
                await self._work.wait()
            # Never the same one twice: a division that is rounded down would stand still.
            tick = max(tick, int(trio.current_time() / TICK_SECONDS)) + 1
            await trio.sleep_until(tick * TICK_SECONDS)
            for due in [due for due in self._due if due <= tick]:
                self._due.pop(due).set()
