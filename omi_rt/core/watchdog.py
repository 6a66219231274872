"""A provider that takes audio and says nothing: when to ask, when to go on without, when to leave.

Times are seconds of the caller's clock, passed in; audio is in samples.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage

UNANSWERED_SECONDS = 10.0
"""Of sent audio without a final on some channel: then Finalize is sent."""
ANSWER_SECONDS = 10.0
"""Without any answer to Finalize: then the connection is given up."""
CHANNEL_GRACE_SECONDS = 5.0
"""After the first channel's answer to Finalize: then the silent channels go along with it."""
AWAY_SECONDS = 30.0
PAUSE_SECONDS = 5.0
"""Without audio from the device: then it has paused."""
AWAY_EPOCHS = 3


class Verdict(Enum):
    """What to do about a provider."""

    WAIT = "wait"
    FINALIZE = "finalize"
    ADVANCE = "advance"
    """Move the silent channels' watermarks to the lowest of those that answered."""
    RECONNECT = "reconnect"


@define
class AnswerWatch:
    """Whether finals keep up with the audio, in one epoch."""

    limit: int
    """Samples that may be sent without a final."""
    _asked_at: float | None = None
    _answered_at: float | None = None
    _answered: set[int] = field(factory=set)

    def answered(self, channel: int, now: float) -> None:
        """Note a final on ``channel``."""
        if self._asked_at is not None:
            self._answered.add(channel)
            if self._answered_at is None:
                self._answered_at = now

    def verdict(self, sent_position: int, coverage: Coverage, now: float) -> Verdict:
        """Judge; a verdict other than WAIT is given once."""
        channels = range(coverage.audio_format.channels)
        if self._asked_at is None:
            if sent_position - coverage.watermark < self.limit:
                return Verdict.WAIT
            self._asked_at = now
            return Verdict.FINALIZE
        if self._answered_at is None:
            if now - self._asked_at < ANSWER_SECONDS:
                return Verdict.WAIT
            self._reset()
            return Verdict.RECONNECT
        if len(self._answered) == len(channels):
            self._reset()
            return Verdict.WAIT
        if now - self._answered_at < CHANNEL_GRACE_SECONDS:
            return Verdict.WAIT
        return Verdict.ADVANCE

    def advance(self, coverage: Coverage) -> None:
        """Carry out an ADVANCE."""
        target = min(coverage.watermark_of(channel) for channel in self._answered)
        for channel in range(coverage.audio_format.channels):
            coverage.finalise(channel, target)
        self._reset()

    def _reset(self) -> None:
        self._asked_at = self._answered_at = None
        self._answered.clear()


@define
class Presence:
    """Whether Deepgram counts as away: then a full backlog gives up its oldest audio.

    It is away while no epoch is open and a dial has failed, and when three epochs in a row, or 30 s,
    have not moved the watermark. (While the first dial after a drop is still under way a full
    backlog only stops reading from the device: most reconnects take milliseconds, and a client that
    sends faster than real time would lose audio at each for nothing.)
    """

    _waiting_since: float | None = None
    _received_at: float = -math.inf
    _idle_epochs: int = 0
    _dial_failed: bool = False

    def received(self, now: float) -> None:
        """Note that there is audio that waits for a final.

        A pause of the device's is not held against Deepgram: the wait begins anew after it.
        """
        if self._waiting_since is None or now - self._received_at >= PAUSE_SECONDS:
            self._waiting_since = now
        self._received_at = now

    def held_back(self, now: float) -> None:
        """Note that it was we who did not read, not the device that paused."""
        self._received_at = now

    def progressed(self, now: float, *, pending: bool) -> None:
        """Note that a watermark moved, and whether audio is left that waits."""
        self._waiting_since = now if pending else None
        self._idle_epochs = 0

    def opened(self) -> None:
        """Note an open connection."""
        self._dial_failed = False

    def dial_failed(self) -> None:
        """Note a dial that failed."""
        self._dial_failed = True

    def ended(self, *, progressed: bool) -> None:
        """Note the end of an epoch and whether it moved the watermark."""
        self._idle_epochs = 0 if progressed else self._idle_epochs + 1

    def is_away(self, now: float) -> bool:
        """Whether Deepgram is away at ``now``."""
        overdue = self._waiting_since is not None and now - self._waiting_since >= AWAY_SECONDS
        return self._dial_failed or overdue or self._idle_epochs >= AWAY_EPOCHS
