"""What the device is told of its provider: once when it changes, not at every failure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from omi_rt.core import events

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.coverage import Gap
    from omi_rt.core.deepgram import Results
    from omi_rt.core.epoch import Discard
    from omi_rt.core.errors import ProviderError
    from omi_rt.deepgram.link import Link
    from omi_rt.metrics import Metrics

_REPORT_GAP_SECONDS = 1.0
"""Lost audio is told in stretches of at least this length, not message by message."""


class HealthReport:
    """Turns what happens to a session's provider into events for the device, and log lines."""

    __slots__ = (
        "_format",
        "_gap",
        "_is_clock_ahead",
        "_is_degraded",
        "_is_ready",
        "_log",
        "_metrics",
        "_session_id",
        "_started_at",
        "_tell",
    )

    def __init__(
        self,
        session_id: str,
        audio_format: AudioFormat,
        metrics: Metrics,
        tell: Callable[[dict[str, Any]], None],
        log: Any,
    ) -> None:
        self._session_id = session_id
        self._started_at: datetime | None = None
        self._format = audio_format
        self._metrics = metrics
        self._tell = tell
        self._log = log
        self._is_ready = False
        self._is_degraded = False
        self._is_clock_ahead = False
        self._gap: Gap | None = None

    def started(self) -> None:
        """The session begins to dial."""
        self._tell(events.service_status("initiating"))

    def audio_began(self) -> None:
        """The first audio has come: the session clock's zero."""
        self._started_at = datetime.now(UTC)

    def opened(self, request_id: str) -> bool:
        """An epoch is open that serves the session; returns whether it is the first."""
        is_first = not self._is_ready
        if is_first:
            self._is_ready = True
            self._tell(events.ready(self._session_id, self._started_at or datetime.now(UTC)))
        self.flush()
        if self._is_degraded:
            self._is_degraded = False
            self._log.info("provider_recovered", request_id=request_id)
            self._tell(events.service_status("stt_recovered"))
        return is_first

    def degraded(self, error: ProviderError) -> None:
        """The provider failed, and is tried again."""
        if self._is_degraded:
            self._log.debug("provider_still_degraded", reason=str(error))
            return
        self._is_degraded = True
        self._log.warning("provider_degraded", reason=str(error))
        self._tell(events.service_status("stt_degraded", str(error)))

    def identities_unavailable(self, reason: str, *, is_failure: bool) -> None:
        """Nobody is known in this session; ``is_failure`` is not just that no voice is stored."""
        if is_failure:
            self._metrics.profile_failures.inc()
            self._log.warning("identities_unavailable", reason=reason)
        self._tell(events.service_status("identities_unavailable", reason))

    def closed(self, link: Link) -> None:
        """A connection has ended: compare what it took with what was sent, if it tells."""
        if link.metadata is None or link.epoch.covers_all(link.metadata.duration):
            return
        self._metrics.provider_disagreements.inc()
        self._log.warning(
            "provider_disagrees",
            sent_seconds=round(link.epoch.sent_seconds, 3),
            accepted_seconds=link.metadata.duration,
            request_id=link.connection.request_id,
        )

    def discarded(self, reasons: Counter[Discard]) -> None:
        """Words that a final brought did not reach the transcript."""
        for reason, count in reasons.items():
            self._metrics.words_discarded.labels(reason.value).inc(count)
        self._log.info("words_discarded", **{r.value: n for r, n in reasons.items()})

    def clock_ahead(self, link: Link, results: Results) -> None:
        """A final claims to cover more than was sent: tell so once a session."""
        if not self._is_clock_ahead:
            self._is_clock_ahead = True
            self._metrics.provider_disagreements.inc()
            self._log.warning(
                "provider_clock_ahead",
                sent_seconds=round(link.epoch.sent_seconds, 3),
                claimed_seconds=results.end,
                request_id=link.connection.request_id,
            )

    def lost(self, gap: Gap | None) -> None:
        """Audio was given up."""
        if gap is None:
            return
        if self._gap is not None and self._gap.end != gap.start:
            self.flush()
        self._gap = gap if self._gap is None else self._gap.joined(gap)
        if self._gap.end - self._gap.start >= self._format.samples(_REPORT_GAP_SECONDS):
            self.flush()

    def flush(self) -> None:
        """Tell of what was given up and not told yet."""
        if self._gap is not None:
            self._tell(events.audio_lost(self._gap, self._format))
            self._log.warning("audio_lost", start=self._gap.start, end=self._gap.end)
            self._gap = None
