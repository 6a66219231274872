"""Garbage and freed memory: looked after where there is some, and seldom."""

from __future__ import annotations

import ctypes
import gc
from time import perf_counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 5.0
SHARE = 0.01
"""Of the time, at most."""


def calm_the_collector() -> None:
    """Collect garbage where there is some: a full collection stops every session for milliseconds.

    The thresholds count what is made and not freed. Sessions in peace free all that they make;
    `keep_memory_low` looks after the others. What has been imported by now is never looked at
    again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 4)


async def keep_memory_low(
    count_failures: Callable[[], int], count_endings: Callable[[], int]
) -> None:
    """Free what failed connections have left behind, and give back what ended sessions had.

    A failed connection leaves cycles (tracebacks, and what they hold: 130 KB each): they are
    collected, in one piece, which holds up the loop for tens of milliseconds where there are
    hundreds of sessions. Both leave holes in the heap, which the C library keeps: giving them back to
    the system takes a millisecond.

    Runs until cancelled; does something only where a count has changed, and for at most `SHARE` of
    the time.
    """
    seen, pause = (count_failures(), count_endings()), PAUSE_SECONDS
    trim = _find_trim()
    while True:
        await trio.sleep(pause)
        started = perf_counter()
        before, seen = seen, (count_failures(), count_endings())
        if seen[0] != before[0]:
            gc.collect()
        if seen != before:
            trim()
        pause = max(PAUSE_SECONDS, (perf_counter() - started) / SHARE)


def _find_trim() -> Callable[[], object]:
    """``malloc_trim(3)``, which glibc has and other C libraries need not have."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: malloc_trim(0)
