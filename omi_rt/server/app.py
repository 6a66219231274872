"""The running server: accepts, admits, drains."""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio
from attrs import define

from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core import events
from omi_rt.core.admission import Obstacle, Refusal, find_refusal
from omi_rt.core.errors import BadRequest, DeviceError, HandshakeFailed, PeerClosed
from omi_rt.core.forwarded import client_address
from omi_rt.core.json import dumps
from omi_rt.core.limits import LimitReached, Occupancy, TooManySessions
from omi_rt.core.listen import split_target
from omi_rt.core.live_api import Refused, bad_parameter
from omi_rt.core.login import BadToken
from omi_rt.core.resume import Outcome, Wish, parse_wish, split_wish
from omi_rt.faces.face import Call
from omi_rt.faces.table import FACES
from omi_rt.log import get_logger
from omi_rt.net.handshake import HANDSHAKE_SECONDS, ServerHandshake
from omi_rt.net.stream import TCPStream
from omi_rt.net.tls import TLSStream
from omi_rt.net.websocket import STREAM_ERRORS, WebSocket
from omi_rt.server.gate import Gate, receive_proof
from omi_rt.server.guard import Guard
from omi_rt.server.http import HTTPAnswer, deepgram_refusal, respond, unavailable
from omi_rt.server.line import Line
from omi_rt.server.session import Session
from omi_rt.server.web import Visit, Web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.faces.face import Opening
    from omi_rt.faces.table import Row
    from omi_rt.server.shared import Shared

LISTEN_BACKLOG = 1024
_DISCARDED_BYTES = 2_097_152
"""Of a request whose head is too long this much is read, so that its client reads the answer."""
RETRY_SECONDS = (1, 10)
"""``Retry-After`` is between these, in whole seconds, so that those sent away do not come back together."""
_SPREAD_SHARE = 0.5
"""Sessions begin to end over this share of the drain time, and the last still has the rest to finish."""
_LEAVE_SECONDS = 1.0
"""This much of the drain time is kept for saying goodbye."""
LAST_ANSWERS_SECONDS = 0.5
"""After the last session, plain requests that have come by then, such as a last scrape, have this long."""


@define
class _Arrival:
    """A connection that asks for a session, beside what its path's clients say."""

    address: str
    """Of the client; empty where it is not known."""
    leaving: contextlib.ExitStack
    """Closed when the connection ends."""
    wishes: Mapping[str, str]
    """What the client says of a connection before this one."""
    has_place: bool
    """Whether the session that it asks for is here, and counted already."""


class Server:
    """Every connection to the port, and the sessions behind them."""

    def __init__(self, shared: Shared, draining: trio.Event | None = None) -> None:
        self.sessions: set[Session] = set()
        self.ended_connections = 0
        self.cut_sessions = 0
        """Sessions that were ended by force, without their last words."""
        self._connections = 0
        """Connections that are open, with those that have become sessions."""
        self._resumed = 0
        """Those of them that have taken up a session, each of which counts already."""
        self._shared = shared
        self._settings = shared.settings
        self._provider = shared.provider
        self._metrics = metrics = shared.metrics
        self._gate = Gate(shared.login, metrics, shared.settings.origins)
        self.guard = Guard(shared.settings)
        self._occupancy = Occupancy(shared.settings.max_address_connections)
        self._draining = draining if draining is not None else trio.Event()
        self._web = Web(shared, self._gate, self._draining)
        self.session_left = trio.Event()
        """Set when a session has ended; a new one is made for the next."""
        self._connection_left = trio.Event()
        metrics.max_sessions.set(shared.settings.max_sessions)
        metrics.backlog_bytes.set_function(lambda: shared.budget.backlog_bytes)
        metrics.outbox_bytes.set_function(lambda: shared.budget.outbox_bytes)
        metrics.sessions_away.set_function(lambda: shared.resumable.waiting)
        metrics.lag.set_function(lambda: self.guard.lag)
        metrics.draining.set_function(self._draining.is_set)
        self._log = get_logger()

    @property
    def refusal(self) -> Refusal | None:
        """Why new sessions are sent away; None where they are taken."""
        return find_refusal(
            is_draining=self._draining.is_set(),
            sessions=len(self.sessions),
            max_sessions=self._settings.max_sessions,
            is_memory_full=self._shared.budget.is_full,
            has_room=self._provider.has_room(len(self.sessions)),
            refused=self._provider.breaker.opened_by,
            login_problem=self._gate.problem,
            lag_ms=self.guard.lag * 1000,
            max_lag_ms=self._settings.max_lag_ms,
        )

    @property
    def _unfinished(self) -> int:
        """How many connections have no session."""
        return self._connections - len(self.sessions) - self._resumed - self._web.watchers

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve until `drain` is called and the sessions have ended.

        Plain HTTP is answered to the end. Cancelling this ends all sessions at once.
        """
        async with trio.open_nursery() as connections:
            await connections.start(self.guard.watch_sessions, self.sessions)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(
                        trio.serve_listeners,
                        self._accept,
                        list(listeners),
                        handler_nursery=connections,
                    )
                )
                await self._draining.wait()
                await self._drain_sessions()
                accepting.cancel_scope.cancel()
            await self._finish_answers()
            connections.cancel_scope.cancel()

    def drain(self) -> None:
        """Take no new sessions and end the running ones; `serve` then returns."""
        self._draining.set()

    def note_cut(self, cause: str) -> None:
        """Count and tell the sessions that are about to be ended by force."""
        self.cut_sessions = sum(not session.has_said_all for session in self.sessions)
        self._log.warning("sessions_cut", sessions=self.cut_sessions, cause=cause)

    async def handle(self, stream: trio.abc.Stream, *, is_loopback: bool = False) -> None:
        """Serve one connection. Never raises: whatever happens in it stays in it.

        ``is_loopback`` is whether it came in over the loopback interface.
        """
        self._connections += 1
        try:
            if isinstance(stream, TLSStream) and not await self._secure(stream):
                return
            most = self._settings.max_unfinished
            if self._unfinished > most:
                reason = f"too many connections that are no sessions: more than {most}"
                await self._turn_away(ServerHandshake(stream), "unfinished", reason)
                return
            with contextlib.ExitStack() as leaving:
                # What the handshake needed is let go of before the session, which may last for days.
                admit = partial(self._admit, leaving=leaving, is_loopback=is_loopback)
                opened = await admit(ServerHandshake(stream), _peer(stream))
                del admit
                if isinstance(opened, Session):
                    leaving.callback(self.guard.leave, opened)
                    await self._run_session(opened)
                elif opened is not None:
                    await self._await_end(opened)
        except* Exception as group:  # noqa: BLE001 - the seam: one connection's fault touches no other
            self._metrics.faults.inc()
            self._log.exception("connection_fault", peer=_peer(stream), exc_info=group)
        finally:
            self.ended_connections += 1
            self._connections -= 1
            self._connection_left.set()
            self._connection_left = trio.Event()
            await trio.aclose_forcefully(stream)

    async def _secure(self, stream: TLSStream) -> bool:
        """Make the TLS handshake; whether it succeeded in time."""
        with trio.move_on_after(HANDSHAKE_SECONDS), contextlib.suppress(*STREAM_ERRORS):
            await stream.do_handshake()
            return True
        self._metrics.connections_dropped.inc()
        return False

    async def _accept(self, stream: trio.SocketStream) -> None:
        is_loopback = False
        with contextlib.suppress(OSError):  # who is gone already has no address
            is_loopback = is_loopback_address(stream.socket.getsockname()[0])
        tcp, certificate = TCPStream(stream.socket), self._shared.certificate
        if certificate is None:
            await self.handle(tcp, is_loopback=is_loopback)
            return
        await self.handle(TLSStream(tcp, certificate.context, None), is_loopback=is_loopback)

    async def _admit(
        self,
        handshake: ServerHandshake,
        peer: str,
        *,
        leaving: contextlib.ExitStack,
        is_loopback: bool,
    ) -> Session | Line | None:
        """Answer a request; returns the session that it opens, or the line that takes one up."""
        try:
            request = await handshake.receive_request()
        except HandshakeFailed as failure:
            self._metrics.connections_dropped.inc()
            if failure.status is not None:
                await respond(handshake, HTTPAnswer(failure.status, f"{failure}\n"))
            if failure.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                await handshake.discard(_DISCARDED_BYTES)
            return None
        try:
            path, pairs = split_target(request.target)
        except BadRequest as error:
            await respond(handshake, HTTPAnswer(HTTPStatus.BAD_REQUEST, f"{error}\n"))
            return None
        session_id = uuid.uuid4().hex
        wishes, pairs = split_wish(pairs)
        address = client_address(
            _host(peer), request.headers.get("x-forwarded-for", ""), self._settings.trusted_proxies
        )
        # Behind a proxy on this machine everybody would seem to be on it.
        is_near = is_loopback and (not address or is_loopback_address(address))
        call = Call(path, pairs, request.headers, is_near, session_id, datetime.now(UTC))
        row = FACES.get(path)
        if row is None or not request.is_upgrade:
            visit = Visit(handshake, request, call, address, peer, is_loopback)
            await self._web.serve(visit, self.refusal)
            return None
        arrival = _Arrival(address, leaving, wishes, has_place=self._has_place(wishes))
        refused = self._gate.refuse_origin(request, peer, is_loopback=is_loopback)
        if refused is None and not arrival.has_place:
            refused = self._refuse()
        if refused is not None:
            await respond(
                handshake, _in_deepgrams_form(refused, call) if row.refuses_upgrade else refused
            )
            return None
        if not arrival.has_place:
            try:
                self._enter(arrival)
            except LimitReached as error:
                await self._turn_away(handshake, "address", str(error))
                return None
        return await self._open(handshake, row, call, arrival)

    def _has_place(self, wishes: Mapping[str, str]) -> bool:
        """Whether a session is asked for that has its place here already."""
        session = self._shared.resumable.find(wishes.get("resume", ""))
        return session is not None and not self._draining.is_set()

    def _enter(self, arrival: _Arrival) -> None:
        """Count a connection for its address until it leaves.

        Raises:
            TooManySessions: the address has as many as it may have.
        """
        if not self._occupancy.enter(arrival.address):
            most = self._settings.max_address_connections
            raise TooManySessions(f"too many sessions of this address: {most} of {most}")
        arrival.leaving.callback(self._occupancy.leave, arrival.address)

    async def _turn_away(self, handshake: ServerHandshake, limit: str, reason: str) -> None:
        """Answer 503 because of a limit."""
        self._metrics.upgrades_refused.labels(limit).inc()
        await respond(handshake, unavailable(reason, self._retry_seconds()))

    async def _open(
        self, handshake: ServerHandshake, row: Row, call: Call, arrival: _Arrival
    ) -> Session | Line | None:
        """Accept an upgrade, or refuse it as its clients can read it."""
        opening: Opening | None = None
        if row.refuses_upgrade:
            try:
                call = await self._gate.identify(row, call, arrival.address)
                opening = self._read(row, call)
                _parse_wish(row, arrival.wishes)
                self._check_limits(opening, arrival)
            except LimitReached as error:
                refused = Refused(error.status, "LIMIT_REACHED", str(error))
                await self._refuse_request(handshake, call, refused)
                return None
            except BadToken as error:
                await self._refuse_request(
                    handshake, call, Refused(401, "INVALID_AUTH", str(error))
                )
                return None
            except Refused as error:
                await self._refuse_request(handshake, call, error)
                return None
        try:
            websocket = handshake.accept(row.headers(call))
        except HandshakeFailed as failure:
            await respond(
                handshake, HTTPAnswer(failure.status or HTTPStatus.BAD_REQUEST, f"{failure}\n")
            )
            return None
        return await self._begin(websocket, row, call, arrival, opening)

    async def _begin(
        self,
        websocket: WebSocket,
        row: Row,
        call: Call,
        arrival: _Arrival,
        opening: Opening | None,
    ) -> Session | Line | None:
        """Make a session over an open WebSocket, or take one up; or close it with what is wrong.

        Args:
            websocket: open.
            row: of the path.
            call: the request.
            arrival: what is known of the connection otherwise.
            opening: what the client asks for; None where it has not been read yet.
        """
        early: list[bytes | str] = []
        # Accepted first, refused after: a client can read a close reason, but no HTTP error.
        try:
            if row.waits_for_proof:
                call, early = await receive_proof(websocket, call)
            if opening is None:
                call = await self._gate.identify(row, call, arrival.address)
                opening = self._read(row, call)
                self._check_limits(opening, arrival)
            wish = _parse_wish(row, arrival.wishes)
        except DeviceError as error:
            if row.waits_for_proof:
                websocket.send_nowait(dumps(events.auth_response(success=False)))
            await self._close(websocket, error.close_code, str(error))
            return None
        except PeerClosed as closed:
            await self._close(websocket, BadRequest.close_code, f"auth: {closed}")
            return None
        line = Line(websocket, self._shared, early, acknowledges=wish.acknowledges)
        if wish.secret is not None and await self._resume(line, opening, wish):
            return None if line.is_lost else line
        try:
            if arrival.has_place:
                self._take_place(opening, arrival)
            return Session(call.session_id, line, opening, self._shared, wish)
        except LimitReached as error:
            await self._close(websocket, error.close_code, str(error))
            return None
        except OpusUnavailable as error:
            await self._close(websocket, 1011, str(error))
            return None

    async def _resume(self, line: Line, opening: Opening, wish: Wish) -> bool:
        """Take a session up, or refuse to; returns False where a new one is to begin."""
        outcome = Outcome.UNKNOWN
        session: Session | None = self._shared.resumable.find(wish.secret or "")
        if session is not None:
            decision = session.resume(line, opening, wish)
            outcome = decision.outcome
        self._metrics.resumes.labels(outcome.value).inc()
        if session is not None and decision.close_code is not None:
            line.lose(decision.close_code, decision.reason)
            await self._close(line.websocket, *line.farewell)
        return outcome is not Outcome.UNKNOWN

    async def _await_end(self, line: Line) -> None:
        """Keep a connection open whose session has its home in another connection's task."""
        self._resumed += 1
        try:
            await line.over.wait()
        finally:
            self._resumed -= 1

    def _check_limits(self, opening: Opening, arrival: _Arrival) -> None:
        if arrival.has_place:
            return
        try:
            self.guard.check(opening.request.uid, self.sessions)
        except LimitReached as error:
            self._metrics.upgrades_refused.labels(error.limit.value).inc()
            raise

    def _take_place(self, opening: Opening, arrival: _Arrival) -> None:
        """Let a connection be a new session whose own has ended while it came.

        Raises:
            LimitReached: its uid or its address has as many as it may have.
        """
        arrival.has_place = False
        self._check_limits(opening, arrival)
        try:
            self._enter(arrival)
        except LimitReached:
            self._metrics.upgrades_refused.labels("address").inc()
            raise

    def _read(self, row: Row, call: Call) -> Opening:
        opening = row.open(call)
        if opening.request.is_transcribed_by_client:
            return opening
        try:
            self._provider.check_language(opening.request.language)
        except BadRequest as error:
            if row.refuses_upgrade:
                raise bad_parameter(str(error)) from error
            raise
        return opening

    async def _refuse_request(
        self, handshake: ServerHandshake, call: Call, refused: Refused
    ) -> None:
        self._metrics.upgrades_refused.labels("request").inc()
        self._log.info(
            "request_refused", path=call.path, status=refused.status, reason=str(refused)
        )
        answer = HTTPAnswer(refused.status, str(refused))
        await respond(handshake, _in_deepgrams_form(answer, call, refused.code))

    def _refuse(self) -> HTTPAnswer | None:
        refusal = self.refusal
        if refusal is None:
            return None
        if refusal.obstacle is not Obstacle.BREAKER:
            wait = self._retry_seconds()
        elif (probe_wait := self._provider.breaker.retry_after(trio.current_time())) is not None:
            wait = probe_wait
        else:
            # This one is let in, to see whether Deepgram still refuses.
            return None
        self._metrics.upgrades_refused.labels(refusal.obstacle.value).inc()
        return unavailable(refusal.reason, wait)

    def _retry_seconds(self) -> int:
        return self._provider.random.randint(*RETRY_SECONDS)

    async def _run_session(self, session: Session) -> None:
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)
            self.session_left.set()
            self.session_left = trio.Event()

    async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        self._metrics.requests_closed.labels(str(code)).inc()
        self._log.info("request_refused", peer=websocket.peer, code=code, reason=reason)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, self._settings.send_timeout)
            await websocket.aclose(code, reason)

    async def _drain_sessions(self) -> None:
        total = self._settings.drain_seconds
        ends_at = trio.current_time() + total
        sessions = list(self.sessions)
        self._log.info("draining", sessions=len(sessions), seconds=total)
        pause = total * _SPREAD_SHARE / max(1, len(sessions))
        with trio.move_on_at(ends_at):
            for session in sessions:
                if session in self.sessions:
                    session.drain(max(0.0, ends_at - trio.current_time() - _LEAVE_SECONDS))
                    with trio.move_on_after(pause):
                        await self._wait_until_empty()
            await self._wait_until_empty()
        if any(not session.has_said_all for session in self.sessions):
            self.note_cut(f"OMI_RT_DRAIN_SECONDS ({total:g} s) ran out")

    async def _finish_answers(self) -> None:
        """Let those have their answers who came before the end. Sessions that are left do not count."""
        with trio.move_on_after(LAST_ANSWERS_SECONDS):
            while self._unfinished > 0:
                await self._connection_left.wait()

    async def _wait_until_empty(self) -> None:
        """Wait until no session is left. Cancelling is safe."""
        while self.sessions:
            await self.session_left.wait()


def _peer(stream: trio.abc.Stream) -> str:
    return stream.peer if isinstance(stream, TCPStream | TLSStream) else ""


def _host(peer: str) -> str:
    """The address alone, of an address and a port."""
    return peer.rpartition(":")[0].strip("[]")


def _in_deepgrams_form(refusal: HTTPAnswer, call: Call, code: str | None = None) -> HTTPAnswer:
    """Put a refusal into the form that clients of Deepgram's read."""
    body = refusal.body if isinstance(refusal.body, str) else ""
    return deepgram_refusal(
        refusal.status,
        code or HTTPStatus(refusal.status).name,
        body.strip(),
        str(uuid.UUID(call.session_id)),
        refusal.headers,
    )


def _parse_wish(row: Row, wishes: Mapping[str, str]) -> Wish:
    """Read what a client says of its session, if it does.

    Raises:
        BadRequest: the message names what is wrong; `Refused` where the path answers over HTTP.
    """
    try:
        return parse_wish(wishes)
    except BadRequest as error:
        if row.refuses_upgrade:
            raise bad_parameter(str(error)) from error
        raise


def is_loopback_address(host: str) -> bool:
    """Whether a numeric address can be reached from this machine alone."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: two sockets a session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
