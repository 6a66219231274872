"""Whether a provider counts as away, so that a full backlog gives up its oldest audio.

Times are seconds of the caller's clock, passed in.
"""

from __future__ import annotations

import math

from attrs import define

from omi_rt.core.answers import PAUSE_SECONDS

AWAY_SECONDS = 30.0
"""A provider that has moved no watermark for this long is away, unless the backlog holds more."""
AWAY_MARGIN_SECONDS = 10.0
"""A full backlog holds the device back for this long before any of its audio is given up."""
AWAY_EPOCHS = 3
"""A provider is away when this many epochs in a row have moved no watermark."""
_AUDIO_SECONDS = 0.25
"""Audio is noted this often, so a pause may seem longer by as much."""


@define
class Absence:
    """Whether Deepgram counts as away, so that a full backlog gives up its oldest audio.

    It is away while no epoch is open and a dial has failed, and when three epochs in a row, or
    ``away_seconds``, have not moved the watermark. (While the first dial after a drop is still
    under way a full backlog only stops reading from the device: most reconnects take milliseconds,
    and a client that sends faster than real time would lose audio at each for nothing.)
    """

    away_seconds: float = AWAY_SECONDS
    """Seconds without progress after which it is away."""
    audio_due: float = -math.inf
    """When audio is to be noted next; that which comes before changes next to nothing."""
    _waiting_since: float | None = None
    _received_at: float = -math.inf
    _idle_epochs: int = 0
    _dial_failed: bool = False

    def note_audio(self, now: float) -> None:
        """Note that there is audio that waits for a final; before `audio_due` that may be left out.

        A device's pause is not held against Deepgram: the wait begins anew after it.
        """
        if self._waiting_since is None or now - self._received_at >= PAUSE_SECONDS:
            self._waiting_since = now
        self._received_at = now
        self.audio_due = now + _AUDIO_SECONDS

    def note_held_back(self, now: float) -> None:
        """Note that it was we who did not read, not the device that paused."""
        self._received_at = now

    def note_silence_passed(self, now: float, *, pending: bool) -> None:
        """Note that silence was passed, so that the wait begins anew; no epoch has proved good by it."""
        self._begin_anew(now, pending=pending)

    def note_progress(self, now: float, *, pending: bool) -> None:
        """Note that a watermark moved, and whether audio is left that waits."""
        self._begin_anew(now, pending=pending)
        self._idle_epochs = 0

    def note_work(self, now: float) -> None:
        """Note that the provider is busy and gets on, which means that it is not away."""
        if self._waiting_since is not None:
            self._waiting_since = now

    def note_open(self) -> None:
        """Note an open connection."""
        self._dial_failed = False

    def note_failed_dial(self) -> None:
        """Note a dial that failed."""
        self._dial_failed = True

    def note_epoch_end(self, *, progressed: bool) -> None:
        """Note the end of an epoch and whether it moved the watermark."""
        self._idle_epochs = 0 if progressed else self._idle_epochs + 1

    def _begin_anew(self, now: float, *, pending: bool) -> None:
        self._waiting_since = now if pending else None
        if not pending:
            # The wait begins with the very next audio, which may be the last for long.
            self.audio_due = -math.inf

    def is_away(self, now: float) -> bool:
        """Whether Deepgram is away at ``now``."""
        overdue = self._waiting_since is not None and now - self._waiting_since >= self.away_seconds
        return self._dial_failed or overdue or self._idle_epochs >= AWAY_EPOCHS


def away_seconds(backlog_seconds: float) -> float:
    """After how many seconds without progress a provider is away, for a backlog of that length.

    Before the backlog is full there is nothing to give up; then the device is held back for 10 s.
    """
    return max(AWAY_SECONDS, backlog_seconds + AWAY_MARGIN_SECONDS)
