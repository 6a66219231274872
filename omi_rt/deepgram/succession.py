"""What follows an epoch that has ended: another one, and when, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omi_rt.core.backoff import Backoff
from omi_rt.core.epoch import METADATA_TOLERANCE_SECONDS
from omi_rt.core.errors import ProviderError, ProviderRefused

if TYPE_CHECKING:
    from omi_rt.core.coverage import Coverage
    from omi_rt.deepgram.attempt import Attempt
    from omi_rt.deepgram.health import HealthReport
    from omi_rt.deepgram.link import Link
    from omi_rt.deepgram.provider import Provider

_UNAUTHORIZED = 401
_PATIENCE = 5
"""So many connections may end after our CloseStream and leave something to try for again."""
_COST_OF_SILENCE = 3
"""An ignored CloseStream counts for so many of them: it takes 10 s."""


class Succession:
    """Decides after each epoch of a session, and keeps what the decisions depend on."""

    __slots__ = (
        "_coverage",
        "_has_renewed",
        "_health",
        "_log",
        "_patience",
        "_provider",
        "backoff",
    )

    def __init__(
        self, coverage: Coverage, provider: Provider, health: HealthReport, log: Any
    ) -> None:
        self.backoff = Backoff(provider.random)
        self._coverage = coverage
        self._provider = provider
        self._health = health
        self._log = log
        self._has_renewed = False
        self._patience = _PATIENCE

    def opened(self) -> None:
        """An epoch is open: the credential is good."""
        self._has_renewed = False

    def after(self, attempt: Attempt) -> float | None:
        """Return the seconds to wait before the next epoch, or None: there is to be no other.

        Then ``attempt.error`` is the refusal that ends the session, if one does.
        """
        error = attempt.error
        if error is None:
            return 0.0 if self._is_worth_another(attempt.link) else None
        if error.retryable or self._renews(error):
            self._health.degraded(error)
            return self.backoff.after_failure(error.retry_after)
        status = error.status if isinstance(error, ProviderRefused) else None
        if status and self._provider.breaker.refused(status, trio.current_time()):
            self._log.error("breaker_opened", status=status)
        return None

    def _is_worth_another(self, link: Link | None) -> bool:
        """Whether an epoch that was closed as we asked has left something to try for again.

        Where CloseStream was ignored with speech unanswered, once more, and likewise where Metadata
        counts speech that had no final; where it was answered by a close alone, a few times; where Metadata tells that something
        is missing, as long as an epoch brings anything.
        """
        backlog = self._coverage.backlog
        rest = self._coverage.audio_format.seconds(backlog.end - backlog.start)
        if link is None:
            return False
        if rest <= METADATA_TOLERANCE_SECONDS:
            link.apply_metadata()
            return False
        misses_speech = link.speech_waits
        if link.metadata is not None and not misses_speech:
            return link.progressed
        if link.was_ignored and not misses_speech:
            return False
        costs_much = link.was_ignored or link.metadata is not None
        self._patience -= _COST_OF_SILENCE if costs_much else 1
        if self._patience > 0:
            return True
        link.apply_metadata()
        return False

    def _renews(self, error: ProviderError) -> bool:
        """Spend the one try that a fresh token is worth after a 401; returns whether there was one."""
        is_unauthorized = isinstance(error, ProviderRefused) and error.status == _UNAUTHORIZED
        if self._has_renewed or not is_unauthorized or not self._provider.credentials.is_renewable:
            return False
        self._has_renewed = True
        return True
