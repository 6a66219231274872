"""What of a session's audio is received, finalised or lost: backlog, watermarks and ledger as one.

The three only ever change together, through the methods here, so none can run ahead of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.backlog import Backlog
from omi_rt.core.ledger import Balance, Ledger

if TYPE_CHECKING:
    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.budget import BacklogBudget


@frozen
class Gap:
    """Audio that was given up, in session positions."""

    start: int
    end: int

    def joined(self, later: Gap) -> Gap:
        """This and a ``later`` one that follows it at once."""
        return Gap(self.start, later.end)


class Coverage:
    """The session's audio and how far it is transcribed.

    A channel's *watermark* is the session position up to which finals cover it. The backlog is
    trimmed at the lowest.
    """

    __slots__ = ("_watermarks", "audio_format", "backlog", "ledger")

    def __init__(
        self,
        audio_format: AudioFormat,
        backlog_seconds: float,
        budget: BacklogBudget | None = None,
    ) -> None:
        self.audio_format = audio_format
        self.backlog = Backlog(audio_format, audio_format.samples(backlog_seconds), budget)
        self.ledger = Ledger()
        self._watermarks = [0] * audio_format.channels

    @property
    def watermark(self) -> int:
        """The lowest watermark: where a new epoch begins."""
        return min(self._watermarks)

    @property
    def high_watermark(self) -> int:
        """The highest watermark: no channel has words before it still to come from a new epoch."""
        return max(self._watermarks)

    @property
    def is_full(self) -> bool:
        """Whether the backlog has no more room."""
        backlog = self.backlog
        return backlog.end - backlog.start >= backlog.capacity

    def watermark_of(self, channel: int) -> int:
        """The watermark of one channel (0-based)."""
        return self._watermarks[channel]

    def receive(self, payload: bytes) -> int:
        """Take audio from the device; returns its samples."""
        samples = self.backlog.append(payload)
        self.ledger.received += samples
        return samples

    def finalise(self, channel: int, position: int) -> bool:
        """Raise a channel's watermark; returns whether that moved it. It never goes back."""
        if position <= self._watermarks[channel]:
            return False
        self._watermarks[channel] = min(position, self.backlog.end)
        self.ledger.finalised += self.backlog.trim(self.watermark)
        return True

    def drop_excess(self) -> Gap | None:
        """Give up the oldest audio beyond the capacity; returns what went, if any."""
        return self._lose(self.backlog.excess)

    def lose_pending(self) -> Gap | None:
        """Give up all that has no final: the session is over and nothing more will come."""
        return self._lose(self.backlog.end - self.backlog.start)

    def balance(self) -> Balance:
        """The ledger at this instant."""
        return self.ledger.balance(self.backlog.pending)

    def _lose(self, samples: int) -> Gap | None:
        start = self.backlog.start
        lost = self.backlog.drop(samples)
        if not lost:
            return None
        self.ledger.lost += lost
        end = start + lost
        self._watermarks = [max(mark, end) for mark in self._watermarks]
        return Gap(start, end)
