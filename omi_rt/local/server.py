"""The WebSocket side of the embedded recogniser: Deepgram's rules, and a worker behind them."""

from __future__ import annotations

import hashlib
import logging
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import HandshakeFailed, OmiRtError, PeerClosed
from omi_rt.local import pipe, wire
from omi_rt.local.errors import RecogniserError, UnusableParameters
from omi_rt.local.pipe import Kind
from omi_rt.local.wire import ControlKind, ListenParameters
from omi_rt.net.websocket import ServerHandshake, WebSocket

if TYPE_CHECKING:
    from omi_rt.local.pool import Worker, WorkerPool

DEFAULT_MAX_CONNECTIONS = 8
MAX_MESSAGE_BYTES = 1_048_576
"""Five seconds of the widest audio that is taken, 48 kHz stereo."""
IDLE_SECONDS = 10.0
"""Without audio and without text: Deepgram's own limit."""
SEND_SECONDS = 10.0
"""For a client to take what it is sent."""
ABORT_SECONDS = 2.0
EXIT_SECONDS = 5.0
DRAIN_SECONDS = 30.0
"""For a worker to end after it was told that no more audio follows."""

_FAULT = (1011, wire.FAULT_REASON)
_log = logging.getLogger("omi_rt.local")


class Server:
    """Serves connections, `max_connections` at a time."""

    def __init__(self, pool: WorkerPool, max_connections: int = DEFAULT_MAX_CONNECTIONS) -> None:
        self._pool = pool
        self._max_connections = max_connections
        self._connections = 0

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one accepted connection to its end; nothing that happens in it is raised.

        Cancelling this closes it with 1001, or without a word where the client does not read.
        """
        try:
            await self._handle(ServerHandshake(stream, MAX_MESSAGE_BYTES))
        except* OmiRtError as errors:
            for error in _leaves(errors):
                _log.info("a connection to the recogniser ended: %s", error)
        except* Exception:  # noqa: BLE001 - one connection's fault must not reach the others
            _log.exception("a connection to the recogniser failed")
        finally:
            await trio.aclose_forcefully(stream)

    async def _handle(self, handshake: ServerHandshake) -> None:
        request_id = str(uuid.uuid4())
        try:
            request = await handshake.receive_request()
            path, query = wire.split_target(request.target)
            if path != wire.PATH:
                await _refuse(handshake, 404, "NOT_FOUND", f"only {wire.PATH} is here", request_id)
                return
            parameters = ListenParameters.from_query(query)
        except UnusableParameters as error:
            await _refuse(handshake, 400, "INVALID_QUERY_PARAMETER", str(error), request_id)
            return
        if self._connections >= self._max_connections:
            message = f"{self._max_connections} connections are the limit"
            await _refuse(handshake, 429, "TOO_MANY_REQUESTS", message, request_id)
            return
        self._connections += 1
        try:
            await self._serve(handshake, parameters, request_id)
        finally:
            self._connections -= 1

    async def _serve(
        self, handshake: ServerHandshake, parameters: ListenParameters, request_id: str
    ) -> None:
        try:
            websocket = handshake.accept(
                {"dg-request-id": request_id, "dg-model-name": wire.MODEL_NAME}
            )
        except HandshakeFailed as error:
            await _refuse(handshake, error.status or 400, "Bad Request", str(error), request_id)
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.run_writer, SEND_SECONDS)
                code, reason = await self._relay(websocket, parameters, request_id)
                await websocket.aclose(code, reason)
        finally:
            # Does nothing where the close was said; else the server is ending or the client stuck.
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await websocket.abort(1001, "the recogniser is ending")

    async def _relay(
        self, websocket: WebSocket, parameters: ListenParameters, request_id: str
    ) -> tuple[int, str]:
        """Serve an open connection with a worker; return the close code and reason to end with."""
        try:
            worker = await self._pool.take()
        except RecogniserError as error:
            _log.warning("connection %s has no recogniser: %s", request_id, error)
            return _FAULT
        try:
            close = await _Connection(websocket, worker, parameters, request_id).relay()
        finally:
            with trio.move_on_after(EXIT_SECONDS, shield=True):
                await worker.aclose()
        if close is _FAULT:
            _log.warning("the recogniser of connection %s failed", request_id)
        return close


class _Connection:
    """Relays between a client and a worker, until one of them ends it."""

    def __init__(
        self, websocket: WebSocket, worker: Worker, parameters: ListenParameters, request_id: str
    ) -> None:
        self._websocket = websocket
        self._worker = worker
        self._parameters = parameters
        self._request_id = request_id
        self._created = datetime.now(UTC)
        self._digest = hashlib.sha256()
        self._audio_bytes = 0
        self._ending = False
        self._close = _FAULT

    async def relay(self) -> tuple[int, str]:
        """Return the close code and reason to end with."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, nursery.cancel_scope)
            try:
                await self._worker.send(pipe.open_frame(self._parameters, self._request_id))
                await self._receive()
            except PeerClosed:
                self._close = (1000, "")
            except RecogniserError:
                self._close = _FAULT
            nursery.cancel_scope.cancel()
        return self._close

    async def _deliver(self, relay_scope: trio.CancelScope) -> None:
        """Pass the worker's messages on; when it is done, summarise and end the relay."""
        while (line := await self._worker.receive_line()) is not None:
            self._websocket.send_nowait(line)
        if self._ending and await self._worker.wait() == 0:
            self._websocket.send_nowait(self._metadata())
            self._close = (1000, "")
        relay_scope.cancel()

    async def _receive(self) -> None:
        """Pass the client's messages on, until it ends the stream, falls silent or goes."""
        while not self._ending:
            with trio.move_on_after(IDLE_SECONDS) as idle:
                messages = await self._websocket.receive()
            if idle.cancelled_caught:
                self._close = (1011, wire.IDLE_REASON)
                return
            frames = b"".join(map(self._frame, messages))
            if frames:
                await self._worker.send(frames)
        # The client's own end has to be seen while the last words are worked out.
        with trio.move_on_after(DRAIN_SECONDS):
            while True:
                await self._websocket.receive()

    def _frame(self, message: bytes | str) -> bytes:
        """Return what the worker gets for a client's message."""
        if self._ending:
            return b""
        if isinstance(message, bytes):
            # An empty message is how clients once ended a stream; Deepgram still takes it so.
            return self._audio(message) if message else self._end()
        control = wire.read_control(message)
        if control is None:
            self._websocket.send_nowait(wire.schema_error_message())
        elif control.kind is ControlKind.CLOSE_STREAM:
            return self._end()
        elif control.kind is ControlKind.FINALIZE:
            channel = control.channel
            return pipe.frame(Kind.FINALIZE, b"" if channel is None else bytes([channel]))
        return b""

    def _audio(self, audio: bytes) -> bytes:
        self._audio_bytes += len(audio)
        self._digest.update(audio)
        return pipe.frame(Kind.AUDIO, audio)

    def _end(self) -> bytes:
        self._ending = True
        return pipe.frame(Kind.END)

    def _metadata(self) -> str:
        parameters = self._parameters
        samples = self._audio_bytes // (2 * parameters.channels)
        return wire.metadata_message(
            request_id=self._request_id,
            sha256=self._digest.hexdigest(),
            created=self._created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            duration=samples / parameters.sample_rate,
            channels=parameters.channels,
        )


async def _refuse(
    handshake: ServerHandshake, status: int, code: str, message: str, request_id: str
) -> None:
    await handshake.respond(
        status,
        wire.refusal_body(code, message, request_id),
        content_type="application/json",
        headers={"dg-error": message, "dg-request-id": request_id},
    )


def _leaves(group: BaseExceptionGroup[OmiRtError]) -> list[OmiRtError]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
