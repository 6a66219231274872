"""Who is let in: what becomes of a request, from its head to the session that it opens."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio
from attrs import define

from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core import events
from omi_rt.core.admission import Obstacle, Refusal, SentAway, SentElsewhere, find_refusal
from omi_rt.core.errors import BadRequest, DeviceError, HandshakeFailed, PeerClosed
from omi_rt.core.forwarded import (
    client_address,
    is_loopback_address,
    is_of_nobody_known,
    is_trusted,
)
from omi_rt.core.json import dumps
from omi_rt.core.limits import LimitReached, Occupancy, TooManySessions
from omi_rt.core.listen import split_target
from omi_rt.core.live_api import Refused, bad_parameter
from omi_rt.core.login import BadToken
from omi_rt.core.resume import Outcome, Wish, parse_wish, split_wish
from omi_rt.faces.face import Call
from omi_rt.faces.table import FACES
from omi_rt.log import get_logger
from omi_rt.server.counts import Counts
from omi_rt.server.gate import Gate, receive_proof
from omi_rt.server.http import HTTPAnswer, deepgram_refusal, respond, unavailable
from omi_rt.server.line import Line
from omi_rt.server.session import Session
from omi_rt.server.web import Visit, Web

if TYPE_CHECKING:
    from collections.abc import Collection

    from omi_rt.faces.face import Opening
    from omi_rt.faces.table import Row
    from omi_rt.net.handshake import ServerHandshake
    from omi_rt.net.protocol import HTTPRequest
    from omi_rt.net.websocket import WebSocket
    from omi_rt.server.guard import Guard
    from omi_rt.server.shared import Shared

RETRY_SECONDS = (1, 10)
"""``Retry-After`` is between these, in whole seconds, so that those sent away do not come back together."""
UNFINISHED_SHARE = 4
"""One address may have this part of the connections that are no sessions: a quarter."""
_DISCARDED_BYTES = 2_097_152
"""Of a request whose head is too long this much is read, so that its client reads the answer."""


@define
class _Arrival:
    """A connection that asks for a session, beside what its path's clients say."""

    address: str
    """Of the client; empty where it is not known."""
    leaving: Counts
    """Closed when the connection ends."""
    wishes: Mapping[str, str]
    """What the client says of a connection before this one."""
    has_place: bool
    """Whether the session that it asks for is here, and counted already."""


class Admission:
    """Answers requests, and makes the sessions that they open.

    Args:
        shared: what all sessions share.
        guard: knows the limits of uids, and how late the event loop is.
        sessions: those that run now.
        draining: set when the server goes.
    """

    def __init__(
        self,
        shared: Shared,
        guard: Guard,
        sessions: Collection[Session],
        draining: trio.Event,
    ) -> None:
        self._shared = shared
        self._settings = shared.settings
        self._provider = shared.provider
        self._metrics = shared.metrics
        self._guard = guard
        self._sessions = sessions
        self._draining = draining
        self._gate = Gate(shared.login, shared.metrics, shared.settings.origins)
        self._occupancy = Occupancy(shared.settings.max_address_connections)
        self._beginning = Occupancy(max(1, shared.settings.max_unfinished // UNFINISHED_SHARE))
        self._web = Web(shared, self._gate, draining)
        self._log = get_logger()

    @property
    def watchers(self) -> int:
        """How many connections watch sessions, and are none."""
        return self._web.watchers

    @property
    def refusal(self) -> Refusal | None:
        """Why new sessions are sent away; None where they are taken."""
        return find_refusal(
            is_draining=self._draining.is_set(),
            sessions=len(self._sessions),
            max_sessions=self._settings.max_sessions,
            is_memory_full=self._shared.budget.is_full,
            has_room=self._provider.has_room(self._count_transcribed),
            refused=self._provider.breaker.opened_by,
            login_problem=self._gate.problem,
            lag_ms=self._guard.lag * 1000,
            max_lag_ms=self._settings.max_lag_ms,
        )

    def begin(self, peer: str, beginning: Counts) -> tuple[str, str] | None:
        """Count a new connection for its address until ``beginning`` is closed.

        Returns the limit and the reason where the address has too many that are no sessions yet. Those
        that a proxy makes are counted when it has said for whom; those of this machine are not.
        """
        host = _host(peer)
        if (
            not host
            or is_loopback_address(host)
            or is_trusted(host, self._settings.trusted_proxies)
        ):
            return None
        return self._count_beginning(host, beginning)

    def _count_beginning(self, address: str, beginning: Counts) -> tuple[str, str] | None:
        if not self._beginning.enter(address):
            return "address", "too many connections of this address that are no sessions"
        beginning.add(self._beginning.leave, address)
        return None

    async def admit(
        self,
        handshake: ServerHandshake,
        peer: str,
        *,
        leaving: Counts,
        beginning: Counts,
        is_loopback: bool,
    ) -> Session | Line | None:
        """Answer a request; returns the session that it opens, or the line that takes one up.

        Args:
            handshake: of the connection.
            peer: its address and port; empty where they are not known.
            leaving: closed when the connection ends.
            beginning: closed when it is a session, or watches one; at the latest when it ends.
            is_loopback: whether it came in over the loopback interface.
        """
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
        address, is_near = self._locate(request, peer, is_loopback=is_loopback)
        if address != _host(peer) and (crowd := self._count_beginning(address, beginning)):
            await self.turn_away(handshake, *crowd)
            return None
        call = Call(path, pairs, request.headers, is_near, session_id, datetime.now(UTC))
        row = FACES.get(path)
        if row is None or not request.is_upgrade:
            visit = Visit(handshake, request, call, address, peer, is_loopback, beginning)
            await self._web.serve(visit, self.refusal)
            return None
        arrival = _Arrival(address, leaving, wishes, has_place=self._has_place(wishes))
        refused = self._gate.refuse_origin(request, peer, is_loopback=is_loopback)
        if refused is None and not arrival.has_place:
            refused = self._refuse(needs_provider=row.needs_provider(call))
        if refused is not None:
            await respond(
                handshake, _in_deepgrams_form(refused, call) if row.refuses_upgrade else refused
            )
            return None
        if not arrival.has_place:
            try:
                self._enter(arrival)
            except LimitReached as error:
                await self.turn_away(handshake, "address", str(error))
                return None
        return await self._open(handshake, row, call, arrival)

    def _locate(self, request: HTTPRequest, peer: str, *, is_loopback: bool) -> tuple[str, bool]:
        """Return the client's address, and whether the client is on this machine."""
        host, forwarded = _host(peer), request.headers.get("x-forwarded-for", "")
        trusted = self._settings.trusted_proxies
        address = client_address(host, forwarded, trusted)
        # Behind a proxy on this machine everybody would seem to be on it.
        is_local = is_loopback and not is_of_nobody_known(host, forwarded, trusted)
        return address, is_local and (not address or is_loopback_address(address))

    def _count_transcribed(self) -> int:
        return sum(session.needs_provider for session in self._sessions)

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
        arrival.leaving.add(self._occupancy.leave, arrival.address)

    async def turn_away(self, handshake: ServerHandshake, limit: str, reason: str) -> None:
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
                await self._refuse_request(handshake, call, refused, is_counted=True)
                return None
            except SentAway as error:
                sent_away = unavailable(str(error), self._retry_seconds())
                await respond(handshake, _in_deepgrams_form(sent_away, call))
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
        except DeviceError as error:
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

    def _check_limits(self, opening: Opening, arrival: _Arrival) -> None:
        """See whether a session may begin, now that it is known whose it is.

        Raises:
            SentAway: others have taken the room meanwhile, or the server goes.
            LimitReached: the uid has as much as it may have.
        """
        if arrival.has_place:
            return
        refusal = self.refusal
        needs_provider = not opening.request.is_transcribed_by_client
        if refusal is not None and refusal.counts_late(needs_provider=needs_provider):
            self._metrics.upgrades_refused.labels(refusal.obstacle.value).inc()
            is_going = refusal.obstacle is Obstacle.DRAINING
            raise (SentElsewhere if is_going else SentAway)(refusal.reason)
        try:
            self._guard.check(opening.request.uid, self._sessions)
        except LimitReached as error:
            self._metrics.upgrades_refused.labels(error.limit.value).inc()
            raise

    def _take_place(self, opening: Opening, arrival: _Arrival) -> None:
        """Let a connection be a new session whose own has ended while it came.

        Raises:
            SentAway: there is no room for it.
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
        self, handshake: ServerHandshake, call: Call, refused: Refused, *, is_counted: bool = False
    ) -> None:
        if not is_counted:
            self._metrics.upgrades_refused.labels("request").inc()
        self._log.info(
            "request_refused", path=call.path, status=refused.status, reason=str(refused)
        )
        answer = HTTPAnswer(refused.status, str(refused))
        await respond(handshake, _in_deepgrams_form(answer, call, refused.code))

    def _refuse(self, *, needs_provider: bool) -> HTTPAnswer | None:
        refusal = self.refusal
        if refusal is None or not refusal.counts(needs_provider=needs_provider):
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

    async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        self._metrics.requests_closed.labels(str(code)).inc()
        self._log.info("request_refused", peer=websocket.peer, code=code, reason=reason)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, self._settings.send_timeout)
            await websocket.aclose(code, reason)


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
