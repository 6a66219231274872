"""One epoch on the wire: a connection, its pump, its reader, and the watch over both."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from omi_rt.core.coalescing import MAX_MESSAGE_SECONDS, LoadMeter, message_interval
from omi_rt.core.deepgram import CLOSE_STREAM, FINALIZE, KEEP_ALIVE, Metadata, Results
from omi_rt.core.epoch import Epoch, Heard
from omi_rt.core.errors import ProviderClosed, ProviderError, ProviderUnreachable
from omi_rt.core.pacing import UPSTREAM_DEPTH_SECONDS, UPSTREAM_RATE, TokenBucket
from omi_rt.core.speakers import EpochLabels
from omi_rt.core.watchdog import UNANSWERED_SECONDS, AnswerWatch, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.coverage import Coverage
    from omi_rt.core.deepgram import Message
    from omi_rt.core.lead_in import LeadInPart
    from omi_rt.core.ledger import Cost
    from omi_rt.deepgram.connection import Connection

KEEP_ALIVE_SECONDS = 4.0
FIRST_AUDIO_SECONDS = 8.0
"""Whether KeepAlive holds a connection that never had audio is disputed; at 10 s it would be gone."""
FILLER_SECONDS = 0.1
CLOSING_SECONDS = 10.0
"""From our CloseStream to Metadata."""
_LAST_WORDS_SECONDS = 1.0
"""For what had arrived before a send failed."""
_WATCH_SECONDS = 1.0


@frozen
class LinkOptions:
    """What a link needs to know of the server."""

    send_timeout: float
    message_cap: float
    """Seconds."""
    load: LoadMeter


class Link:
    """Sends one epoch's audio over an open connection and applies what comes back.

    With a lead-in it stays *primed*, and sends no session audio, until `go_live`.
    """

    def __init__(
        self,
        connection: Connection,
        coverage: Coverage,
        options: LinkOptions,
        cost: Cost,
        on_heard: Callable[[Link, Results, Heard], None],
        on_progress: Callable[[], None],
        on_ignored: Callable[[Message], None],
        lead_in: tuple[LeadInPart, ...] = (),
    ) -> None:
        now = trio.current_time()
        self.connection = connection
        self.epoch = Epoch(coverage.audio_format)
        self.labels = EpochLabels()
        self.metadata: Metadata | None = None
        self.progressed = False
        """Whether a final has moved a watermark."""
        self.lead_in_sent = trio.Event()
        """Set when all of the lead-in, and Finalize, has gone up."""
        self.digested = trio.Event()
        """Set when finals cover the lead-in on every channel."""
        self._coverage = coverage
        self._options = options
        self._cost = cost
        self._is_planned = False
        self._on_heard = on_heard
        self._on_progress = on_progress
        self._on_ignored = on_ignored
        self._lead_in = deque(lead_in)
        self._undigested = set(range(coverage.audio_format.channels))
        self._anchors_end = _end_of_last_anchor(lead_in, coverage)
        self._cursor: int | None = None
        self._finishing = False
        self._closing_since: float | None = None
        self._controls: deque[str] = deque()
        self._filler_due = False
        self._opened_at = now
        self._bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, now)
        self._watch = AnswerWatch(coverage.audio_format.samples(UNANSWERED_SECONDS))
        self._work = trio.Event()
        self._scope = trio.CancelScope()

    def go_live(self, origin: int, *, is_planned: bool) -> None:
        """Send the session's audio from position ``origin`` on.

        ``is_planned`` is a switch from an epoch that was still good: what goes up again because of
        it is counted as overlap, not as replay.
        """
        self._cursor = origin
        self._is_planned = is_planned
        self.wake()

    def finish(self) -> None:
        """Send what is left, then CloseStream; `run` returns when all is answered."""
        self._finishing = True
        self.wake()

    def retire(self) -> None:
        """End `run` now: another epoch takes over, or nothing is left to wait for."""
        self._scope.cancel()

    def wake(self) -> None:
        """Tell the pump that there is audio, or something else to do."""
        self._work.set()

    async def run(self) -> None:
        """Work until `retire`, or until our CloseStream is answered or 10 s old.

        Cancelling this ends it at once; the connection must then be dropped.

        Raises:
            ProviderError: the connection ended otherwise, or is no longer worth keeping.
        """
        failure: ProviderError | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump)
                    nursery.start_soon(self._supervise)
                    await self._receive()
                    self.retire()
        except* ProviderError as group:
            failure = _first(group)
        if failure is not None:
            raise failure

    # The writer.

    async def _pump(self) -> None:
        while not self.connection.has_failed_to_send:
            if self._controls:
                await self.connection.send(self._controls.popleft())
            elif self._lead_in:
                await self._send_lead_in()
            elif not await self._send_audio():
                if self._is_all_sent():
                    self._closing_since = trio.current_time()
                    await self.connection.send(CLOSE_STREAM)
                    return
                await self._work.wait()
                self._work = trio.Event()

    async def _send_audio(self) -> bool:
        """Send the next message of session audio; returns whether there was any."""
        if self._filler_due:
            self._filler_due = False
            payload = self._coverage.audio_format.silence(FILLER_SECONDS)
            samples = self._coverage.audio_format.samples_in(payload)
            self.epoch.sent_foreign(samples)
            self._cost.filler += samples
            await self.connection.send(payload)
            return True
        if self._cursor is None:
            return False
        audio_format = self._coverage.audio_format
        limit = audio_format.samples(MAX_MESSAGE_SECONDS)
        chunk = self._coverage.backlog.read(self._cursor, limit)
        if chunk is None:
            return False
        now = trio.current_time()
        seconds = chunk.samples / audio_format.sample_rate
        wait = self._bucket.delay(seconds, now)
        if not self._finishing:
            interval = message_interval(self._options.load.load, self._options.message_cap)
            wait = max(wait, self.connection.last_sent + interval - now)
        if wait > 0.0:
            # More may have come by then, or the oldest may be gone: look again.
            await trio.sleep(wait)
            return True
        self._bucket.take(seconds, now)
        # Before the send, not after: an answer may come while it still waits for its turn.
        self.epoch.sent(chunk.position, chunk.samples)
        self._cost.sent(chunk.position, chunk.end, planned=self._is_planned)
        self._cursor = chunk.end
        await self.connection.send(chunk.payload)
        return True

    async def _send_lead_in(self) -> None:
        part = self._lead_in.popleft()
        audio_format = self._coverage.audio_format
        step = audio_format.samples(MAX_MESSAGE_SECONDS) * audio_format.frame_bytes
        for offset in range(0, len(part.payload), step):
            payload = part.payload[offset : offset + step]
            samples = audio_format.samples_in(payload)
            seconds = samples / audio_format.sample_rate
            await trio.sleep(self._bucket.delay(seconds, trio.current_time()))
            self._bucket.take(seconds, trio.current_time())
            self.epoch.sent_foreign(samples, part.anchor)
            self._cost.lead_in += samples
            await self.connection.send(payload)
        if not self._lead_in:
            await self.connection.send(FINALIZE)
            self.lead_in_sent.set()

    def _is_all_sent(self) -> bool:
        return self._finishing and (
            self._cursor is None or self._cursor >= self._coverage.backlog.end
        )

    # The reader.

    async def _receive(self) -> None:
        while True:
            try:
                message = await self.connection.receive()
            except ProviderClosed:
                if self._closing_since is not None and self.metadata is not None:
                    return
                raise
            if isinstance(message, Results):
                if message.is_final:
                    self._apply(message)
            elif isinstance(message, Metadata):
                if self._closing_since is not None:
                    self.metadata = message
                    self._apply_metadata(message)
                    return
            else:
                self._on_ignored(message)

    def _apply(self, results: Results) -> None:
        heard = self.epoch.hear(results, self._coverage)
        self._watch.answered(results.channel_index[0], trio.current_time())
        # While the audio of the words is still there.
        self._on_heard(self, results, heard)
        if heard.finalise(self._coverage):
            self._progress()
        if not self.digested.is_set():
            self._digest(results, heard.channels)

    def _digest(self, results: Results, channels: range) -> None:
        self._undigested -= {
            channel
            for channel in channels
            if results.from_finalize or self.epoch.heard_until(channel) >= self._anchors_end
        }
        if not self._undigested:
            self.digested.set()

    def _apply_metadata(self, metadata: Metadata) -> None:
        position = self.epoch.sent_position
        if position is not None and self.epoch.covers_all(metadata.duration):
            channels = range(self._coverage.audio_format.channels)
            moved = [self._coverage.finalise(channel, position) for channel in channels]
            if any(moved):
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
            if since is not None and now - since >= self._options.send_timeout:
                raise ProviderUnreachable(f"took no audio for {self._options.send_timeout:g} s")
            if connection.has_failed_to_send:
                failed_at = failed_at or now
                if now - failed_at >= _LAST_WORDS_SECONDS:
                    raise ProviderClosed(1006, "connection lost", retryable=True)
            if self._closing_since is not None:
                if now - self._closing_since >= CLOSING_SECONDS:
                    self.retire()
            else:
                self._keep_up(now)
            await trio.sleep_until(min(now + _WATCH_SECONDS, self._next_due(now)))

    def _keep_up(self, now: float) -> None:
        if self.epoch.sent_position is None and self._is_first_audio_late(now):
            self._filler_due = True
            self.wake()
        elif self._is_idle(now) and not self._controls:
            self._controls.append(KEEP_ALIVE)
            self.wake()
        if self.epoch.sent_position is None:
            return
        match self._watch.verdict(self.epoch.sent_position, self._coverage, now):
            case Verdict.FINALIZE:
                self._controls.append(FINALIZE)
                self.wake()
            case Verdict.ADVANCE:
                self._watch.advance(self._coverage)
                self._progress()
            case Verdict.RECONNECT:
                raise ProviderUnreachable("no answer to Finalize")
            case Verdict.WAIT:
                pass

    def _is_idle(self, now: float) -> bool:
        connection = self.connection
        return connection.sending_since is None and now - connection.last_sent >= KEEP_ALIVE_SECONDS

    def _is_first_audio_late(self, now: float) -> bool:
        return self.epoch.sent_samples == 0 and now - self._opened_at >= FIRST_AUDIO_SECONDS

    def _next_due(self, now: float) -> float:
        dues = [self.connection.last_sent + KEEP_ALIVE_SECONDS]
        if self.connection.sending_since is not None:
            dues.append(self.connection.sending_since + self._options.send_timeout)
        if self._closing_since is not None:
            dues.append(self._closing_since + CLOSING_SECONDS)
        if self.epoch.sent_samples == 0:
            dues.append(self._opened_at + FIRST_AUDIO_SECONDS)
        return min((due for due in dues if due > now), default=now + _WATCH_SECONDS)


def _end_of_last_anchor(lead_in: tuple[LeadInPart, ...], coverage: Coverage) -> int:
    """On the connection's clock, in samples."""
    last = end = 0
    for part in lead_in:
        end += coverage.audio_format.samples_in(part.payload)
        if part.anchor is not None:
            last = end
    return last


def _first(group: BaseExceptionGroup[ProviderError]) -> ProviderError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
