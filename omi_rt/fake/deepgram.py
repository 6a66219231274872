"""A Deepgram that listens: the live API's protocol in front of a recogniser of the made-up language.

It keeps the provider's rules as strictly as the provider's own documentation states them, notes
every one that a client breaks in `FakeDeepgram.violations`, and goes wrong only where its fault
script says so. It runs over any Trio stream: memory streams on a virtual clock, or TCP.

Of the REST API there is ``GET /v1/auth/token``, which says whether a key passes; it is no connection
in the fake's sense, and no fault concerns it.

It does not have ``/v1/auth/grant`` (requests with a body are not read), encodings other than linear16,
or the credential in ``Sec-WebSocket-Protocol``. Options that only change the wording of a transcript are
accepted and change nothing.
"""

from __future__ import annotations

import contextlib
import math
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow
from omi_rt.core.groups import first_error
from omi_rt.core.json import dumps
from omi_rt.core.live_api import Refused, refusal_body
from omi_rt.fake.connection import ConnectionOver, ListenConnection
from omi_rt.fake.faults import Drop, FaultScript, NoAnswer, Refuse, Unreachable
from omi_rt.fake.messages import random_uuid
from omi_rt.fake.parameters import parse_target
from omi_rt.fake.records import ConnectionRecord, Options
from omi_rt.fake.streams import DEFAULT_CAPACITY_BYTES, bounded_stream_pair
from omi_rt.fake.transport import FaultyStream
from omi_rt.net.handshake import ServerHandshake
from omi_rt.net.listeners import open_listeners

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omi_rt.fake.faults import ConnectionPlan
    from omi_rt.net.protocol import HTTPRequest
    from omi_rt.net.websocket import WebSocket

KEY_PATH = "/v1/auth/token"
SEND_SECONDS = 60.0
"""The fake waits this long for a client that does not read."""

_ERROR_CODES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "INVALID_QUERY_PARAMETER",
    HTTPStatus.UNAUTHORIZED: "INVALID_AUTH",
    HTTPStatus.PAYMENT_REQUIRED: "ASR_PAYMENT_REQUIRED",
    HTTPStatus.FORBIDDEN: "INSUFFICIENT_PERMISSIONS",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.TOO_MANY_REQUESTS: "TOO_MANY_REQUESTS",
}


@define
class FakeDeepgram:
    """The provider. ``options`` may be replaced at any time; it counts for new connections."""

    options: Options = field(factory=Options)
    faults: FaultScript = field(factory=FaultScript)
    connections: list[ConnectionRecord] = field(factory=list)
    """The records of all streams that came in, in order."""
    violations: list[str] = field(factory=list)
    """Everything that clients did and Deepgram does not allow; a good client leaves this empty."""

    async def serve_connection(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serve one stream to its end, and close it. Nothing but a cancellation comes out of this.

        Cancelling this closes the stream without a close frame.
        """
        await self._serve_recorded(stream, None)

    async def serve_tcp(
        self,
        host: str,
        port: int,
        *,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled; ``started`` gives the port, which the system picks for 0.

        Raises:
            BindFailed: the address cannot be had.
        """
        listeners = await open_listeners(host, port)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self.serve_connection, listeners)

    def dialler(
        self, nursery: trio.Nursery, *, capacity_bytes: int = DEFAULT_CAPACITY_BYTES
    ) -> Callable[[], Awaitable[trio.abc.HalfCloseableStream]]:
        """Make a function that connects to this fake over a bounded stream in memory.

        The server's side of each connection runs in ``nursery``. The function raises ``OSError``
        where the script says that the provider cannot be reached.
        """

        async def dial() -> trio.abc.HalfCloseableStream:
            await trio.lowlevel.checkpoint()
            record = self._new_record()
            if isinstance(self.faults.plan(record.index).of_handshake, Unreachable):
                record.closed_at = trio.current_time()
                raise OSError("the fake cannot be reached")
            client, server = bounded_stream_pair(capacity_bytes)
            nursery.start_soon(self._serve_recorded, server, record)
            return client

        return dial

    def _new_record(self, opened_at: float | None = None) -> ConnectionRecord:
        opened_at = trio.current_time() if opened_at is None else opened_at
        record = ConnectionRecord(len(self.connections), opened_at, self.violations)
        self.connections.append(record)
        return record

    async def _serve_recorded(
        self, stream: trio.abc.HalfCloseableStream, record: ConnectionRecord | None
    ) -> None:
        """Serve a stream; where it has no record yet, it gets one once it is known to need one."""
        opened_at, faulty = trio.current_time(), FaultyStream(stream)
        handshake = ServerHandshake(faulty, self.options.max_message_bytes)
        try:
            request: HTTPRequest | None = None
            with contextlib.suppress(HandshakeFailed):
                request = await handshake.receive_request()
            if request is not None and request.target == KEY_PATH and not request.is_upgrade:
                await self._answer_key(handshake, request)
                return
            record = self._new_record(opened_at) if record is None else record
            if request is not None:
                await self._serve(
                    faulty, handshake, request, record, self.faults.plan(record.index)
                )
        except* (HandshakeFailed, trio.BrokenResourceError, trio.ClosedResourceError):
            # Whoever came was not a client, or is gone; the record says how far they got.
            pass
        finally:
            if record is not None:
                record.closed_at = trio.current_time()
            await trio.aclose_forcefully(faulty)

    async def _answer_key(self, handshake: ServerHandshake, request: HTTPRequest) -> None:
        rng = Random(f"{self.options.seed}/key")
        status: int = HTTPStatus.OK
        body = {"api_key_id": random_uuid(rng), "scopes": ["usage:write"]}
        try:
            _authorise(request, self.options)
        except Refused as refusal:
            status = refusal.status
            body = {"err_code": refusal.code, "err_msg": str(refusal)}
        await handshake.respond(
            status,
            dumps({**body, "request_id": random_uuid(rng)}),
            content_type="application/json",
        )

    async def _serve(
        self,
        stream: FaultyStream,
        handshake: ServerHandshake,
        request: HTTPRequest,
        record: ConnectionRecord,
        plan: ConnectionPlan,
    ) -> None:
        fault = plan.of_handshake
        if isinstance(fault, Unreachable):
            return
        options = self.options
        rng = Random(f"{options.seed}/{record.index}")
        record.request_id = random_uuid(rng)
        record.target = request.target
        record.headers = dict(request.headers)
        if isinstance(fault, NoAnswer):
            await _wait_for_end(stream, fault.seconds)
            return
        if isinstance(fault, Drop) and fault.at == "request":
            return
        try:
            if isinstance(fault, Refuse):
                code = _ERROR_CODES.get(fault.status, "UNKNOWN")
                raise Refused(fault.status, code, fault.error or code, fault.retry_after)
            if not request.is_upgrade:
                raise Refused(
                    HTTPStatus.UPGRADE_REQUIRED, "UPGRADE_REQUIRED", "this is a WebSocket endpoint"
                )
            _authorise(request, options)
            parameters = parse_target(request.target, options.extra_parameters)
            if options.concurrency is not None and self._open_connections >= options.concurrency:
                raise _refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many concurrent requests")
            websocket = handshake.accept({"dg-request-id": record.request_id})
        except Refused as refusal:
            await _refuse(handshake, record, refusal)
            return
        except HandshakeFailed as error:
            status = error.status or HTTPStatus.BAD_REQUEST
            await _refuse(handshake, record, Refused(status, "BAD_REQUEST", str(error)))
            return
        if isinstance(fault, Drop):
            stream.cut_next_send()
        else:
            record.status = HTTPStatus.SWITCHING_PROTOCOLS
        record.sample_rate = parameters.sample_rate
        connection = ListenConnection(
            websocket, stream, parameters, options, record, plan.of_open_connection, rng
        )
        await _run(connection, websocket, record)

    @property
    def _open_connections(self) -> int:
        return sum(record.is_open for record in self.connections)


async def _run(
    connection: ListenConnection, websocket: WebSocket, record: ConnectionRecord
) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, SEND_SECONDS)
            try:
                await connection.run()
            except ConnectionOver:
                pass
            except PeerClosed as error:
                connection.ended_by(error)
                await websocket.aclose()
            nursery.cancel_scope.cancel()
    except* PeerTooSlow as group:
        record.violate(f"the client does not read: {first_error(group)}")


async def _wait_for_end(stream: FaultyStream, seconds: float | None) -> None:
    with trio.move_on_after(math.inf if seconds is None else seconds):
        while await stream.receive_some():
            pass


def _authorise(request: HTTPRequest, options: Options) -> None:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    accepted = {"token": options.keys, "bearer": options.tokens}
    if scheme.lower() not in accepted or not credential.strip():
        raise _refusal(HTTPStatus.UNAUTHORIZED, "no credentials")
    known = accepted[scheme.lower()]
    if known is not None and credential.strip() not in known:
        raise _refusal(HTTPStatus.UNAUTHORIZED, "invalid credentials")


def _refusal(status: HTTPStatus, message: str) -> Refused:
    return Refused(status, _ERROR_CODES[status], message)


async def _refuse(handshake: ServerHandshake, record: ConnectionRecord, refusal: Refused) -> None:
    record.status = refusal.status
    message = str(refusal)
    headers = {"dg-error": message, "dg-request-id": record.request_id}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after))
    body = refusal_body(refusal.code, message, record.request_id)
    await handshake.respond(refusal.status, body, content_type="application/json", headers=headers)
