"""How many processors this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the processors that this process may run on, or fewer where a quota says so.

    The quota is the least of the control groups that the process is in (versions 1 and 2), where
    they show. Two processors of which only 150 % may be used are 1.5.
    """
    limits = [float(_affinity())]
    for folder in _folders(cgroups, own):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(int(quota) / int(period))  # "max" is none
        with contextlib.suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                limits.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(limits)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        # Not every system has it.
        return os.cpu_count() or 1


def _folders(cgroups: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the groups that bound the processor time, from the inmost out."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = own.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        group = root / path.lstrip("/")
        # In a container the path may be the host's, of which only the root shows.
        for folder in (group, *group.parents):
            yield folder
            if folder == root:
                break
