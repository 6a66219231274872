"""One epoch on the wire: a connection, its pump, its reader, and the watch over both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from omi_rt.core.answers import PAUSE_SECONDS, AnswerWatch
from omi_rt.core.deepgram import Message, Metadata, Progress, Results
from omi_rt.core.errors import ProviderClosed, ProviderError, ProviderUnreachable
from omi_rt.core.speakers import EpochLabels
from omi_rt.core.timeline import Heard, Timeline, superseded
from omi_rt.deepgram.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.coverage import Coverage
    from omi_rt.core.lead_in import LeadIn
    from omi_rt.core.ledger import Cost
    from omi_rt.core.patience import Patience
    from omi_rt.deepgram.connection import Connection

KEEP_ALIVE_SECONDS = 4.0
FIRST_AUDIO_SECONDS = 8.0
"""Whether KeepAlive holds a connection that never had audio is disputed; at 10 s it would be gone."""
CLOSING_SECONDS = 10.0
"""Our CloseStream is answered in that time, or counts as ignored. A provider whose answers are late may
take 5 s more than they do, and where speech still waits for a final, the session's patience."""
LINGER_SECONDS = 5.0
"""After Metadata, results that it has overtaken are read until nothing has come for that long, or for
the session's patience where speech still waits for a final."""
_LAST_WORDS_SECONDS = 1.0
"""For what had arrived before a send failed."""
_WATCH_SECONDS = 1.0
_NORMAL_CLOSURE = 1000


class Link:
    """Sends one epoch's audio over an open connection and applies what comes back.

    It sends no session audio until ``pump.go_live``: with a lead-in it is *primed* meanwhile.
    """

    __slots__ = (
        "_coverage",
        "_on_heard",
        "_on_ignored",
        "_on_passed",
        "_on_progress",
        "_on_work",
        "_opened_at",
        "_patience",
        "_received_at",
        "_scope",
        "_send_timeout",
        "_undigested",
        "connection",
        "digested",
        "epoch",
        "labels",
        "metadata",
        "progressed",
        "pump",
        "was_ignored",
        "watch",
    )

    def __init__(
        self,
        connection: Connection,
        coverage: Coverage,
        patience: Patience,
        send_timeout: float,
        cost: Cost,
        on_heard: Callable[[Link, Results, Heard], None],
        on_progress: Callable[[], None],
        on_passed: Callable[[], None],
        on_ignored: Callable[[Message], None],
        on_work: Callable[[Link, float], None],
        lead_in: LeadIn | None = None,
    ) -> None:
        self.connection = connection
        self.epoch = Timeline(coverage.audio_format)
        self.labels = EpochLabels()
        self.watch = AnswerWatch(coverage, patience)
        """Whether the session's audio is answered in time."""
        self.pump = Pump(connection, self.epoch, coverage, cost, self.watch, lead_in)
        self.metadata: Metadata | None = None
        """The answer to our CloseStream."""
        self.was_ignored = False
        """Whether our CloseStream brought nothing within `CLOSING_SECONDS`."""
        self.progressed = False
        """Whether a final has moved a watermark."""
        self.digested = trio.Event()
        """Set when finals cover the lead-in on every channel."""
        self._coverage = coverage
        self._patience = patience
        self._received_at = trio.current_time()
        self._send_timeout = send_timeout
        self._on_heard = on_heard
        self._on_progress = on_progress
        self._on_passed = on_passed
        self._on_ignored = on_ignored
        self._on_work = on_work
        self._undigested = set(range(coverage.audio_format.channels))
        self._opened_at = trio.current_time()
        self._scope = trio.CancelScope()

    @property
    def speech_waits(self) -> bool:
        """Whether anything that sounded has gone up and has no final, as far as finals have times."""
        return not self.epoch.lacks_times and self.watch.lacks_answer()

    def retire(self) -> None:
        """End `run` now: another epoch takes over, or nothing is left to wait for."""
        self._scope.cancel()

    async def run(self) -> None:
        """Work until `retire`, or until our CloseStream is answered or ignored.

        Cancelling this ends it at once; the connection must then be dropped.

        Raises:
            ProviderError: the connection ended otherwise, or is no longer worth keeping.
        """
        failure: ProviderError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.pump.run)
                    nursery.start_soon(self._supervise)
                    await self._receive()
                    self.retire()
        except* ProviderError as group:
            failure = _first(group)
        else:
            if not self.speech_waits:
                self.apply_metadata()
        try:
            if failure is not None:
                raise failure
        finally:
            # Or the error would hold this frame, and the frame the error.
            failure = None

    # The reader.

    async def _receive(self) -> None:
        """Apply what the provider says, until it closes after our CloseStream.

        Metadata is no end: it may overtake the last results.
        """
        try:
            while True:
                # No name for the message: it would be kept until the next, 4 KB for each session.
                self._digest(await self.connection.receive())
        except ProviderClosed as closed:
            is_asked = closed.code == _NORMAL_CLOSURE and self.pump.closing_since is not None
            if not is_asked and (self.metadata is None or self.speech_waits):
                raise

    def _digest(self, message: Message) -> None:
        """Apply one message."""
        self._received_at = trio.current_time()
        if isinstance(message, Results):
            if message.is_final:
                self._apply(message)
        elif isinstance(message, Metadata):
            if self.pump.closing_since is not None:
                self.metadata = message
        elif isinstance(message, Progress):
            if self.watch.record_work(message.seconds_worked or 0.0, self._received_at):
                self._on_work(self, message.seconds_behind or 0.0)
        else:
            self._on_ignored(message)

    def _apply(self, results: Results) -> None:
        if self._scope.cancel_called:
            # Another epoch has its origin already: what this one says now comes twice.
            self._on_heard(
                self,
                results,
                superseded(results),
            )
            return
        heard = self.epoch.hear(results, self._coverage)
        # While the audio of the words is still there.
        self._on_heard(self, results, heard)
        if heard.finalise(self._coverage):
            self.watch.record_progress(heard.channels, heard.covered, trio.current_time())
            self._progress()
        elif heard.words:
            # Words without usable times cover nothing, but they are an answer.
            self.watch.record_progress(heard.channels, None, trio.current_time())
        if results.from_finalize and self.pump.lead_in_sent.is_set():
            self._undigested -= set(heard.channels)
        self.check_digested()

    def check_digested(self) -> None:
        """Set ``digested`` where finals have covered the lead-in, or answered its Finalize."""
        if self.pump.lead_in_sent.is_set():
            end = self.pump.anchors_end
            self._undigested = {c for c in self._undigested if self.epoch.heard_until(c) < end}
            if not self._undigested:
                self.digested.set()

    def apply_metadata(self) -> None:
        """Let the provider's summary cover what no final did, if it counts all that was sent.

        Where speech has no final this is done when no other epoch is to bring it.
        """
        position = self.epoch.sent_position
        if self.metadata is None or position is None:
            return
        covers_all = self.epoch.covers_all(self.metadata.duration)
        if covers_all and self._coverage.finalise_by_metadata(position):
            self._progress()

    def _progress(self) -> None:
        self.progressed = True
        self._on_progress()

    # The watch.

    async def _supervise(self) -> None:
        failed_at: float | None = None
        while True:
            now = trio.current_time()
            connection = self.connection
            since = connection.sending_since
            if since is not None and now - max(since, self.watch.worked_at) >= self._send_timeout:
                raise ProviderUnreachable(f"took no audio for {self._send_timeout:g} s")
            if connection.has_failed_to_send:
                failed_at = failed_at or now
                if now - failed_at >= _LAST_WORDS_SECONDS:
                    raise ProviderClosed(1006, "connection lost", retryable=True)
            if self.pump.closing_since is not None:
                self._wait_for_the_end(now, self.pump.closing_since)
            else:
                self._keep_up(now)
            await trio.sleep_until(min(now + _WATCH_SECONDS, self._next_due(now)))

    def _keep_up(self, now: float) -> None:
        connection, position = self.connection, self.epoch.sent_position
        if self.epoch.sent_samples == 0 and now - self._opened_at >= FIRST_AUDIO_SECONDS:
            self.pump.fill()
        elif connection.sending_since is None and now - connection.last_sent >= KEEP_ALIVE_SECONDS:
            self.pump.keep_alive()
        if position is None:
            return
        judgement = self.watch.judge(now, pauses=now - self.pump.audio_sent_at >= PAUSE_SECONDS)
        if judgement.gives_up:
            raise ProviderUnreachable("no answer to the audio")
        several = self._coverage.audio_format.channels > 1
        for channel in judgement.finalize:
            self.pump.finalize(channel if several else None)
        passed = [self._coverage.finalise_silence(*silent) for silent in judgement.silent]
        passed += [self._coverage.finalise_unanswered(*behind) for behind in judgement.behind]
        if any(passed):
            self._on_passed()

    def _wait_for_the_end(self, now: float, since: float) -> None:
        """Leave when our CloseStream was ignored, or when nothing more follows its answer."""
        unanswered = self.watch.unanswered_seconds(now)
        patience = self._patience.limit_seconds
        if self.metadata is not None:
            linger = LINGER_SECONDS if unanswered is None else patience
            if now - self._received_at >= linger:
                self.retire()
            return
        if unanswered is None:
            usual = self._patience.lag_seconds + LINGER_SECONDS
            is_over = now - since >= max(CLOSING_SECONDS, usual)
        else:
            is_over = now - since >= CLOSING_SECONDS and unanswered >= patience
        if is_over:
            self.was_ignored = True
            self.retire()

    def _next_due(self, now: float) -> float:
        dues = [self.connection.last_sent + KEEP_ALIVE_SECONDS]
        if self.connection.sending_since is not None:
            dues.append(self.connection.sending_since + self._send_timeout)
        if self.pump.closing_since is not None:
            dues.append(self.pump.closing_since + CLOSING_SECONDS)
            dues.append(self._received_at + LINGER_SECONDS)
        if self.epoch.sent_samples == 0:
            dues.append(self._opened_at + FIRST_AUDIO_SECONDS)
        return min((due for due in dues if due > now), default=now + _WATCH_SECONDS)


def _first(group: BaseExceptionGroup[ProviderError]) -> ProviderError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
