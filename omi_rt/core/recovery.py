"""What follows an epoch that has ended: another one, and when, or none.

The decision is a value. Telling the device, the breaker and the log is up to whoever asked for it.

================================================  =====================================================
how the epoch ended                               what follows
================================================  =====================================================
the device's audio has ended, and none is left    the end
with a failure that a new connection can mend     a redial after the back-off
refused with 401, and the token can be renewed    one redial with a fresh token, then the end
with a failure that nothing mends                 the end, with that refusal
closed as asked, at most 0.5 s without a final    the end; the summary may count the rest
Metadata came, and no speech lacks a final        a redial if the epoch moved a watermark, else the end
CloseStream was ignored, no speech lacks a final  the end
a close alone answered, and something is left     a redial, `CLOSE_TRIES` times at most
CloseStream was ignored or Metadata came, and     a redial, which counts for `COST_OF_SILENCE` of those
speech lacks a final                              tries, because finding out takes 10 s
================================================  =====================================================
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.core.backoff import Backoff
from omi_rt.core.clock import METADATA_TOLERANCE_SECONDS
from omi_rt.core.errors import ProviderError, ProviderRefused

if TYPE_CHECKING:
    from random import Random

    from omi_rt.core.absence import Absence
    from omi_rt.core.patience import Patience

CLOSE_TRIES = 5
"""A session spends this many tries on connections that end after CloseStream and leave audio without a
final."""
COST_OF_SILENCE = 3
"""A connection that ignored CloseStream costs this many tries, because it took 10 s to find out."""

IDLE_EPOCHS = 2
"""After this many connections in a row that moved no watermark, the next begins with the session's audio."""


@frozen
class EpochEnd:
    """What is known of an epoch that has ended."""

    was_open: bool
    """Whether the provider had accepted the connection."""
    is_done: bool = False
    """Whether the device's audio has ended and all of it is accounted for."""
    error: ProviderError | None = None
    """Why it ended; None where it was closed as we asked."""
    can_renew: bool = False
    """Whether a fresh token can be had for the next dial."""
    rest_seconds: float = 0.0
    """Seconds of the session's audio that have no final, now that the epoch is over."""
    has_progressed: bool = False
    """Whether it moved a watermark."""
    lacks_times: bool = False
    """Whether none of its finals said what it covers."""
    misses_speech: bool = False
    """Whether speech went up and got no final."""
    has_metadata: bool = False
    """Whether the provider's summary has come."""
    ignored_close: bool = False
    """Whether CloseStream brought no answer."""


@frozen
class Redial:
    """Another epoch is to begin at the watermark."""

    wait_seconds: float
    """Seconds to wait before the dial."""
    failure: ProviderError | None = None
    """What made it necessary; None where something was left to finalise."""


@frozen
class Finish:
    """No other epoch is to follow."""

    refusal: ProviderError | None = None
    """What ends the session, where nothing can mend it."""
    takes_metadata: bool = False
    """Whether the provider's summary is to cover what has no final."""


Decision = Redial | Finish


class Recovery:
    """Decides after each epoch of a session, and keeps what the decisions depend on.

    Args:
        patience: what the session has learned of its provider's lateness.
        absence: whether the provider counts as away.
        random: for the back-off's jitter.
    """

    __slots__ = (
        "_backoff",
        "_close_tries",
        "_has_renewed",
        "_idle_epochs",
        "_lacks_times",
        "absence",
        "patience",
    )

    def __init__(self, patience: Patience, absence: Absence, random: Random) -> None:
        self.patience = patience
        self.absence = absence
        self._backoff = Backoff(random)
        self._has_renewed = False
        self._idle_epochs = 0
        self._lacks_times = False
        self._close_tries = CLOSE_TRIES

    @property
    def is_failing(self) -> bool:
        """Whether the provider has failed since it last sent Results."""
        return self._backoff.failures > 0

    @property
    def may_lead_in(self) -> bool:
        """Whether the session's audio may wait for a short lead-in on the next connection.

        It may not after `IDLE_EPOCHS`, so that a line which is cut every few seconds still gets on; nor
        where finals had no times, by which the words of a lead-in are told from the session's.
        """
        return self._idle_epochs < IDLE_EPOCHS and not self._lacks_times

    def note_open(self) -> None:
        """Note an open connection, which shows that the credential is good."""
        self._has_renewed = False

    def note_results(self) -> None:
        """Note a final of the epoch that serves the session, which shows that the provider works."""
        self._backoff.reset()

    def stretch_to_pass_by(self, overdue_until: int | None) -> int | None:
        """Say what is to be left behind after an epoch that ended while answers were overdue.

        Args:
            overdue_until: session position, in samples, up to which they were; None if none were.

        Returns:
            The session position up to which two connections in a row have given no answer, or None.
        """
        return None if overdue_until is None else self.patience.record_unanswered(overdue_until)

    def after(self, end: EpochEnd) -> Decision:
        """Decide what follows the session's own epoch."""
        if end.was_open:
            self.absence.note_epoch_end(progressed=end.has_progressed)
            self._idle_epochs = 0 if end.has_progressed else self._idle_epochs + 1
            self._lacks_times |= end.lacks_times
        else:
            self.absence.note_failed_dial()
        if end.is_done:
            return Finish()
        error = end.error
        if error is None:
            return self._after_close(end)
        if error.retryable or self._renews(end, error):
            return Redial(self._backoff.after_failure(error.retry_after), error)
        return Finish(refusal=error)

    def _after_close(self, end: EpochEnd) -> Decision:
        if not end.was_open:
            return Finish()
        if end.rest_seconds <= METADATA_TOLERANCE_SECONDS:
            return Finish(takes_metadata=True)
        if end.has_metadata and not end.misses_speech:
            return Redial(0.0) if end.has_progressed else Finish()
        if end.ignored_close and not end.misses_speech:
            return Finish()
        costs_much = end.ignored_close or end.has_metadata
        self._close_tries -= COST_OF_SILENCE if costs_much else 1
        return Redial(0.0) if self._close_tries > 0 else Finish(takes_metadata=True)

    def _renews(self, end: EpochEnd, error: ProviderError) -> bool:
        """Spend the one try that a fresh token is worth after a 401; return whether there was one."""
        is_unauthorized = (
            isinstance(error, ProviderRefused) and error.status == HTTPStatus.UNAUTHORIZED
        )
        if self._has_renewed or not is_unauthorized or not end.can_renew:
            return False
        self._has_renewed = True
        return True
