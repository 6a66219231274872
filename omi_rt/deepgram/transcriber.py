"""A session's transcription: one epoch after another, until everything is final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omi_rt.core.absence import Absence, away_seconds
from omi_rt.core.dials import DialCause
from omi_rt.core.ledger import Cost
from omi_rt.core.patience import Patience
from omi_rt.core.token_bucket import UPSTREAM_RATE
from omi_rt.deepgram.attempt import Attempt
from omi_rt.deepgram.health import HealthReport
from omi_rt.deepgram.lateness import LatenessReport
from omi_rt.deepgram.primer import ONE_SPEAKER, Primer
from omi_rt.deepgram.succession import Succession

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Results
    from omi_rt.core.errors import ProviderError
    from omi_rt.core.lead_in import Anchor, LeadIn
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.timeline import Heard
    from omi_rt.core.transcript import Transcript
    from omi_rt.core.votes import Vote
    from omi_rt.deepgram.link import Link
    from omi_rt.deepgram.provider import Provider

FINISHING_SECONDS = 30.0
"""What ending a session may take, besides sending what is left."""
_ROOM_CHECK_SECONDS = 1.0


class Transcriber:
    """Keeps one epoch current, and replaces it at the watermark when it ends.

    Args:
        request: what the device asked for.
        provider: where to dial.
        coverage: the session's audio.
        transcript: makes segments and corrections of what is heard.
        tell: takes events for the device.
        log: a structlog logger of the session's.
        load_anchors: loads the stored voices; None where no identities are wanted.
        profile_first: hold the session's audio until an epoch has heard the voices, instead of
            switching to such an epoch later.
    """

    def __init__(
        self,
        request: ListenRequest,
        provider: Provider,
        coverage: Coverage,
        transcript: Transcript,
        *,
        tell: Callable[[dict[str, Any]], None],
        log: Any,
        load_anchors: Callable[[], Awaitable[list[Anchor]]] | None = None,
        profile_first: bool = False,
    ) -> None:
        self.cost = Cost()
        self._request = request
        self._provider = provider
        self._coverage = coverage
        self._transcript = transcript
        self._log = log
        self._primer: Primer | None = None
        if load_anchors is not None:
            self._primer = Primer(
                self, coverage.audio_format, transcript.voices, load_anchors, provider
            )
        self._profile_first = profile_first
        self._health = HealthReport(
            transcript.session_id,
            coverage.audio_format,
            provider.metrics,
            tell,
            log,
        )
        self._lateness = LatenessReport(transcript.session_id, provider.metrics, tell, log)
        backlog_seconds = coverage.audio_format.seconds(coverage.backlog.capacity)
        self._patience = Patience(backlog_seconds)
        self._absence = Absence(away_seconds(backlog_seconds))
        self._sent_until = 0
        self._succession = Succession(coverage, provider, self._health, log)
        self._scope = trio.CancelScope()
        self._between = trio.CancelScope()
        self._priming = trio.CancelScope()
        self._room = trio.Event()
        self._utterance_end = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._current: Attempt | None = None
        self._has_dialled = False
        self._audio_ended = False
        self._may_wait_for_work = True
        """Whether ending the session may take longer where the provider is busy."""

    # What the device's side calls.

    def receive(self, payload: bytes, now: float) -> None:
        """Take audio from the device, which came at ``now`` (`trio.current_time`)."""
        samples = self._coverage.receive(payload)
        if samples:
            if samples == self._coverage.backlog.end:
                self._health.audio_began()
            if self._coverage.backlog.end >= self._health.receipts.next_mark:
                self._health.receipts.received(self._coverage.backlog.end, now)
            self._absence.received(now)
            current = self._current
            if current is not None and current.link is not None:
                current.link.pump.offer(now)

    async def make_room(self) -> None:
        """Return when the backlog can take more. Cancelling is safe.

        While Deepgram takes audio this waits, and TCP slows the device; while it is away the oldest
        audio goes.
        """
        while self._coverage.is_full:
            if self._absence.is_away(trio.current_time()):
                self._health.lost(self._coverage.drop_excess())
                break
            self._room = trio.Event()
            with trio.move_on_after(_ROOM_CHECK_SECONDS):
                await self._room.wait()
        self._absence.held_back(trio.current_time())

    def end_audio(self, within: float | None = None) -> None:
        """No more audio comes: finish what there is.

        Args:
            within: seconds that it may take; by default what sending the rest needs, and 30 s, which
                begin again each time that a busy provider gets on with its work.
        """
        audio_format = self._coverage.audio_format
        rest = audio_format.seconds(self._coverage.backlog.capacity) / UPSTREAM_RATE
        limit = rest + FINISHING_SECONDS if within is None else within
        self._may_wait_for_work &= within is None
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + limit)
        self._audio_ended = True
        self._priming.cancel()
        link = self._current.link if self._current is not None else None
        if link is not None:
            link.pump.finish()
        elif self._is_done():
            self._scope.cancel()

    # The task.

    async def run(self) -> None:
        """Transcribe until the audio has ended and everything is final, or was given up.

        Cancelling this drops the connections. Whichever way it ends, nothing is pending after it.

        Raises:
            ProviderError: a refusal that no retry can mend.
        """
        self._health.started()
        failure: ProviderError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    if self._primer is not None and not self._profile_first:
                        self._nursery.start_soon(self._run_primer, self._primer)
                    failure = await self._keep_current()
                    self._nursery.cancel_scope.cancel()
        finally:
            self._note_sent(self._current)
            self._health.lost(self._coverage.lose_pending(self._sent_until))
            self._health.ended()
            self._lateness.connection_ended(trio.current_time())
        if failure is not None:
            raise failure

    async def _run_primer(self, primer: Primer) -> None:
        with self._priming:
            await primer.run()

    async def _keep_current(self) -> ProviderError | None:
        """Run one epoch after another; returns the refusal that ends it all, if there is one."""
        delay = 0.0
        while not self._is_done():
            if self._current is None:
                with trio.CancelScope() as self._between:
                    await trio.sleep(delay)
                    await self.wait_for_turn(is_redial=self._succession.backoff.failures > 0)
                    self._current = await self._start_current()
                # A switch may have come first: then a primed epoch is current already.
                continue
            attempt = self._current
            await attempt.ended.wait()
            if attempt is not self._current:
                continue
            self._current = None
            wait = self._conclude(attempt)
            if wait is None:
                return attempt.error
            delay = wait
        return None

    async def _start_current(self) -> Attempt:
        lead_in: LeadIn | None = None
        if self._primer is not None and self._profile_first:
            lead_in = await self._primer.gather_first()
        cause = DialCause.REDIAL if self._has_dialled else DialCause.FIRST
        self._has_dialled = True
        return self.start(lead_in, cause)

    async def wait_for_turn(self, *, is_redial: bool) -> None:
        """Wait until the process may dial again. Cancelling is safe."""
        await self._provider.wait_for_turn(is_redial=is_redial)

    def start(self, lead_in: LeadIn | None, cause: DialCause) -> Attempt:
        """Open an epoch; one with a lead-in waits for `switch`."""
        assert self._nursery is not None
        gives_way = lead_in is not None and not self._profile_first
        attempt = Attempt(lead_in, cause=cause, gives_way=gives_way)
        self._nursery.start_soon(
            attempt.run,
            self._request,
            self._provider,
            self._coverage,
            self._patience,
            self.cost,
            self._opened,
            self._heard,
            self._progressed,
            self._passed,
            self._worked,
        )
        return attempt

    def switch(self, attempt: Attempt, votes: list[Vote]) -> None:
        """Make a primed epoch the current one, at the watermark."""
        assert attempt.link is not None
        assert attempt.lead_in is not None
        former, self._current = self._current, attempt
        if former is not None and former is not attempt:
            former.stop()
            if former.link is not None:
                self._health.replaced(former.link, "switch")
                self._lateness.connection_ended(trio.current_time())
        self._between.cancel()
        # They are counted in the votes; what comes later is the tail's.
        attempt.link.epoch.lead_in_words.clear()
        self._transcript.learn(
            attempt.link.labels, votes, attempt.lead_in.whose, self._coverage.high_watermark
        )
        is_planned = former is not None and former is not attempt and not former.ended.is_set()
        self._go_live(attempt.link, is_planned=is_planned)
        self._log.info(
            "connection_switched",
            request_id=attempt.link.connection.request_id,
            at=self._coverage.audio_format.seconds(self._coverage.watermark),
            votes=len(votes),
        )

    def identities_unavailable(self, reason: str, *, is_failure: bool) -> None:
        """Tell why nobody is known in this session."""
        self._health.identities_unavailable(reason, is_failure=is_failure)

    async def utterance_end(self) -> None:
        """Wait for the end of an utterance in the current epoch. Cancelling is safe."""
        await self._utterance_end.wait()

    def _opened(self, attempt: Attempt, link: Link) -> None:
        self._succession.opened()
        self._health.connected(link, attempt.cause)
        if attempt.lead_in is None:
            is_first = self._go_live(link, is_planned=False)
            self._want_primed(link, relabel=not is_first)
        elif self._profile_first and self._primer is not None and self._nursery is not None:
            self._health.opened(link.connection.request_id)
            self._nursery.start_soon(self._primer.hear_first, attempt)

    def _go_live(self, link: Link, *, is_planned: bool) -> bool:
        """Let an open epoch serve the session; returns whether it is the first."""
        self._absence.opened()
        is_first = self._health.opened(link.connection.request_id)
        link.pump.go_live(self._coverage.watermark, is_planned=is_planned)
        if self._audio_ended:
            link.pump.finish()
        return is_first

    def _want_primed(self, link: Link, *, relabel: bool) -> None:
        if self._primer is None:
            return
        if link.connection.tells_speakers_apart:
            self._primer.want(relabel=relabel)
        else:
            self._primer.tell(ONE_SPEAKER)

    def _heard(self, link: Link, results: Results, heard: Heard) -> None:
        if heard.discarded:
            self._health.discarded(heard.discarded)
        if heard.claims_unsent:
            self._health.clock_ahead(link, results)
        if self._current is None or link is not self._current.link:
            # It is being primed: what it hears is for the votes alone.
            return
        self._succession.backoff.reset()
        if link.epoch.lead_in_words:
            self._recall(self._current, link, heard)
        self._transcript.narrate(
            link.labels, heard, self._coverage.backlog, speech_final=results.speech_final
        )
        if results.speech_final:
            self._utterance_end.set()
            self._utterance_end = trio.Event()

    def _recall(self, attempt: Attempt, link: Link, heard: Heard) -> None:
        words = link.epoch.take_lead_in_words(heard)
        if words and attempt.lead_in is not None:
            self._transcript.recall(link.labels, words, attempt.lead_in.whose)

    def _progressed(self) -> None:
        pending = self._coverage.backlog.end > self._coverage.backlog.start
        self._health.progressed(self._coverage.watermark, trio.current_time())
        self._absence.progressed(trio.current_time(), pending=pending)
        self._room.set()

    def _passed(self) -> None:
        pending = self._coverage.backlog.end > self._coverage.backlog.start
        self._health.progressed(self._coverage.watermark, trio.current_time())
        self._absence.passed(trio.current_time(), pending=pending)
        self._room.set()

    def _worked(self, link: Link, seconds_behind: float) -> None:
        """Wait for a provider that is busy, as long as it gets on, and tell where it is behind."""
        if self._current is None or link is not self._current.link:
            return
        now = trio.current_time()
        self._absence.worked(now)
        self._lateness.worked(seconds_behind, now)
        if self._audio_ended and self._may_wait_for_work:
            self._scope.deadline = max(self._scope.deadline, now + FINISHING_SECONDS)

    # After an epoch.

    def _conclude(self, attempt: Attempt) -> float | None:
        """Account for an epoch that ended; returns the wait before the next, or None for the end."""
        if attempt.link is not None:
            self._lateness.connection_ended(trio.current_time())
            self._health.closed(attempt.link)
            self._absence.ended(progressed=attempt.link.progressed)
            self._note_sent(attempt)
            self._pass_by_unanswered(attempt.link)
        else:
            self._absence.dial_failed()
        if self._is_done():
            attempt.error = None
            return None
        wait = self._succession.after(attempt)
        if wait is not None and attempt.link is not None:
            error = attempt.error
            cause = "unfinished" if error is None else "lost"
            self._health.replaced(attempt.link, cause, str(error or ""))
        return wait

    def _pass_by_unanswered(self, link: Link) -> None:
        """Leave a stretch behind for which two connections in a row gave no answer."""
        overdue_until = link.watch.overdue_until(trio.current_time())
        if overdue_until is None:
            return
        passed = self._patience.record_unanswered(overdue_until)
        if passed is not None:
            self._health.lost(self._coverage.pass_by(passed))
            self._room.set()

    def _note_sent(self, attempt: Attempt | None) -> None:
        if attempt is not None and attempt.link is not None:
            self._sent_until = max(self._sent_until, attempt.link.epoch.sent_position or 0)

    def _is_done(self) -> bool:
        backlog = self._coverage.backlog
        return self._audio_ended and backlog.start == backlog.end
