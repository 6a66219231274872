"""When audio came, for as long as it is neither final nor given up."""

from __future__ import annotations


class ReceiptTimes:
    """Remembers the time of receipt once for every ``step`` samples.

    One mark for each second of audio is enough. There are as many marks as the backlog has steps.
    """

    __slots__ = ("_marks", "_step", "next_mark")

    def __init__(self, step: int) -> None:
        self._step = step
        self.next_mark = step
        """The session position whose receipt is to be noted next."""
        self._marks: list[tuple[int, float]] = []

    def record_received(self, end: int, now: float) -> None:
        """Note that the audio before session position ``end`` has come by ``now``."""
        while end >= self.next_mark:
            self._marks.append((self.next_mark, now))
            self.next_mark += self._step

    def record_finalised(self, position: int, now: float) -> list[float]:
        """Forget the marks up to ``position``, which are final; return how long ago each came."""
        marks, lags = self._marks, []
        while marks and marks[0][0] <= position:
            lags.append(now - marks.pop(0)[1])
        return lags

    def record_given_up(self, position: int) -> None:
        """Forget the marks up to ``position``, which will never be final."""
        self.record_finalised(position, 0.0)
