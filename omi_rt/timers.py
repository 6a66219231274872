"""Calls what is due, for all sessions, from one task.

A task that sleeps takes 3 KiB of memory, and a session would have one for its heartbeat and one for its
connection to the provider. Here each is an entry in a queue, and what is due at about the same time is
called in one round. What is called belongs to a nursery all the same: what it raises is raised there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

import trio

Call = Callable[[float], float | None]
"""Called when it is due, with the time (`trio.current_time`); returns when it is due next, or None when it
is done. It must not wait."""

ROUND_SECONDS = 0.05
"""Rounds of calls are at least this far apart, so a call may be late by as much. A round takes a turn of
Trio's loop, and at 60 sessions nearly every call had one of its own, which took three times its work."""
FIRST_CALLS = 4
"""After so many calls of a round, which take some 50 microseconds, the other tasks have a turn. Then twice as
many are made, and so on, so that a round of a thousand waits for eight turns, which may be long."""
_SPARE_ENTRIES = 64
"""Cancelled entries are thrown away once the queue has this many more than twice the timers that run."""


class Timer:
    """One entry. Made by `start_timer`."""

    __slots__ = ("_call", "_nursery", "_timers")

    def __init__(self, call: Call, nursery: trio.Nursery, timers: Timers | None) -> None:
        self._call: Call | None = call
        self._nursery: trio.Nursery | None = nursery
        self._timers = timers

    @property
    def is_over(self) -> bool:
        """Whether it is not called any more."""
        return self._call is None

    def cancel(self) -> None:
        """Call it no more. It may be called twice, and from within."""
        if self._call is not None:
            self._call = self._nursery = None
            if self._timers is not None:
                self._timers.running -= 1

    def fire(self, now: float) -> float | None:
        """Call it; returns when it is due next, or None where it is over.

        What it raises is raised in its nursery.
        """
        if self._call is None or self._nursery is None:
            return None
        try:
            due = self._call(now)
        except Exception as error:  # noqa: BLE001 - raised again where it belongs
            self._nursery.start_soon(_fail, error)
            due = None
        if due is None:
            self.cancel()
        return due


class Timers:
    """The timers of one event loop, and the task that calls them. Made by `open_timers`."""

    __slots__ = ("_news", "_numbers", "_queue", "running")

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._news = trio.Event()
        """Set when something is due before all that was in the queue."""
        self.running = 0
        """Timers that are not over."""

    @property
    def entries(self) -> int:
        """Entries of the queue, those of cancelled timers included."""
        return len(self._queue)

    def add(self, due: float, timer: Timer) -> None:
        """Call ``timer`` when it is due."""
        if not self._queue or due < self._queue[0][0]:
            self._news.set()
        heappush(self._queue, (due, next(self._numbers), timer))
        if len(self._queue) > 2 * self.running + _SPARE_ENTRIES:
            self._queue = [entry for entry in self._queue if not entry[2].is_over]
            heapify(self._queue)

    async def run(self) -> None:
        """Call what is due, until cancelled."""
        next_round = -inf
        while True:
            self._news = trio.Event()
            due = self._queue[0][0] if self._queue else inf
            with trio.move_on_at(max(due, next_round)):
                await self._news.wait()
            now = trio.current_time()
            if now >= next_round and self._queue and self._queue[0][0] <= now:
                await self._call_due(now)
                next_round = now + ROUND_SECONDS

    async def _call_due(self, now: float) -> None:
        """Call all that is due at ``now``, in groups."""
        round_at, most = now, FIRST_CALLS
        while not self._call_some(round_at, now, most):
            await trio.lowlevel.checkpoint()
            now, most = trio.current_time(), 2 * most

    def _call_some(self, until: float, now: float, most: int) -> bool:
        """Call at ``now`` what is due by ``until``, ``most`` at most; returns whether that is all."""
        for _ in range(most):
            if not self._queue or self._queue[0][0] > until:
                return True
            _, _, timer = heappop(self._queue)
            if (due := timer.fire(now)) is not None:
                self.add(due, timer)
        return False


_running: trio.lowlevel.RunVar[Timers | None] = trio.lowlevel.RunVar("omi_rt.timers", None)


def running_timers() -> Timers | None:
    """The timers of this event loop; None where none are open."""
    return _running.get()


@asynccontextmanager
async def open_timers() -> AsyncIterator[None]:
    """Run the timers of this event loop for the body: those that are started by then end with it."""
    timers = Timers()
    async with trio.open_nursery() as nursery:
        _running.set(timers)
        nursery.start_soon(timers.run)
        try:
            yield
        finally:
            _running.set(None)
        nursery.cancel_scope.cancel()


def start_timer(call: Call, due: float, nursery: trio.Nursery) -> Timer:
    """Call ``call`` at ``due`` (`trio.current_time`), and then whenever it says, until it is done.

    It may be called `ROUND_SECONDS` later, with others that are due by then. Whoever starts it cancels it
    before ``nursery`` is over. Where no timers are open a task of the nursery's calls it.
    """
    timers = running_timers()
    timer = Timer(call, nursery, timers)
    if timers is None:
        nursery.start_soon(_call_alone, timer, due)
    else:
        timers.running += 1
        timers.add(due, timer)
    return timer


async def _call_alone(timer: Timer, due: float | None) -> None:
    while due is not None:
        await trio.sleep_until(due)
        due = timer.fire(trio.current_time())


async def _fail(error: Exception) -> None:
    # A task that was cancelled before it began would raise nothing else.
    await trio.lowlevel.cancel_shielded_checkpoint()
    raise error
