"""One connection of the fake: Deepgram's side of ``/v1/listen``, with the faults it was given.

One task does everything but the writing, and waits for one thing at a time: the client's next
frames, the next message that is due, the next fault, or the end of the 10 s that it waits for one.
"""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from omi_rt.core.json import dumps
from omi_rt.core.live_api import IDLE_REASON, Control, ControlKind, read_control, schema_error
from omi_rt.core.token_bucket import TokenBucket
from omi_rt.fake.clocks import claim_ahead, speed_up
from omi_rt.fake.fault_queue import FaultQueue
from omi_rt.fake.faults import (
    STALL_LIMIT_SECONDS,
    Close,
    Double,
    Drop,
    IgnoreCloseStream,
    Late,
    LyingMetadata,
    Malformed,
    OpenFault,
    Say,
    Silence,
    Stall,
)
from omi_rt.fake.messages import (
    CLOSE_REASONS,
    Closing,
    MessageMaker,
    RawFrame,
)
from omi_rt.fake.outbox import Outbox, Queued
from omi_rt.fake.transcription import ChannelFinal, StreamTranscriber
from omi_rt.fake.transport import STREAM_ERRORS, FaultyStream, server_frame

if TYPE_CHECKING:
    import random

    from omi_rt.core.errors import PeerClosed
    from omi_rt.fake.parameters import ListenParameters
    from omi_rt.fake.records import ConnectionRecord, Options
    from omi_rt.net.websocket import WebSocket

HEARING_SECONDS = 0.2
"""Audio is recognised in pieces of this length or longer, or when it has waited for as long."""
READING_SECONDS = 0.05
"""Messages that hold less audio than this are read together, as a network would deliver them."""
RAW_SEND_SECONDS = 5.0
"""A malformed frame is given up when the client has not taken it for this long."""
FLUSH_SECONDS = 0.1
"""What is queued gets this long to leave before the connection breaks."""
_PROTOCOL_ERRORS = frozenset({1002, 1003, 1007, 1009})


class ConnectionOver(Exception):
    """Raised to leave the nursery, because the connection has ended as it should."""


class ListenConnection:
    """An open connection, from the 101 to its end."""

    def __init__(
        self,
        websocket: WebSocket,
        stream: FaultyStream,
        parameters: ListenParameters,
        options: Options,
        record: ConnectionRecord,
        faults: list[OpenFault],
        rng: random.Random,
    ) -> None:
        now = trio.current_time()
        self._websocket = websocket
        self._stream = stream
        self._parameters = parameters
        self._options = options
        self._record = record
        self._faults = FaultQueue(faults, now)
        self._messages = MessageMaker(
            parameters,
            record.request_id,
            rng,
            decimals=options.decimals,
            jitter=options.jitter,
            labelling=options.labelling_of(record.index),
        )
        self._audio = StreamTranscriber(parameters, options, rng)
        self._outbox = Outbox()
        self._rng = rng
        self._closing = False
        self._ignores_close = False
        self._answers_results = True
        self._metadata_offset = 0.0
        self._sent_rubbish = False
        self._reads_from = -math.inf
        self._hear_at = math.inf
        self._idle_at = now + options.idle_timeout
        self._bucket = TokenBucket.full(options.rate, options.burst, now)

    async def run(self) -> None:
        """Serve until the connection ends. Cancelling this leaves the stream to be closed.

        Raises:
            ConnectionOver: this side has ended it.
            PeerClosed: the client has ended it, or the network.
            PeerTooSlow: the client does not read.
        """
        while True:
            await self._send_due()
            await self._fire()
            await self._turn()

    async def _turn(self) -> None:
        """Wait for what comes next, and handle it if it comes from the client."""
        now = trio.current_time()
        wake = min(self._outbox.next_due, self._faults.next_at(now), self._hear_at)
        if wake <= now:
            self._hear(now)
        elif self._reads_from > now:
            await trio.sleep_until(min(wake, self._reads_from))
        else:
            messages: list[bytes | str] = []
            with trio.move_on_at(min(wake, self._idle_at)):
                messages = await self._websocket.receive()
            if messages:
                await self._take(messages)
            elif trio.current_time() >= self._idle_at:
                self._record.violate("no audio and no text for 10 s")
                await self._close(1011, IDLE_REASON)

    async def _take(self, messages: list[bytes | str]) -> None:
        """Handle what arrived together."""
        now = trio.current_time()
        before = self._audio.samples
        for message in messages:
            if self._closing:
                if isinstance(message, bytes):
                    self._record.violate("audio after CloseStream")
            elif isinstance(message, str):
                self._take_text(message, now)
            else:
                self._take_audio(message, now)
                if self._faults and self._is_fault_due():
                    self._hear(now)
                    await self._fire()
        taken = (self._audio.samples - before) / self._parameters.sample_rate
        if self._audio.unheard_seconds >= HEARING_SECONDS:
            self._hear(now)
        elif self._audio.unheard_seconds and self._hear_at == math.inf:
            self._hear_at = now + HEARING_SECONDS
        # The bucket fills up to now when it is asked for a delay.
        self._bucket.delay(0.0, now)
        self._bucket.take(taken)
        throttled = self._bucket.delay(0.0, now)
        if throttled:
            self._record.throttled_seconds += throttled
            self._pause(now + throttled)
        elif taken < READING_SECONDS:
            self._reads_from = max(self._reads_from, now + READING_SECONDS)

    def _pause(self, until: float) -> None:
        """Stop reading for a while, in which the client cannot be found to be idle either."""
        self._reads_from = max(self._reads_from, until)
        self._idle_at = max(self._idle_at, until + self._options.idle_timeout)

    def _hear(self, now: float) -> None:
        self._hear_at = math.inf
        finals = self._audio.hear()
        self._put(finals, now)
        if self._parameters.interim_results or self._parameters.vad_events:
            for channel, notice in self._audio.notices(finals):
                message = self._messages.notice(notice, channel)
                self._outbox.put_notice(dumps(message), channel, self._due(now))

    def _take_audio(self, message: bytes, now: float) -> None:
        record = self._record
        if not message:
            record.violate("an empty binary frame")
            self._close_stream(now)
            return
        if message[:1] == b"{" and read_control(message) is not None:
            record.violate("a control message in a binary frame")
        self._audio.take(message)
        self._idle_at = now + self._options.idle_timeout
        record.audio_messages += 1
        record.audio_samples = self._audio.samples
        if record.first_audio_at is None:
            record.first_audio_at = now

    def _take_text(self, text: str, now: float) -> None:
        control = read_control(text)
        kind = None if control is None else control.kind
        self._record.texts["?" if kind is None else kind.value] += 1
        is_keep_alive = kind is ControlKind.KEEP_ALIVE
        if self._audio.samples or self._options.keepalive_before_audio or not is_keep_alive:
            self._idle_at = now + self._options.idle_timeout
        match control:
            case None:
                self._record.violate("a text message that is not understood")
                self._outbox.put_now(dumps(schema_error(text)), now + self._options.delay)
            case Control(kind=ControlKind.FINALIZE, channel=channel):
                self._put(self._audio.finalize(channel), now)
            case Control(kind=ControlKind.CLOSE_STREAM):
                self._close_stream(now)
            case Control(kind=ControlKind.CONFIGURE):
                answer = self._messages.configured(control)
                self._outbox.put_now(answer, now + self._options.delay)

    def _put(self, finals: list[ChannelFinal], now: float) -> None:
        for channel, final in finals:
            result = speed_up(self._messages.results(final, channel), self._options.clock_factor)
            self._outbox.put_result(result, channel, self._audio.seconds, self._due(now))

    def _due(self, now: float) -> float:
        """The time at which the results of what is heard now are sent."""
        return now + self._options.delay + self._rng.uniform(*self._options.lateness)

    def _close_stream(self, now: float) -> None:
        self._closing = True
        self._idle_at = math.inf
        self._record.close_stream_at = now
        if self._ignores_close and not self._answers_results:
            return
        self._put(self._audio.close(), now)
        if self._ignores_close:
            return
        at = self._due(now)
        created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        samples = round(self._audio.samples * self._options.clock_factor)
        metadata = self._messages.metadata(
            samples, self._metadata_offset, self._audio.sha256, created
        )
        self._outbox.put_before_last(metadata, at, self._options.early_metadata)
        self._outbox.put_last(Closing(1000), at)

    async def _send_due(self) -> None:
        while (item := self._outbox.take(trio.current_time())) is not None:
            message, is_result = item
            if isinstance(message, Closing):
                self._record.metadata_sent = True
                await self._close(message.code, message.reason)
            await self._send(message)
            if is_result:
                self._record.results_sent += 1
                if self._is_fault_due():
                    await self._fire()

    async def _send(self, message: Queued) -> None:
        if isinstance(message, dict):
            told = claim_ahead(message, self._audio.seconds, self._options.claims_ahead)
            self._websocket.send_nowait(dumps(told))
        elif isinstance(message, str):
            self._websocket.send_nowait(message)
        elif isinstance(message, RawFrame):
            # This passes by the writer, which has nothing to do until this task gives it something.
            # Whether the client is gone, or offended, shows at the next read.
            self._sent_rubbish = True
            with trio.move_on_after(RAW_SEND_SECONDS) as limit, suppress(*STREAM_ERRORS):
                await self._websocket.drained()
                await self._stream.send_all(server_frame(message.opcode, message.payload))
            if limit.cancelled_caught:
                raise ConnectionOver

    def _is_fault_due(self) -> bool:
        return self._faults.is_due(
            self._audio.seconds, self._record.results_sent, trio.current_time()
        )

    async def _fire(self) -> None:
        """Let the faults begin whose time has come."""
        if self._faults:
            for fault in self._faults.take(
                self._audio.seconds, self._record.results_sent, trio.current_time()
            ):
                await self._begin(fault)

    async def _begin(self, fault: OpenFault) -> None:
        now = trio.current_time()
        match fault:
            case Silence() | Late() | Double() | Malformed():
                self._outbox.begin(fault, now)
            case Say(text=text):
                self._outbox.put_now(text, now)
            case LyingMetadata(seconds=seconds):
                self._metadata_offset = seconds
            case IgnoreCloseStream(results=results):
                self._ignores_close = True
                self._answers_results = results
            case Stall(seconds=seconds):
                until = now + (seconds or STALL_LIMIT_SECONDS)
                self._pause(until)
                if seconds is None:
                    self._faults.add(Drop(), until)
            case Drop(at="frame"):
                self._stream.cut_next_receive()
            case Drop(at="result"):
                await self._flush()
                self._stream.cut_next_send()
            case Drop() | Close(code=1006):
                await self._flush()
                raise ConnectionOver
            case Close(code=code, reason=reason):
                await self._close(code, reason or CLOSE_REASONS.get(code, ""))

    async def _flush(self) -> None:
        with trio.move_on_after(FLUSH_SECONDS):
            await self._websocket.drained()

    async def _close(self, code: int, reason: str) -> None:
        self._record.sent_code = code
        await self._websocket.aclose(code, reason)
        raise ConnectionOver

    def ended_by(self, error: PeerClosed) -> None:
        """Note how the other side has ended the connection."""
        record = self._record
        record.received_code = error.code
        record.closed_before_metadata = self._closing
        if error.code in _PROTOCOL_ERRORS and not self._sent_rubbish:
            record.violate(f"the WebSocket protocol was broken: {error.code}")
