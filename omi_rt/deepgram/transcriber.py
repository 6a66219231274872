"""A session's transcription: one epoch after another, until everything is final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from omi_rt.core.absence import Absence, away_seconds
from omi_rt.core.deepgram import SpeechStarted
from omi_rt.core.dials import DialCause
from omi_rt.core.errors import ProviderError, ProviderRefused
from omi_rt.core.exchange import Exchange
from omi_rt.core.ledger import Cost
from omi_rt.core.news import (
    ConfigureAnswered,
    FinalHeard,
    InterimHeard,
    Progressed,
    SilencePassed,
    SpeechNoticed,
    Unused,
    Worked,
)
from omi_rt.core.patience import Patience
from omi_rt.core.phase import Phase
from omi_rt.core.recovery import EpochEnd, Finish, Recovery, Redial
from omi_rt.core.short_lead_in import ShortLeadIn
from omi_rt.core.token_bucket import UPSTREAM_RATE
from omi_rt.core.updates import SpeechBegan, SpeechPaused
from omi_rt.deepgram.asked import ClientRequests
from omi_rt.deepgram.epoch import Epoch, Opened
from omi_rt.deepgram.lateness import LatenessReport
from omi_rt.deepgram.primer import Primer
from omi_rt.deepgram.recognition import Recognition
from omi_rt.deepgram.report import HealthReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Results, UtteranceEnd
    from omi_rt.core.lead_in import Anchor, LeadIn
    from omi_rt.core.listen import ListenRequest
    from omi_rt.core.recovery import Decision
    from omi_rt.core.transcript import Transcript
    from omi_rt.core.votes import Vote
    from omi_rt.deepgram.epoch import EpochNews
    from omi_rt.deepgram.provider import Provider

FINISHING_SECONDS = 30.0
"""Ending a session may take this long, besides sending what is left of its audio and waiting for answers
that are usually late."""
_MOST_LAG_SECONDS = 40.0
"""Answers are taken to be no later than this then, so that a client need not wait for more than 2 minutes."""
_ROOM_CHECK_SECONDS = 1.0
"""A device that is held back is looked at this often, since a provider that is away makes no room."""


class Transcriber:
    """Keeps one epoch serving the session, and replaces it at the watermark when it ends.

    Args:
        request: what the device asked for.
        provider: where to dial.
        coverage: the session's audio.
        transcript: makes segments and corrections of what is heard.
        tell: takes events for the device.
        log: a structlog logger of the session's.
        load_anchors: loads the stored voices; None where no identities are wanted.
        profile_first: let the stored voices go up before the session's audio on its own connection,
            instead of switching later to one that has heard them, as long as the allowance lasts.
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
        self._provider = provider
        self._coverage = coverage
        self._transcript = transcript
        self._log = log
        self._profile_first = profile_first
        session_id, metrics = transcript.session_id, provider.metrics
        self._report = HealthReport(session_id, coverage.audio_format, metrics, tell, log)
        self._lateness = LatenessReport(session_id, metrics, tell, log)
        backlog_seconds = coverage.audio_format.seconds(coverage.backlog.capacity)
        self._absence = Absence(away_seconds(backlog_seconds))
        self._recovery = Recovery(Patience(backlog_seconds), self._absence, provider.random)
        self._primer: Primer | None = None
        if load_anchors is not None:
            self._primer = Primer(
                coverage.audio_format,
                transcript.voices,
                self._recovery.patience,
                load_anchors,
                provider,
                self._report,
                dial=self._dial,
                owes_answer=self._owes_answer,
                switch=self._switch,
            )
        self._recognition = Recognition(coverage, transcript, self._primer)
        self._asked = ClientRequests(request, coverage, transcript)
        self._scope = trio.CancelScope()
        """Of `run`."""
        self._between: trio.CancelScope | None = None
        """Of the wait for the next dial."""
        self._priming = trio.CancelScope()
        self._room: trio.Event | None = None
        """While `make_room` waits."""
        self._nursery: trio.Nursery | None = None
        """Of the connections beside the session's own; None where there are no voices to be heard."""
        self._serving: Epoch | None = None
        """The session's own epoch, from its dial to its end. Only its finals count."""
        self._sent_until = 0
        self._has_dialled = False
        self._has_served = False
        self._audio_ended = False
        self._may_wait_for_work = True
        """Whether ending the session may take longer where the provider is busy."""

    # What the device's side calls.

    def receive(self, payload: bytes, now: float) -> None:
        """Take audio from the device, which came at ``now`` (`trio.current_time`)."""
        coverage, receipts = self._coverage, self._report.receipts
        samples = coverage.receive(payload)
        if samples:
            end = coverage.backlog.end
            if samples == end:
                self._report.note_first_audio()
            if end >= receipts.next_mark:
                receipts.record_received(end, now)
            if now >= self._absence.audio_due:
                self._absence.note_audio(now)
            if self._serving is not None:
                self._serving.offer(payload, samples, now)

    def finalize(self, channel: int | None = None) -> None:
        """Finalise what has come so far, on one channel (counted from 0) or on all."""
        self._asked.finalize(channel, self._serving)

    def configure(self, keyterms: tuple[str, ...] | None, *, numerals: bool | None) -> None:
        """Pass the client's options on to the provider; what is None stays as it is."""
        self._asked.configure(keyterms, numerals=numerals, serving=self._serving)

    async def make_room(self) -> None:
        """Return when the backlog can take more. Cancelling is safe.

        While Deepgram takes audio this waits, and TCP slows the device; while it is away the oldest
        audio goes.
        """
        while self._coverage.is_full:
            if self._absence.is_away(trio.current_time()):
                self._report.note_loss(self._coverage.drop_excess())
                break
            self._room = trio.Event()
            with trio.move_on_after(_ROOM_CHECK_SECONDS):
                await self._room.wait()
            self._room = None
        self._absence.note_held_back(trio.current_time())

    def end_audio(self, within: float | None = None) -> None:
        """Finish what there is, because no more audio comes.

        Args:
            within: seconds that it may take; by default what sending the rest needs, as long as answers
                take, and 30 s, which begin again each time that a busy provider gets on with its work.
        """
        audio_format = self._coverage.audio_format
        rest = audio_format.seconds(self._coverage.backlog.capacity) / UPSTREAM_RATE
        lag = min(self._recovery.patience.lag_seconds, _MOST_LAG_SECONDS)
        limit = rest + lag + FINISHING_SECONDS if within is None else within
        self._may_wait_for_work &= within is None
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + limit)
        self._audio_ended = True
        self._priming.cancel()
        if within is not None and self._primer is not None:
            self._primer.hurry()
        if self._serving is not None and self._serving.opened.is_set():
            self._finish(self._serving)
        elif self._is_done():
            self._scope.cancel()

    # The task.

    async def run(self) -> None:
        """Transcribe until the audio has ended and everything is final, or was given up.

        Cancelling this drops the connections. Whichever way it ends, nothing is pending after it.

        Raises:
            ProviderError: a refusal that no retry can mend.
        """
        self._report.tell_initiating()
        refusal: ProviderError | None = None
        try:
            if self._primer is None:
                # Nothing runs beside the session's own connection: a nursery would take 0.7 KB more.
                with self._scope:
                    refusal = await self._keep_serving()
            else:
                async with trio.open_nursery() as self._nursery:
                    self._take_scope(self._nursery.cancel_scope)
                    self._nursery.start_soon(self._run_primer, self._primer)
                    refusal = await self._keep_serving()
                    self._scope.cancel()
        finally:
            self._note_sent(self._serving)
            self._report.note_loss(self._coverage.lose_pending(self._sent_until))
            self._report.close()
            self._lateness.note_connection_end(trio.current_time())
        if refusal is not None:
            raise refusal

    def _take_scope(self, scope: trio.CancelScope) -> None:
        """Let the nursery's own scope be that of `run`: one around it would take 0.7 KB."""
        scope.deadline = self._scope.deadline
        if self._scope.cancel_called:
            scope.cancel()
        self._scope = scope

    async def _run_primer(self, primer: Primer) -> None:
        with self._priming:
            await primer.run()

    async def _keep_serving(self) -> ProviderError | None:
        """Run one epoch after another; return the refusal that ends the session, if there is one."""
        wait_seconds = 0.0
        while not self._is_done():
            epoch = self._serving
            if epoch is None:
                with trio.CancelScope() as self._between:
                    await trio.sleep(wait_seconds)
                    await self._provider.wait_for_turn(is_redial=self._recovery.is_failing)
                    epoch = self._serving = await self._make_own()
                self._between = None
                if epoch is None:
                    # A switch came first: a primed epoch serves already.
                    continue
                # In this task, because one of its own would take 1.2 KB for as long as the session lasts.
                await epoch.run(self._asked.request, self._provider)
            else:
                await epoch.ended.wait()
            if epoch is not self._serving:
                continue
            self._serving = None
            decision = self._conclude(epoch)
            if isinstance(decision, Finish):
                return decision.refusal
            wait_seconds = decision.wait_seconds
        return None

    async def _make_own(self) -> Epoch:
        lead_in: LeadIn | ShortLeadIn | None = None
        primer = self._primer
        if primer is not None and self._recovery.may_lead_in and self._may_wait_for_work:
            # Where the end of the session has a limit, its last words have no time to wait.
            if self._profile_first and primer.may_hear_first:
                lead_in = await primer.gather_first()
            lead_in = lead_in or primer.make_short()
        cause = DialCause.REDIAL if self._has_dialled else DialCause.FIRST
        self._has_dialled = True
        return self._make(lead_in, cause, gives_way=False)

    def _dial(self, lead_in: LeadIn, cause: DialCause) -> Epoch:
        """Dial an epoch beside the session's own."""
        assert self._nursery is not None
        epoch = self._make(lead_in, cause, gives_way=True)
        self._nursery.start_soon(epoch.run, self._asked.request, self._provider)
        return epoch

    def _make(
        self, lead_in: LeadIn | ShortLeadIn | None, cause: DialCause, *, gives_way: bool
    ) -> Epoch:
        exchange = Exchange(
            self._coverage,
            self._recovery.patience,
            self.cost,
            self._provider.send_timeout,
            trio.current_time(),
            lead_in,
        )
        return Epoch(exchange, cause, self._take_news, lead_in, gives_way=gives_way)

    def _owes_answer(self) -> bool:
        """Whether a switch should wait for the first answer of the session's own epoch to what was said.

        Not for that of the session's first epoch, which was opened no later than one that has answered.
        """
        epoch = self._serving
        if epoch is None or epoch.cause is DialCause.FIRST or epoch.exchange.has_progressed:
            return False
        return epoch.exchange.watch.unanswered_seconds(trio.current_time()) is not None

    # Who serves.

    def _switch(self, epoch: Epoch, votes: list[Vote] | None) -> None:
        """Let a primed epoch serve the session from the watermark on, in place of its own.

        Where ``votes`` is None they are counted as soon as all of the lead-in has been heard.
        """
        assert epoch.lead_in is not None
        former, self._serving = self._serving, epoch
        replaces = former is not None and former is not epoch
        is_planned = replaces and former is not None and not former.ended.is_set()
        if replaces and former is not None:
            was_open = former.opened.is_set()
            former.retire()
            if was_open:
                self._report.log_replaced(former, "switch")
                self._lateness.note_connection_end(trio.current_time())
        if self._between is not None:
            self._between.cancel()
        if votes is not None:
            self._recognition.learn_at_once(epoch, epoch.lead_in, votes)
        unheard = epoch.lead_in if votes is None else None
        self._go_live(epoch, is_planned=is_planned, unheard=unheard)
        self._log.info(
            "connection_switched",
            request_id=epoch.request_id,
            at=self._coverage.audio_format.seconds(self._coverage.watermark),
            votes=len(votes or ()),
        )

    def _go_live(
        self, epoch: Epoch, *, is_planned: bool, unheard: LeadIn | ShortLeadIn | None = None
    ) -> None:
        self._absence.note_open()
        self._has_served = True
        self._report.tell_serving(epoch.request_id)
        self._recognition.begin(unheard)
        keeps_lead_in = isinstance(unheard, ShortLeadIn)
        epoch.exchange.go_live(is_planned=is_planned, keeps_lead_in=keeps_lead_in)
        self._asked.note_serving(epoch)
        if self._audio_ended:
            self._finish(epoch)
        epoch.wake()

    def _finish(self, epoch: Epoch) -> None:
        # An epoch that is being primed has session audio still to come; it is finished once it is live.
        if epoch.exchange.phase is Phase.LIVE:
            epoch.exchange.finish()
            epoch.wake()

    # What epochs tell.

    def _take_news(self, epoch: Epoch, news: EpochNews, now: float) -> None:
        match news:
            case FinalHeard():
                self._take_final(epoch, news)
            case Progressed():
                self._absence.note_progress(now, pending=self._is_pending)
                self._note_room(now)
            case SilencePassed():
                self._absence.note_silence_passed(now, pending=self._is_pending)
                self._note_room(now)
            case Worked(seconds_behind):
                self._take_work(epoch, seconds_behind, now)
            case Unused(message):
                self._provider.note_unused(message)
            case InterimHeard(results):
                self._take_interim(epoch, results)
            case SpeechNoticed(message, position):
                self._take_speech(epoch, message, position)
            case ConfigureAnswered(failure):
                self._asked.take_configured(failure)
            case Opened():
                self._take_open(epoch)

    def _take_open(self, epoch: Epoch) -> None:
        self._recovery.note_open()
        self._report.log_open(epoch)
        if isinstance(epoch.lead_in, ShortLeadIn):
            if self._primer is not None:
                self._primer.note_short_begun(epoch.lead_in)
            self._go_live(epoch, is_planned=False, unheard=epoch.lead_in)
        elif epoch.lead_in is None:
            lost_labels = self._has_served
            self._go_live(epoch, is_planned=False)
            if self._primer is not None:
                self._primer.want(relabel=lost_labels)
        elif epoch is self._serving and self._primer is not None and self._nursery is not None:
            self._report.tell_serving(epoch.request_id)
            self._nursery.start_soon(self._primer.hear_first, epoch)

    def _take_final(self, epoch: Epoch, final: FinalHeard) -> None:
        heard = final.heard
        if heard.discarded:
            self._report.count_discarded(heard.discarded)
        if heard.claims_unsent:
            self._report.tell_clock_ahead(epoch, final.results)
        if epoch is not self._serving:
            # This epoch is being primed, so what it hears is for the votes alone.
            return
        if self._recognition.take(epoch, heard):
            self._transcript.narrate(
                epoch.labels,
                heard,
                self._coverage.backlog,
                speech_final=final.results.speech_final,
                from_finalize=self._asked.answers(heard, from_finalize=final.results.from_finalize),
            )
            if final.results.speech_final and self._primer is not None:
                self._primer.note_utterance_end()
        # Behind the telling, which need not wait for it.
        self._recovery.note_results()

    def _take_work(self, epoch: Epoch, seconds_behind: float, now: float) -> None:
        """Wait for a provider that is busy, as long as it gets on, and tell where it is behind."""
        if epoch is not self._serving:
            return
        self._absence.note_work(now)
        self._lateness.note_work(seconds_behind, now)
        if self._audio_ended and self._may_wait_for_work:
            self._scope.deadline = max(self._scope.deadline, now + FINISHING_SECONDS)

    def _take_interim(self, epoch: Epoch, results: Results) -> None:
        if self._asked.request.wants_interims and epoch is self._serving:
            heard = epoch.exchange.timeline.preview(results, self._coverage)
            self._transcript.preview(epoch.labels, heard)

    def _take_speech(
        self, epoch: Epoch, message: SpeechStarted | UtteranceEnd, position: int
    ) -> None:
        if epoch is not self._serving:
            return
        index = message.channel_index
        count = self._coverage.audio_format.channels
        channel = 0 if index is None else min(index[0], count - 1)
        channels = range(channel, channel + 1)
        began = isinstance(message, SpeechStarted)
        self._transcript.tell(
            SpeechBegan(channels, position) if began else SpeechPaused(channels, position)
        )

    def _note_room(self, now: float) -> None:
        """Note that the watermark has moved, so that the backlog may have room."""
        self._report.note_progress(self._coverage.watermark, now)
        self._asked.note_progress(now, self._serving)
        self._tell_room()

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()

    # After an epoch.

    def _conclude(self, epoch: Epoch) -> Decision:
        """Account for the session's own epoch, which has ended, and carry out what follows from it."""
        if epoch.opened.is_set():
            self._lateness.note_connection_end(trio.current_time())
            self._report.compare_accounts(epoch)
            self._note_sent(epoch)
            self._pass_by_unanswered(epoch)
        decision = self._recovery.after(self._end_of(epoch))
        match decision:
            case Redial(failure=failure):
                if failure is not None:
                    self._report.tell_degraded(failure)
                if epoch.opened.is_set():
                    cause = "unfinished" if failure is None else "lost"
                    self._report.log_replaced(epoch, cause, str(failure or ""))
            case Finish(refusal=ProviderRefused(status=status)):
                if self._provider.breaker.record_refusal(status, trio.current_time()):
                    self._log.error("breaker_opened", status=status)
            case Finish(takes_metadata=True):
                for news in epoch.exchange.apply_metadata():
                    self._take_news(epoch, news, trio.current_time())
        return decision

    def _end_of(self, epoch: Epoch) -> EpochEnd:
        backlog, exchange = self._coverage.backlog, epoch.exchange
        return EpochEnd(
            was_open=epoch.opened.is_set(),
            is_done=self._is_done(),
            error=epoch.error,
            can_renew=self._provider.credentials.is_renewable,
            rest_seconds=self._coverage.audio_format.seconds(backlog.end - backlog.start),
            has_progressed=exchange.has_progressed,
            lacks_times=exchange.timeline.lacks_times,
            misses_speech=exchange.misses_speech,
            has_metadata=exchange.metadata is not None,
            ignored_close=exchange.ignored_close,
        )

    def _pass_by_unanswered(self, epoch: Epoch) -> None:
        """Leave a stretch behind for which two connections in a row gave no answer."""
        overdue_until = epoch.exchange.watch.overdue_until(trio.current_time())
        passed = self._recovery.stretch_to_pass_by(overdue_until)
        if passed is not None:
            self._report.note_loss(self._coverage.pass_by(passed))
            self._tell_room()

    def _note_sent(self, epoch: Epoch | None) -> None:
        if epoch is not None:
            self._sent_until = max(self._sent_until, epoch.exchange.timeline.sent_position or 0)

    @property
    def _is_pending(self) -> bool:
        backlog = self._coverage.backlog
        return backlog.end > backlog.start

    def _is_done(self) -> bool:
        return self._audio_ended and not self._is_pending
