"""What the device is told of its provider, once when that changes and not at every failure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from omi_rt.core import events
from omi_rt.core.receipts import ReceiptTimes

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.coverage import Gap
    from omi_rt.core.deepgram import Results
    from omi_rt.core.errors import ProviderError
    from omi_rt.core.heard import Discard
    from omi_rt.deepgram.epoch import Epoch
    from omi_rt.metrics import Metrics

_REPORT_GAP_SECONDS = 1.0
"""Lost audio is told in stretches of at least this length, not message by message."""


class HealthReport:
    """Turns what happens to a session's provider into events for the device, and log lines."""

    __slots__ = (
        "_format",
        "_gap",
        "_has_logged_loss",
        "_is_clock_ahead",
        "_is_degraded",
        "_is_ready",
        "_log",
        "_loss",
        "_metrics",
        "_session_id",
        "_started_at",
        "_tell",
        "receipts",
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
        self.receipts = ReceiptTimes(audio_format.samples(1.0))
        """When the audio came that is not final yet."""
        self._gap: Gap | None = None
        """Audio that was lost and that the device has not been told of yet."""
        self._loss: Gap | None = None
        """Audio that was lost in one go and is not logged yet, because the loss may still grow."""
        self._has_logged_loss = False

    def tell_initiating(self) -> None:
        """Tell that the session begins to dial."""
        self._tell(events.service_status("initiating"))

    def note_first_audio(self) -> None:
        """Note that the first audio has come, which is the session clock's zero."""
        self._started_at = datetime.now(UTC)

    def log_open(self, epoch: Epoch) -> None:
        """Log that a connection has opened, to serve the session now or later."""
        self._log.info("connection_opened", request_id=epoch.request_id, cause=epoch.cause.value)

    def log_replaced(self, epoch: Epoch, cause: str, reason: str = "") -> None:
        """Log that another connection takes the place of one that was open; ``cause`` is one word."""
        self._log.info(
            "connection_replaced",
            request_id=epoch.request_id,
            cause=cause,
            reason=reason,
            sent_seconds=epoch.exchange.timeline.sent_seconds,
        )

    def note_progress(self, position: int, now: float) -> None:
        """Note that the audio before ``position`` is final at ``now`` (`trio.current_time`)."""
        for lag in self.receipts.record_finalised(position, now):
            self._metrics.finalisation_lag.observe(lag)
        if self._loss is not None:
            self.flush()

    def close(self) -> None:
        """Tell what is still to be told, because the session has ended."""
        self.flush()
        if self._is_degraded:
            self._metrics.sessions_degraded.dec()

    def tell_serving(self, request_id: str) -> None:
        """Tell that a connection serves the session, for the first time or again after a failure."""
        if not self._is_ready:
            self._is_ready = True
            self._tell(events.ready(self._session_id, self._started_at or datetime.now(UTC)))
        if self._gap is not None:
            self._tell_gap(self._gap)
        if self._is_degraded:
            self._is_degraded = False
            self._metrics.sessions_degraded.dec()
            self._log.info("provider_recovered", request_id=request_id)
            self._tell(events.service_status("stt_recovered"))

    def tell_degraded(self, error: ProviderError) -> None:
        """Tell that the provider has failed and is tried again."""
        if self._is_degraded:
            self._log.debug("provider_still_degraded", reason=str(error))
            return
        self._is_degraded = True
        self._metrics.sessions_degraded.inc()
        self._log.warning("provider_degraded", reason=str(error))
        self._tell(events.service_status("stt_degraded", str(error)))

    def tell_identities_unavailable(self, reason: str, *, is_failure: bool) -> None:
        """Tell that nobody is known in this session.

        ``is_failure`` says that something went wrong, and that it is not just that no voice is stored.
        """
        if is_failure:
            self._metrics.profile_failures.inc()
            self._log.warning("identities_unavailable", reason=reason)
        self._tell(events.service_status("identities_unavailable", reason))

    def compare_accounts(self, epoch: Epoch) -> None:
        """Compare what an ended connection says that it took with what was sent, if it says so."""
        if epoch.exchange.metadata is None or epoch.exchange.timeline.covers_all(
            epoch.exchange.metadata.duration
        ):
            return
        self._metrics.provider_disagreements.inc()
        self._log.warning(
            "provider_disagrees",
            request_id=epoch.request_id,
            sent_seconds=epoch.exchange.timeline.sent_seconds,
            accepted_seconds=epoch.exchange.metadata.duration,
        )

    def count_discarded(self, reasons: Counter[Discard]) -> None:
        """Count the words of a final that did not reach the transcript."""
        for reason, count in reasons.items():
            self._metrics.words_discarded.labels(reason.value).inc(count)
        self._log.info("words_discarded", **{r.value: n for r, n in reasons.items()})

    def tell_clock_ahead(self, epoch: Epoch, results: Results) -> None:
        """Log, once a session, that a final claims to cover more than was sent."""
        if not self._is_clock_ahead:
            self._is_clock_ahead = True
            self._metrics.provider_disagreements.inc()
            self._log.warning(
                "provider_clock_ahead",
                request_id=epoch.request_id,
                sent_seconds=epoch.exchange.timeline.sent_seconds,
                claimed_seconds=results.end,
            )

    def note_loss(self, gap: Gap | None) -> None:
        """Note audio that was given up, if any was, and tell the device once it is long enough."""
        if gap is None:
            return
        self.receipts.record_given_up(gap.end)
        if self._loss is not None and self._loss.end != gap.start:
            self.flush()
        least = self._format.samples(_REPORT_GAP_SECONDS)
        if self._loss is None:
            self._loss = gap
        else:
            self._loss = self._loss.joined(gap)
            if not self._has_logged_loss and self._loss.end - self._loss.start >= least:
                self._has_logged_loss = True
                start = self._format.seconds(self._loss.start)
                self._log.warning("audio_loss_began", start=start)
        self._gap = gap if self._gap is None else self._gap.joined(gap)
        if self._gap.end - self._gap.start >= least:
            self._tell_gap(self._gap)

    def flush(self) -> None:
        """Tell what was given up and not told yet; what is given up later is another loss."""
        if self._gap is not None:
            self._tell_gap(self._gap)
        if self._loss is not None:
            start = self._format.seconds(self._loss.start)
            end = self._format.seconds(self._loss.end)
            self._log.warning("audio_lost", start=start, end=end, seconds=end - start)
            self._loss, self._has_logged_loss = None, False

    def _tell_gap(self, gap: Gap) -> None:
        self._tell(events.audio_lost(gap, self._format))
        self._gap = None
