"""The running server: accepts connections, keeps their sessions, drains."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import trio

from omi_rt.core.forwarded import is_loopback_address
from omi_rt.log import get_logger
from omi_rt.net.handshake import HANDSHAKE_SECONDS, ServerHandshake
from omi_rt.net.stream import TCPStream
from omi_rt.net.tls import TLSStream
from omi_rt.net.websocket import STREAM_ERRORS
from omi_rt.server.admission import Admission
from omi_rt.server.counts import Counts
from omi_rt.server.guard import Guard
from omi_rt.server.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from omi_rt.server.line import Line
    from omi_rt.server.shared import Shared

LISTEN_BACKLOG = 1024
_SPREAD_SHARE = 0.5
"""Sessions begin to end over this share of the drain time, and the last still has the rest to finish."""
_LEAVE_SECONDS = 1.0
"""This much of the drain time is kept for saying goodbye."""
LAST_ANSWERS_SECONDS = 0.5
"""After the last session, plain requests that have come by then, such as a last scrape, have this long."""


class Server:
    """Every connection to the port, and the sessions behind them."""

    def __init__(self, shared: Shared, draining: trio.Event | None = None) -> None:
        self.sessions: set[Session] = set()
        self.ended_connections = 0
        self.cut_sessions = 0
        """Sessions that were ended by force, without their last words."""
        self._begun_sessions = 0
        self._connections = 0
        """Connections that are open, with those that have become sessions."""
        self._resumed = 0
        """Those of them that have taken up a session, each of which counts already."""
        self._shared = shared
        self._settings = shared.settings
        self._metrics = metrics = shared.metrics
        self.guard = Guard(shared.settings)
        self._draining = draining if draining is not None else trio.Event()
        self._admission = Admission(shared, self.guard, self.sessions, self._draining)
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
    def _unfinished(self) -> int:
        """How many connections have no session."""
        return self._connections - len(self.sessions) - self._resumed - self._admission.watchers

    @property
    def changed_sessions(self) -> int:
        """How often a session has begun or lost its device."""
        return self._begun_sessions + self._shared.resumable.losses

    @property
    def gone_connections(self) -> int:
        """How many connections have ended, or were lost while their tasks keep a session waiting."""
        return self.ended_connections + self._shared.resumable.losses

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
        beginning, leaving = Counts(), Counts()
        try:
            most = self._settings.max_unfinished
            crowd = self._admission.begin(_peer(stream), beginning)
            if isinstance(stream, TLSStream):
                # Nobody can be told anything before the handshake, so twice as many may make one.
                if crowd is None and self._unfinished > 2 * most:
                    crowd = "unfinished", ""
                if crowd is not None:
                    self._metrics.upgrades_refused.labels(crowd[0]).inc()
                    return
                if not await self._secure(stream):
                    return
            if crowd is None and self._unfinished > most:
                reason = f"too many connections that are no sessions: more than {most}"
                crowd = "unfinished", reason
            if crowd is not None:
                await self._admission.turn_away(ServerHandshake(stream), *crowd)
                return
            # What the handshake needed is let go of before the session, which may last for days.
            admit = partial(
                self._admission.admit,
                leaving=leaving,
                beginning=beginning,
                is_loopback=is_loopback,
            )
            opened = await admit(ServerHandshake(stream), _peer(stream))
            del admit
            beginning.close()
            if isinstance(opened, Session):
                self.sessions.add(opened)
                self._begun_sessions += 1
                leaving.add(self._note_left, opened)
                await opened.run()
            elif opened is not None:
                await self._await_end(opened)
        except* Exception as group:  # noqa: BLE001 - the seam: one connection's fault touches no other
            self._metrics.faults.inc()
            self._log.exception("connection_fault", peer=_peer(stream), exc_info=group)
        finally:
            beginning.close()
            leaving.close()
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

    def _accept(self, stream: trio.SocketStream) -> Awaitable[None]:
        # Not a coroutine around another: each takes 260 bytes for as long as the session lasts.
        is_loopback = False
        with contextlib.suppress(OSError):  # who is gone already has no address
            is_loopback = is_loopback_address(stream.socket.getsockname()[0])
        tcp, certificate = TCPStream(stream.socket), self._shared.certificate
        if certificate is None:
            return self.handle(tcp, is_loopback=is_loopback)
        return self.handle(TLSStream(tcp, certificate.context, None), is_loopback=is_loopback)

    async def _await_end(self, line: Line) -> None:
        """Keep a connection open whose session has its home in another connection's task."""
        self._resumed += 1
        try:
            await line.over.wait()
        finally:
            self._resumed -= 1

    def _note_left(self, session: Session) -> None:
        self.guard.leave(session)
        self.sessions.discard(session)
        self.session_left.set()
        self.session_left = trio.Event()

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
