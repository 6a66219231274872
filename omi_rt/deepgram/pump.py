"""The only writer of a connection to Deepgram: lead-in, audio, control messages, in this order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from omi_rt.core.deepgram import CLOSE_STREAM, FINALIZE, KEEP_ALIVE, finalize_channel
from omi_rt.core.load import MAX_MESSAGE_SECONDS
from omi_rt.core.token_bucket import UPSTREAM_DEPTH_SECONDS, UPSTREAM_RATE, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omi_rt.core.answers import AnswerWatch
    from omi_rt.core.audio import AudioChunk
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.lead_in import LeadIn, LeadInPart
    from omi_rt.core.ledger import Cost
    from omi_rt.core.timeline import Timeline
    from omi_rt.deepgram.connection import Connection

FILLER_SECONDS = 0.1


class Pump:
    """Sends one epoch's audio, at the pace that the provider takes, and records it in the epoch."""

    __slots__ = (
        "_bucket",
        "_connection",
        "_controls",
        "_cost",
        "_coverage",
        "_cursor",
        "_epoch",
        "_format",
        "_is_finishing",
        "_is_idle",
        "_is_planned",
        "_lead_in",
        "_most",
        "_needs_filler",
        "_overlap",
        "_rate",
        "_tail",
        "_unsent",
        "_watch",
        "_work",
        "anchors_end",
        "audio_sent_at",
        "closing_since",
        "lead_in_sent",
    )

    def __init__(
        self,
        connection: Connection,
        epoch: Timeline,
        coverage: Coverage,
        cost: Cost,
        watch: AnswerWatch,
        lead_in: LeadIn | None,
    ) -> None:
        self.lead_in_sent = trio.Event()
        """Set when all of the lead-in, and Finalize, has gone up."""
        self.closing_since: float | None = None
        """When CloseStream went up (`trio.current_time`)."""
        self._connection = connection
        self._epoch = epoch
        self._coverage = coverage
        self._format = coverage.audio_format
        self._cost = cost
        self._watch = watch
        self._rate = self._format.sample_rate
        self._most = self._format.samples(MAX_MESSAGE_SECONDS)
        self.audio_sent_at = trio.current_time()
        """When session audio last went up (`trio.current_time`)."""
        self.anchors_end = 0
        """On the connection's clock, in samples: where the last anchor sent ends."""
        self._lead_in = lead_in.parts() if lead_in is not None else None
        self._tail = lead_in.tail() if lead_in is not None else None
        self._cursor: int | None = None
        self._overlap: deque[AudioChunk] = deque()
        self._is_planned = False
        self._is_finishing = False
        self._controls: deque[str] = deque()
        self._needs_filler = False
        self._bucket = TokenBucket.full(UPSTREAM_RATE, UPSTREAM_DEPTH_SECONDS, trio.current_time())
        self._work = trio.Event()
        self._is_idle = False
        self._unsent = b""

    def go_live(self, origin: int, *, is_planned: bool) -> None:
        """Send the session's audio from position ``origin`` on, and the overlap before it first.

        ``is_planned`` is a switch from an epoch that was still good: what goes up again because of
        it is counted as overlap, not as replay.
        """
        self._epoch.begin(self._coverage)
        self._overlap.extend(self._coverage.overlap_before(origin, self._most))
        self._cursor = origin
        self._is_planned = is_planned
        self.wake()

    def finish(self) -> None:
        """Send what is left, then CloseStream."""
        self._is_finishing = True
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        self._work.set()

    def offer(self, now: float) -> None:
        """There is audio: send it from here if that needs no waiting, else wake the task.

        Sending from the task that received the audio saves a task switch for every message, 2 µs.
        """
        if not self._is_idle:
            return
        chunk = self._next_chunk()
        if chunk is None or not self._bucket.try_take(chunk.samples / self._rate, now):
            self._work.set()
            return
        self._account(chunk, now)
        if not self._connection.send_audio_nowait(chunk.payload, now):
            self._unsent = chunk.payload
            self._is_idle = False
            self._work.set()
        elif chunk.end < self._coverage.backlog.end:
            # A message holds no more than so much: the task sends the rest.
            self._work.set()

    def keep_alive(self) -> None:
        """Send KeepAlive, unless something else waits to be sent."""
        if not self._controls:
            self._controls.append(KEEP_ALIVE)
            self.wake()

    def finalize(self, channel: int | None = None) -> None:
        """Ask the provider for its finals, on one channel (counted from 0) or on all."""
        self._controls.append(FINALIZE if channel is None else finalize_channel(channel))
        self.wake()

    def fill(self) -> None:
        """Send a little silence: the first audio is late."""
        self._needs_filler = True
        self.wake()

    async def run(self) -> None:
        """Send until CloseStream has gone up, or a send meets a broken connection.

        Cancelling this may leave half a frame on the wire: the connection must then be dropped.
        """
        while not self._connection.has_failed_to_send:
            if self._unsent:
                payload, self._unsent = self._unsent, b""
                await self._connection.send_audio(payload)
            elif self._controls:
                await self._connection.send(self._controls.popleft())
            elif self._lead_in is not None:
                await self._send_voices(self._lead_in)
                self._lead_in = None
                await self._connection.send(FINALIZE)
                self.lead_in_sent.set()
            elif self._tail is not None and self._cursor is not None:
                await self._send_voices(self._tail)
                self._tail = None
            elif self._needs_filler:
                await self._send_filler()
            elif not await self._send_audio():
                if self._is_all_sent():
                    self.closing_since = trio.current_time()
                    await self._connection.send(CLOSE_STREAM)
                    return
                self._is_idle = True
                await self._work.wait()
                self._is_idle = False
                self._work = trio.Event()

    async def _send_audio(self) -> bool:
        """Send the next message of session audio; returns whether there was any."""
        chunk = self._next_chunk()
        if chunk is None:
            return False
        now, seconds = trio.current_time(), chunk.samples / self._rate
        if not self._bucket.try_take(seconds, now):
            # More may have come by then, or the oldest may be gone: look again.
            await trio.sleep(self._bucket.delay(seconds, now))
            return True
        self._account(chunk, now)
        await self._connection.send_audio(chunk.payload)
        return True

    def _next_chunk(self) -> AudioChunk | None:
        if self._cursor is None:
            return None
        if self._overlap:
            return self._overlap[0]
        return self._coverage.backlog.read(self._cursor, self._most)

    def _account(self, chunk: AudioChunk, now: float) -> None:
        # Before the send, not after: an answer may come while it still waits for its turn.
        self._epoch.sent(chunk.position, chunk.samples)
        self._cost.sent(chunk.position, chunk.end, planned=self._is_planned)
        if self._overlap:
            self._overlap.popleft()
        self._cursor = chunk.end
        self._watch.record_sent(chunk.end, now)
        self.audio_sent_at = now

    async def _send_voices(self, parts: Iterator[LeadInPart]) -> None:
        step = self._format.samples(MAX_MESSAGE_SECONDS) * self._format.frame_bytes
        for part in parts:
            for offset in range(0, len(part.payload), step):
                payload = part.payload[offset : offset + step]
                samples = self._format.samples_in(payload)
                seconds = samples / self._format.sample_rate
                await trio.sleep(self._bucket.delay(seconds, trio.current_time()))
                self._bucket.take(seconds)
                said_at = part.said_at_sample(offset // self._format.frame_bytes)
                self._epoch.sent_foreign(samples, part.anchor, said_at)
                self._cost.lead_in += samples
                if part.anchor is not None:
                    self.anchors_end = self._epoch.sent_samples
                await self._connection.send_audio(payload)

    async def _send_filler(self) -> None:
        self._needs_filler = False
        payload = self._format.silence(FILLER_SECONDS)
        samples = self._format.samples_in(payload)
        self._epoch.sent_foreign(samples)
        self._cost.filler += samples
        await self._connection.send_audio(payload)

    def _is_all_sent(self) -> bool:
        # A primed epoch that is not live yet has the session's audio still to come.
        return (
            self._is_finishing
            and self._cursor is not None
            and self._cursor >= self._coverage.backlog.end
        )
