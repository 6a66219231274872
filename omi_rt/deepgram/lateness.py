"""Telling that a recogniser is behind, once when it falls behind and once when that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core import events
from omi_rt.core.lateness import Lateness, LatenessChange

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.metrics import Metrics


class LatenessReport:
    """Turns what a recogniser says of its work into events for the device, log lines and gauges."""

    __slots__ = ("_began_at", "_lateness", "_log", "_metrics", "_session_id", "_tell")

    def __init__(
        self, session_id: str, metrics: Metrics, tell: Callable[[dict[str, Any]], None], log: Any
    ) -> None:
        self._session_id = session_id
        self._metrics = metrics
        self._tell = tell
        self._log = log
        self._lateness = Lateness()
        self._began_at = 0.0

    def note_work(self, seconds_behind: float, now: float) -> None:
        """Take how much audio is still to be worked through, in seconds, at ``now``."""
        self._metrics.behind_seconds[self._session_id] = seconds_behind
        match self._lateness.report(seconds_behind):
            case LatenessChange.FELL_BEHIND:
                self._began_at = now
                self._metrics.sessions_behind.inc()
                self._log.warning("provider_behind", seconds_behind=seconds_behind)
                self._tell(events.service_status("stt_behind", seconds_behind=seconds_behind))
            case LatenessChange.CAUGHT_UP:
                self._tell(events.service_status("stt_caught_up"))
                self._log_end("caught_up", now)

    def note_connection_end(self, now: float) -> None:
        """Note that the connection or the session is over, so that nothing on it will be caught up."""
        self._metrics.behind_seconds.pop(self._session_id, None)
        if self._lateness.is_behind:
            self._lateness.is_behind = False
            self._log_end("connection_ended", now)

    def _log_end(self, cause: str, now: float) -> None:
        self._metrics.sessions_behind.dec()
        self._log.info(
            "provider_behind_ended",
            cause=cause,
            seconds=now - self._began_at,
            most_seconds_behind=self._lateness.most_seconds,
        )
