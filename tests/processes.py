"""Looking at processes through /proc, for tests of what is left behind."""

from __future__ import annotations

from pathlib import Path

import trio


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def ended(pid: int) -> bool:
    """Whether the process has ended; a parent may still have to be told of it."""
    fields = _stat(pid)
    return not fields or fields[0] in {"Z", "X"}


def children_of(parent: int) -> set[int]:
    """Return the processes that ``parent`` has started and that still run."""
    running = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {pid for pid in running if not ended(pid) and _stat(pid)[1:2] == [str(parent)]}


def descendants_of(parent: int) -> set[int]:
    """Return the children, their children, and so on."""
    children = children_of(parent)
    return children.union(*map(descendants_of, children))


async def wait_ended(pids: set[int], seconds: float) -> None:
    """Wait until all have ended.

    Raises:
        trio.TooSlowError: they have not within ``seconds``.
    """
    with trio.fail_after(seconds):
        while not all(map(ended, pids)):  # noqa: ASYNC110 - the kernel sets no trio.Event
            await trio.sleep(0.02)
