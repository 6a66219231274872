"""A session's transcription: one epoch after another, until everything is final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from omi_rt.core import events
from omi_rt.core.backoff import Backoff
from omi_rt.core.deepgram import Malformed, Message, Results
from omi_rt.core.errors import ProviderError, ProviderRefused
from omi_rt.core.ledger import Cost
from omi_rt.core.pacing import UPSTREAM_RATE
from omi_rt.core.speakers import Speakers
from omi_rt.core.transcript import Segment, make_segments
from omi_rt.core.watchdog import Presence
from omi_rt.deepgram.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from omi_rt.core.coverage import Coverage, Gap
    from omi_rt.core.epoch import Heard
    from omi_rt.core.listen import ListenRequest
    from omi_rt.deepgram.provider import Provider

FINISHING_SECONDS = 30.0
"""What ending a session may take, besides sending what is left."""
_UNAUTHORIZED = 401
_ROOM_CHECK_SECONDS = 1.0
_REPORT_GAP_SECONDS = 1.0
"""Lost audio is told in stretches of at least this length, not message by message."""


@define(eq=False)
class Attempt:
    """One epoch: dialling, and the link once it is open."""

    ended: trio.Event = field(factory=trio.Event)
    link: Link | None = None
    error: ProviderError | None = None


class Transcriber:
    """Keeps one epoch current, and replaces it at the watermark when it ends."""

    def __init__(
        self,
        request: ListenRequest,
        provider: Provider,
        coverage: Coverage,
        *,
        session_id: str,
        started_at: datetime,
        on_segments: Callable[[list[Segment]], None],
        on_event: Callable[[dict[str, Any]], None],
        new_id: Callable[[], str],
        log: Any,
    ) -> None:
        self.cost = Cost()
        self.speakers = Speakers()
        self.presence = Presence()
        self._request = request
        self._provider = provider
        self._coverage = coverage
        self._session_id = session_id
        self._started_at = started_at
        self._on_segments = on_segments
        self._on_event = on_event
        self._new_id = new_id
        self._log = log
        self._backoff = Backoff(provider.random)
        self._scope = trio.CancelScope()
        self._room = trio.Event()
        self._current: Attempt | None = None
        self._audio_ended = False
        self._is_ready = False
        self._is_degraded = False
        self._has_renewed = False
        self._gap: Gap | None = None

    # What the device's side calls.

    def receive(self, payload: bytes) -> None:
        """Take audio from the device."""
        if self._coverage.receive(payload):
            self.presence.received(trio.current_time())
            if self._current is not None and self._current.link is not None:
                self._current.link.wake()

    async def make_room(self) -> None:
        """Return when the backlog can take more. Cancelling is safe.

        While Deepgram takes audio this waits, and TCP slows the device; while it is away the oldest
        audio goes.
        """
        while self._coverage.is_full:
            if self.presence.is_away(trio.current_time()):
                self._lost(self._coverage.drop_excess())
                return
            self._room = trio.Event()
            with trio.move_on_after(_ROOM_CHECK_SECONDS):
                await self._room.wait()

    def end_audio(self, within: float | None = None) -> None:
        """No more audio comes: finish what there is.

        Args:
            within: seconds that it may take; by default what sending the rest needs, and 30 s.
        """
        audio_format = self._coverage.audio_format
        rest = audio_format.seconds(self._coverage.backlog.capacity) / UPSTREAM_RATE
        limit = rest + FINISHING_SECONDS if within is None else within
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + limit)
        self._audio_ended = True
        link = self._current.link if self._current is not None else None
        if link is not None:
            link.finish()
        elif self._is_done():
            self._scope.cancel()

    # The task.

    async def run(self) -> None:
        """Transcribe until the audio has ended and everything is final, or was given up.

        Cancelling this drops the connections. Whichever way it ends, nothing is pending after it.

        Raises:
            ProviderError: a refusal that no retry can mend.
        """
        self._on_event(events.service_status("initiating"))
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    while not self._is_done():
                        await self._run_epoch(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self._lost(self._coverage.lose_pending())
            self._report_gap()

    async def _run_epoch(self, nursery: trio.Nursery) -> None:
        await self._provider.wait_for_turn(is_redial=self._backoff.failures > 0)
        attempt = self._current = Attempt()
        nursery.start_soon(self._attempt, attempt)
        await attempt.ended.wait()
        self._current = None
        delay = self._judge(attempt)
        if delay > 0.0 and not self._is_done():
            await trio.sleep(delay)

    async def _attempt(self, attempt: Attempt) -> None:
        dialled_at = trio.current_time()
        try:
            async with self._provider.connect(self._request) as connection:
                self._provider.metrics.setup_seconds.observe(trio.current_time() - dialled_at)
                attempt.link = Link(
                    connection,
                    self._coverage,
                    self._provider.link_options,
                    self.cost,
                    self._heard,
                    self._progressed,
                    self._ignored,
                )
                self._opened(attempt.link)
                await attempt.link.run()
        except ProviderError as error:
            attempt.error = error
        attempt.ended.set()

    def _opened(self, link: Link) -> None:
        self._provider.gate.failing = False
        self._provider.breaker.succeeded()
        self._provider.metrics.provider_dials.labels("open").inc()
        self.presence.opened()
        self._has_renewed = False
        if not self._is_ready:
            self._is_ready = True
            self._on_event(events.ready(self._session_id, self._started_at))
        if self._is_degraded:
            self._is_degraded = False
            self._log.info("provider_recovered", request_id=link.connection.request_id)
            self._on_event(events.service_status("stt_recovered"))
        link.go_live(self._coverage.watermark)
        if self._audio_ended:
            link.finish()

    def _heard(self, link: Link, _results: Results, heard: Heard) -> None:
        self._backoff.reset()
        if heard.words:
            self._on_segments(make_segments(heard.words, self.speakers, link.labels, self._new_id))

    def _progressed(self) -> None:
        pending = self._coverage.backlog.end > self._coverage.backlog.start
        self.presence.progressed(trio.current_time(), pending=pending)
        self._room.set()

    def _ignored(self, message: Message) -> None:
        kind = "malformed" if isinstance(message, Malformed) else "ignored"
        self._provider.metrics.provider_messages.labels(kind).inc()

    # After an epoch.

    def _judge(self, attempt: Attempt) -> float:
        """Account for an attempt that ended; returns the seconds to wait before the next.

        Raises:
            ProviderError: there is to be no next one.
        """
        if attempt.link is not None:
            self._compare_durations(attempt.link)
            self.presence.ended(progressed=attempt.link.progressed)
        if self._is_done():
            return 0.0
        if attempt.error is None:
            # It was closed as we asked. Another try only helps if this one brought something.
            if attempt.link is None or attempt.link.metadata is None or not attempt.link.progressed:
                self._scope.cancel()
            return 0.0
        return self._failed(attempt, attempt.error)

    def _failed(self, attempt: Attempt, error: ProviderError) -> float:
        metrics = self._provider.metrics
        if attempt.link is None:
            self._provider.gate.failing = True
            self.presence.dial_failed()
            metrics.provider_dials.labels("failed").inc()
        else:
            metrics.provider_drops.inc()
        if not error.retryable and not self._can_renew(error):
            status = error.status if isinstance(error, ProviderRefused) else None
            if status and self._provider.breaker.refused(status, trio.current_time()):
                self._log.error("breaker_opened", status=status)
            raise error
        if not self._is_degraded:
            self._is_degraded = True
            self._log.warning("provider_degraded", reason=str(error))
            self._on_event(events.service_status("stt_degraded", str(error)))
        else:
            self._log.debug("provider_still_degraded", reason=str(error))
        return self._backoff.after_failure(error.retry_after)

    def _can_renew(self, error: ProviderError) -> bool:
        """Whether it is a 401 that a fresh token may mend: once."""
        if self._has_renewed or not self._provider.credentials.is_renewable:
            return False
        self._has_renewed = isinstance(error, ProviderRefused) and error.status == _UNAUTHORIZED
        return self._has_renewed

    def _compare_durations(self, link: Link) -> None:
        if link.metadata is None or link.epoch.covers_all(link.metadata.duration):
            return
        self._provider.metrics.provider_disagreements.inc()
        self._log.warning(
            "provider_disagrees",
            sent_seconds=round(link.epoch.sent_seconds, 3),
            accepted_seconds=link.metadata.duration,
            request_id=link.connection.request_id,
        )

    def _is_done(self) -> bool:
        backlog = self._coverage.backlog
        return self._audio_ended and backlog.start == backlog.end

    # Lost audio.

    def _lost(self, gap: Gap | None) -> None:
        if gap is None:
            return
        self._gap = gap if self._gap is None else self._gap.joined(gap)
        length = self._gap.end - self._gap.start
        if length >= self._coverage.audio_format.samples(_REPORT_GAP_SECONDS):
            self._report_gap()

    def _report_gap(self) -> None:
        if self._gap is not None:
            self._on_event(events.audio_lost(self._gap, self._coverage.audio_format))
            self._gap = None
