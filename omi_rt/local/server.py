"""The WebSocket side of the embedded recogniser: Deepgram's rules, and a worker behind them."""

from __future__ import annotations

import logging
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import HandshakeFailed, OmiRtError
from omi_rt.core.groups import errors_in
from omi_rt.core.live_api import LISTEN_PATH, refusal_body
from omi_rt.local import wire
from omi_rt.local.connection import FAULT, Connection
from omi_rt.local.errors import UnusableParameters
from omi_rt.local.wire import ListenParameters
from omi_rt.net.handshake import ServerHandshake

if TYPE_CHECKING:
    from omi_rt.local.capacity import Capacity, StreamLoad
    from omi_rt.local.pool import WorkerPool
    from omi_rt.net.websocket import WebSocket

DEFAULT_MAX_CONNECTIONS = 64
"""A worker takes 160 to 380 MiB. How many of these can be carried is for `Capacity` to say."""
MAX_MESSAGE_BYTES = 1_048_576
"""Five seconds of the widest audio that is taken, 48 kHz stereo."""
SEND_SECONDS = 10.0
"""For a client to take what it is sent."""
ABORT_SECONDS = 2.0

_log = logging.getLogger("omi_rt.local")


class Server:
    """Serves connections, and keeps account of what they take."""

    def __init__(self, pool: WorkerPool, capacity: Capacity) -> None:
        self._pool = pool
        self._capacity = capacity

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one accepted connection to its end; nothing that happens in it is raised.

        Cancelling this closes it with 1001, or without a word where the client does not read.
        """
        try:
            await self._handle(ServerHandshake(stream, MAX_MESSAGE_BYTES))
        except* OmiRtError as errors:
            for error in errors_in(errors):
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
            if path != LISTEN_PATH:
                await _refuse(
                    handshake,
                    HTTPStatus.NOT_FOUND,
                    "NOT_FOUND",
                    f"only {LISTEN_PATH} is here",
                    request_id,
                )
                return
            parameters = ListenParameters.from_query(query, self._pool.info.languages)
        except UnusableParameters as error:
            await _refuse(
                handshake, HTTPStatus.BAD_REQUEST, "INVALID_QUERY_PARAMETER", str(error), request_id
            )
            return
        if self._capacity.is_full:
            message = "there are as many connections as the processors carry"
            await _refuse(
                handshake, HTTPStatus.TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", message, request_id
            )
            return
        load = self._capacity.open(parameters.channels if parameters.multichannel else 1)
        try:
            await self._serve(handshake, parameters, request_id, load)
        finally:
            self._capacity.close(load)

    async def _serve(
        self,
        handshake: ServerHandshake,
        parameters: ListenParameters,
        request_id: str,
        load: StreamLoad,
    ) -> None:
        try:
            websocket = handshake.accept(
                {"dg-request-id": request_id, "dg-model-name": wire.model_name(self._pool.info)}
            )
        except HandshakeFailed as error:
            await _refuse(
                handshake,
                error.status or HTTPStatus.BAD_REQUEST,
                "Bad Request",
                str(error),
                request_id,
            )
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.run_writer, SEND_SECONDS)
                code, reason = await self._relay(websocket, parameters, request_id, load)
                await websocket.aclose(code, reason)
        finally:
            # Does nothing where the close was said; else the server is ending or the client stuck.
            with trio.move_on_after(ABORT_SECONDS, shield=True):
                await websocket.abort(1001, "the recogniser is ending")

    async def _relay(
        self,
        websocket: WebSocket,
        parameters: ListenParameters,
        request_id: str,
        load: StreamLoad,
    ) -> tuple[int, str]:
        """Serve an open connection with a worker; return the close code and reason to end with."""
        connection = Connection(websocket, self._pool, parameters, request_id, self._capacity, load)
        close = await connection.relay()
        if close is FAULT:
            _log.warning("the recogniser of connection %s failed", request_id)
        return close


async def _refuse(
    handshake: ServerHandshake, status: int, code: str, message: str, request_id: str
) -> None:
    await handshake.respond(
        status,
        refusal_body(code, message, request_id),
        content_type="application/json",
        headers={"dg-error": message, "dg-request-id": request_id},
    )
