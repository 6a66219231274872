"""How far a worker has come between its own reports, judged by the processor time that it has used.

A worker that decodes an utterance, or loads its model, reports nothing until that is done. Where many
want the processor that takes long, and the worker looks as silent as one that hangs. The difference is
that it uses the processor. So it is credited with a part of the piece that it has in hand: the part of
what such a piece may cost that it has spent. One that hangs spends nothing, and one that has spent all
that the piece may cost and is still not done gets no further credit.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import define

_UNDONE = 0.99
"""A piece counts as done when the worker reports it, and not before."""
_USER_TIME, _SYSTEM_TIME = 11, 12
"""Fields of /proc/PID/stat behind the name of the program, in ticks of the clock."""


HELD_SECONDS = 0.25
"""Of the audio that a worker has reported: what it still does with it, at the end of an utterance, comes
after the report. A worker that is asked for an answer has then something left to get on with."""


@define
class Headway:
    """How far the work on one connection has come, in seconds of audio; it never goes back."""

    seconds: float = 0.0
    reported: float = 0.0
    """Audio that is worked through by the worker's own account."""
    _begin: float = 0.0
    _cpu_at_begin: float = 0.0

    def report(self, worked_seconds: float, cpu_seconds: float) -> None:
        """Note that the worker has done a piece, and has the next one in hand.

        Args:
            worked_seconds: audio that is worked through by its own account.
            cpu_seconds: processor time that it has used so far.
        """
        self.reported = worked_seconds
        self.seconds = self._begin = max(self.seconds, worked_seconds - HELD_SECONDS)
        self._cpu_at_begin = cpu_seconds

    def estimate(self, end: float, cpu_seconds: float, allowed_seconds: float) -> bool:
        """Credit the worker with a part of what it has in hand; return whether it has got on.

        Args:
            end: of the piece, in seconds of audio; no estimate reaches it.
            cpu_seconds: processor time that the worker has used so far.
            allowed_seconds: processor time that the piece may cost; more than 0.0.
        """
        spent = min(_UNDONE, (cpu_seconds - self._cpu_at_begin) / allowed_seconds)
        estimated = self._begin + (end - self._begin) * spent
        if estimated <= self.seconds:
            return False
        self.seconds = estimated
        return True

    def finish(self) -> None:
        """Note that the worker is done with all that it has reported."""
        self.seconds = max(self.seconds, self.reported)


def process_cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used; 0.0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    ticks = int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])
    return ticks / os.sysconf("SC_CLK_TCK")
