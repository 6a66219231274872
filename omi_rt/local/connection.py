"""One open connection to the embedded recogniser: a client, a worker, and the audio between them.

The audio waits here and not in the sockets. So it is known how far the worker is behind, and a client
that sends is read, and can say that it has ended, however busy the worker is, and before there is one.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import PeerClosed
from omi_rt.core.live_api import ControlKind
from omi_rt.local import pipe, wire
from omi_rt.local.errors import RecogniserError
from omi_rt.local.headway import Headway
from omi_rt.local.pipe import PROGRESS_SECONDS, Kind
from omi_rt.local.pool import START_CPU_SECONDS

if TYPE_CHECKING:
    from omi_rt.local.capacity import Capacity, StreamLoad
    from omi_rt.local.pool import Worker, WorkerPool
    from omi_rt.local.wire import ListenParameters
    from omi_rt.net.websocket import WebSocket

IDLE_SECONDS = 10.0
"""Without audio and without text: Deepgram's own limit."""
DRAIN_SECONDS = 30.0
"""A worker that was told that no more audio follows may take so long without any progress."""
QUEUE_SECONDS = 60.0
"""Of audio that waits for the worker. Beyond that the client is not read, and TCP holds it back."""
TELL_SECONDS = 1.0
"""A client is told so often that the worker is behind, as long as that gets on."""
NOTABLE_SECONDS = 1.0
"""Less than that is not told: the end of an utterance takes up to a second."""

EXIT_SECONDS = 5.0

FAULT = (1011, wire.FAULT_REASON)

_SEND_BYTES = 16_384
"""Frames that wait go to the worker together, in about this amount."""

_log = logging.getLogger("omi_rt.local")


class Connection:
    """Relays between a client and a worker, until one of them ends it."""

    def __init__(
        self,
        websocket: WebSocket,
        pool: WorkerPool,
        parameters: ListenParameters,
        request_id: str,
        capacity: Capacity,
        load: StreamLoad,
    ) -> None:
        self._websocket = websocket
        self._pool = pool
        self._worker: Worker | None = None
        self._parameters = parameters
        self._request_id = request_id
        self._capacity = capacity
        self._load = load
        self._created = datetime.now(UTC)
        self._digest = hashlib.sha256()
        self._bytes_per_second = 2 * parameters.channels * parameters.sample_rate
        self._audio_bytes = 0
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._has_work = trio.Event()
        self._has_room = trio.Event()
        self._headway = Headway()
        self._reported_at = 0.0
        self._progressed_at = 0.0
        self._is_told_behind = False
        self._ending = False
        self._close = FAULT

    async def relay(self) -> tuple[int, str]:
        """Return the close code and reason to end with."""
        self._put(pipe.open_frame(self._parameters, self._request_id))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, nursery.cancel_scope)
            nursery.start_soon(self._tell_progress)
            try:
                await self._receive()
            except PeerClosed:
                self._close = (1000, "")
            nursery.cancel_scope.cancel()
        return self._close

    @property
    def _seconds_received(self) -> float:
        return self._audio_bytes / self._bytes_per_second

    @property
    def _seconds_behind(self) -> float:
        return max(0.0, self._seconds_received - self._headway.seconds)

    async def _work(self, relay_scope: trio.CancelScope) -> None:
        """Take a worker and let it work, to the end of the stream or its own; end the relay."""
        self._headway.report(0.0, self._pool.cpu_seconds)
        try:
            worker = await self._pool.take()
        except RecogniserError as error:
            _log.warning("connection %s has no recogniser: %s", self._request_id, error)
            relay_scope.cancel()
            return
        try:
            self._worker = worker
            self._headway.report(0.0, worker.cpu_seconds)
            self._note_headway()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, worker, relay_scope)
                await self._deliver(worker)
                relay_scope.cancel()
        finally:
            with trio.move_on_after(EXIT_SECONDS, shield=True):
                await worker.aclose()

    # From the worker.

    async def _deliver(self, worker: Worker) -> None:
        """Pass the worker's messages on; summarise when it is done."""
        while (line := await worker.receive_line()) is not None:
            progress = pipe.parse_progress(line)
            if progress is None:
                self._websocket.send_nowait(line)
            else:
                self._note(progress, worker)
        if self._ending and await worker.wait() == 0:
            self._headway.finish()
            if self._is_told_behind:
                self._tell()
            self._websocket.send_nowait(self._metadata(worker))
            self._close = (1000, "")

    def _note(self, progress: pipe.Progress, worker: Worker) -> None:
        self._headway.report(progress.worked_seconds, worker.cpu_seconds)
        self._reported_at = trio.current_time()
        self._note_headway()
        self._load.record(progress.worked_seconds, progress.cpu_seconds, self._seconds_behind)

    def _note_headway(self) -> None:
        self._progressed_at = trio.current_time()
        if self._worker is not None:
            self._worker.wait_longer()

    def _estimate(self) -> bool:
        """Credit the worker, or the start of one, with the processor time that it has used."""
        # The next report says at least as much.
        end = min(self._seconds_received, self._headway.reported + PROGRESS_SECONDS)
        if self._worker is None:
            used, allowed = self._pool.cpu_seconds, START_CPU_SECONDS
        else:
            used = self._worker.cpu_seconds
            allowed = self._capacity.piece_cpu_seconds(self._load)
        gets_on = self._headway.estimate(end, used, allowed)
        if gets_on:
            self._note_headway()
        return gets_on

    async def _tell_progress(self) -> None:
        """Tell the client now and then how far the worker is behind, as long as that gets on."""
        told = 0.0
        while True:
            await trio.sleep(TELL_SECONDS)
            # All audio may be in, and the worker be long about the words that it was asked for.
            is_long = self._estimate() and (
                trio.current_time() - self._reported_at >= 2 * TELL_SECONDS
            )
            self._load.lateness.report(self._seconds_behind)
            is_behind = self._seconds_behind >= NOTABLE_SECONDS
            # A worker that stands still has nothing to say, and is taken for what it is.
            if self._headway.seconds > told and (is_behind or self._is_told_behind or is_long):
                told, self._is_told_behind = self._headway.seconds, is_behind
                self._tell()

    def _tell(self) -> None:
        self._websocket.send_nowait(
            wire.progress_message(
                seconds_worked=self._headway.seconds, seconds_behind=self._seconds_behind
            )
        )

    # To the worker.

    async def _feed(self, worker: Worker, relay_scope: trio.CancelScope) -> None:
        """Send the worker what waits for it, up to the end of the stream."""
        try:
            while not (self._ending and not self._queue):
                while not self._queue:
                    self._has_work = trio.Event()
                    await self._has_work.wait()
                frames = bytearray()
                while self._queue and len(frames) < _SEND_BYTES:
                    frames += self._queue.popleft()
                await worker.send(bytes(frames))
                self._queued_bytes -= len(frames)
                self._has_room.set()
        except RecogniserError:
            self._close = FAULT
            relay_scope.cancel()

    def _put(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._has_work.set()

    # From the client.

    async def _receive(self) -> None:
        """Take the client's messages, until it ends the stream, falls silent or goes."""
        most = QUEUE_SECONDS * self._bytes_per_second
        while not self._ending:
            while self._queued_bytes > most:
                self._has_room = trio.Event()
                await self._has_room.wait()
            with trio.move_on_after(IDLE_SECONDS) as idle:
                messages = await self._websocket.receive()
            if idle.cancelled_caught:
                self._close = (1011, wire.IDLE_REASON)
                return
            for message in messages:
                self._take(message)
        await self._wait_for_the_end()

    async def _wait_for_the_end(self) -> None:
        """Wait while the worker works out the last words; the client's own end has to be seen."""
        self._progressed_at = trio.current_time()
        while (left := self._progressed_at + DRAIN_SECONDS - trio.current_time()) > 0:
            with trio.move_on_after(left):
                while True:
                    await self._websocket.receive()

    def _take(self, message: bytes | str) -> None:
        """Take one message of the client's; what follows its end is passed over."""
        if self._ending:
            return
        if isinstance(message, bytes):
            # An empty message is how clients once ended a stream; Deepgram still takes it so.
            if message:
                self._take_audio(message)
            else:
                self._end()
            return
        control = wire.read_control(message)
        if control is None:
            self._websocket.send_nowait(wire.schema_error_message(message))
        elif control.kind is ControlKind.CLOSE_STREAM:
            self._end()
        elif control.kind is ControlKind.FINALIZE:
            channel = control.channel
            self._put(pipe.frame(Kind.FINALIZE, b"" if channel is None else bytes([channel])))

    def _take_audio(self, audio: bytes) -> None:
        self._audio_bytes += len(audio)
        self._digest.update(audio)
        for frame in pipe.audio_frames(audio):
            self._put(frame)

    def _end(self) -> None:
        self._ending = True
        self._put(pipe.frame(Kind.END))

    def _metadata(self, worker: Worker) -> str:
        return wire.metadata_message(
            request_id=self._request_id,
            sha256=self._digest.hexdigest(),
            created=self._created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            duration=self._audio_bytes
            // (2 * self._parameters.channels)
            / self._parameters.sample_rate,
            channels=self._parameters.channels,
            info=worker.info,
        )
