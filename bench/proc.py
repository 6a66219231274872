"""What the kernel says of processes and cores, from ``/proc`` (proc(5)) and its clocks."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from attrs import frozen

_CPUCLOCK_SCHED = 2
"""From the kernel's posix-timers.h: time on a processor, as the scheduler counts it."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that live, user and system, all threads."""
    return sum(time.clock_gettime(_cpu_clock(member)) for member in [pid, *_children(pid)])


def _cpu_clock(pid: int) -> int:
    """What ``clock_getcpuclockid(3)`` answers: exact, where ``/proc/PID/stat`` counts in 10 ms."""
    return (~pid << 3) | _CPUCLOCK_SCHED


def core_busy_seconds(core: int) -> float:
    """Time in which the core did anything at all, for whomever."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, numbers[:8])
            return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND
    raise LookupError(f"/proc/stat does not list core {core}")


@frozen
class Memory:
    """Of a process and its children, in bytes."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """Resident and proportional set size."""
    sums = {"Rss": 0, "Pss": 0}
    for member in [pid, *_children(pid)]:
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0]) * 1024
    return Memory(sums["Rss"], sums["Pss"])


def _children(pid: int) -> list[int]:
    """Those that the main thread started: to ask every thread would take longer than is measured."""
    with suppress(OSError):
        found = [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
        return found + [grandchild for child in found for grandchild in _children(child)]
    return []
