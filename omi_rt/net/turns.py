"""Whoever has more to do than a live stream does it one step at a time, after everybody else.

A live stream brings a message or two each time it is read. A flood brings ten thousand to a read,
and a hundred floods at once would hold up the loop for seconds even if each did only a little at a
time. So all of them wait in one line for the whole run, and the line moves by one step in a turn of
the loop and rests for as long as it has worked: whatever they send, the others have half the time.
"""

from __future__ import annotations

import math

import trio
from attrs import define, field

WORK_SECONDS = 0.002
"""After this much work the line rests for as long, which is the shortest wait that the system's timers
make well."""
IDLE_SECONDS = 2 * WORK_SECONDS
"""A line in which nobody waits was idle if its last step was longer ago."""


@define
class _Line:
    lock: trio.StrictFIFOLock = field(factory=trio.StrictFIFOLock)
    granted_at: float = -math.inf
    worked: float = 0.0
    """Seconds since the line last rested."""


_line: trio.lowlevel.RunVar[_Line] = trio.lowlevel.RunVar("omi_rt.net.turns")


async def wait_turn() -> None:
    """Wait until the caller may do one more step, which it then does before it waits for anything.

    This is always a checkpoint. Cancelling is safe.
    """
    try:
        line = _line.get()
    except LookupError:
        line = _Line()
        _line.set(line)
    has_others = line.lock.locked()
    # Whoever is next runs in the next turn of the loop, when this task's step is over.
    async with line.lock:
        elapsed = trio.current_time() - line.granted_at
        if has_others or elapsed < IDLE_SECONDS:
            line.worked += min(elapsed, WORK_SECONDS)
        else:
            # The line was empty meanwhile, so the time was not work; one who comes alone never waits.
            line.worked = 0.0
        if line.worked >= WORK_SECONDS:
            await trio.sleep(line.worked)
            line.worked = 0.0
        line.granted_at = trio.current_time()
