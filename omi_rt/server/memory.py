"""Garbage and freed memory, which are looked after only where there is some, and seldom."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 5.0
"""Whether there is anything to do is looked at this often, at most."""
SHARE = 0.01
"""Looking after memory takes at most this share of the time."""
BACKLOG_SHARE = 0.25
"""Audio that is kept may take this share of the memory; the rest is for what else the sessions and the
system need."""
_CGROUPS = Path("/sys/fs/cgroup")
_YOUNG_OBJECTS = 100_000
"""The collector looks by itself when this many objects have been made and not freed: some 10 MB."""
GARBAGE_ENDINGS = 50
"""Ended connections leave cycles too. Each is small as an object and may hold a megabyte that its device
has not read, which the collector's own count of objects does not see."""
TRIMS = 3
"""Memory is given back at this many looks after a change: for some ten seconds a session that has begun, or has
lost its device, still frees what it needed."""


def default_backlog_bytes(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """`BACKLOG_SHARE` of the memory that this process may have.

    Its memory is the machine's, or the least limit of the control groups that the process is in
    (versions 1 and 2), where they show.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / path.lstrip("/")
        # In a container the path may be the host's, of which the container sees only the root.
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))  # "max" is none
            if folder == root:
                break
    return int(min(limits) * BACKLOG_SHARE)


def calm_the_collector() -> None:
    """Collect garbage only where there is some, because a collection stops every session for milliseconds.

    The threshold counts what is made and not freed. Undisturbed sessions free all that they make;
    `keep_memory_low` looks after the others. What has been imported by now is never looked at again.

    At a threshold of 5,000 the start of 150 streams brought 18 collections in ten seconds, of which the
    longest stopped the loop for 11 ms; at `_YOUNG_OBJECTS` there was none.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 5, 4)


async def keep_memory_low(
    count_failures: Callable[[], int],
    count_endings: Callable[[], int],
    count_changes: Callable[[], int],
) -> None:
    """Free what failed and ended connections have left behind, and give it back to the system.

    A failed connection leaves cycles (tracebacks, and what they hold: 130 KB each), and so does a session
    that ends. They are collected in one piece, which holds up the loop for tens of milliseconds where
    there are hundreds of sessions: after any failure, and after `GARBAGE_ENDINGS`. Both leave holes in the
    heap, which the C library keeps, and so do sessions that begin (2.3 KiB each) or lose their devices
    (`count_changes`; 10 KiB each). To give them back to the system takes 0.2 to 0.6 ms at 900 sessions.

    This runs until it is cancelled. It does something only where a count has changed lately, and for at
    most `SHARE` of the time.
    """
    counts = count_failures, count_endings, count_changes
    seen, pause = tuple(count() for count in counts), PAUSE_SECONDS
    collected, trims = seen, 0
    trim = _find_trim()
    while True:
        await trio.sleep(pause)
        started = perf_counter()
        before, seen = seen, tuple(count() for count in counts)
        if seen[0] != collected[0] or seen[1] - collected[1] >= GARBAGE_ENDINGS:
            gc.collect()
            collected = seen
        if seen[2] != before[2]:
            trims = TRIMS
        elif seen != before:
            trims = max(trims, 1)
        if trims:
            trims -= 1
            trim()
        pause = max(PAUSE_SECONDS, (perf_counter() - started) / SHARE)


def _find_trim() -> Callable[[], object]:
    """Find ``malloc_trim(3)``, which glibc has and other C libraries need not have."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: malloc_trim(0)
