"""The running server: accepts, admits, drains."""

from __future__ import annotations

import resource
import signal
from functools import partial
from typing import TYPE_CHECKING

import trio

from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.errors import BadRequest, HandshakeFailed
from omi_rt.core.listen import parse_listen, split_target
from omi_rt.log import get_logger
from omi_rt.net.stream import TCPStream
from omi_rt.net.websocket import ServerHandshake, WebSocket
from omi_rt.server.http import HTTPAnswer, answer, unavailable
from omi_rt.server.memory import default_backlog_bytes
from omi_rt.server.pace import Pace
from omi_rt.server.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.core.listen import ListenRequest
    from omi_rt.deepgram.provider import Provider
    from omi_rt.metrics import Metrics
    from omi_rt.profiles.service import Profiles
    from omi_rt.settings import Settings

LISTEN_BACKLOG = 1024
RETRY_SECONDS = (1, 10)
"""Least and most for ``Retry-After``, whole seconds: those sent away do not come back together."""
_SPREAD_SHARE = 0.5
"""Of the drain time: sessions begin to end over it, and the last still has the rest to finish."""
_LEAVE_SECONDS = 1.0
"""Of the drain time: kept for saying goodbye."""


class Server:
    """Every connection to the port, and the sessions behind them."""

    def __init__(
        self,
        settings: Settings,
        provider: Provider,
        metrics: Metrics,
        profiles: Profiles | None = None,
        pace: Pace | None = None,
        draining: trio.Event | None = None,
    ) -> None:
        self.sessions: set[Session] = set()
        self.ended_connections = 0
        self._settings = settings
        self._provider = provider
        self._metrics = metrics
        self._profiles = profiles
        self.budget = BacklogBudget(settings.backlog_bytes or default_backlog_bytes())
        """Of the audio that all sessions keep."""
        self._pace = pace or Pace(settings.message_cap_ms / 1000)
        self._draining = draining if draining is not None else trio.Event()
        self.session_left = trio.Event()
        """Set when a session has ended; a new one is made for the next."""
        self._log = get_logger()

    @property
    def is_ready(self) -> bool:
        """Whether new sessions are taken."""
        return not self._draining.is_set()

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve until `drain` is called and the sessions have ended.

        Cancelling this ends all sessions at once.
        """
        async with trio.open_nursery() as connections:
            connections.start_soon(self._pace.run)
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
                accepting.cancel_scope.cancel()
            await self._drain_sessions()
            connections.cancel_scope.cancel()

    def drain(self) -> None:
        """Take no new sessions and end the running ones; `serve` then returns."""
        self._draining.set()

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection. Never raises: whatever happens in it stays in it."""
        try:
            # What the handshake needed is let go of before the session, which may last for days.
            session = await self._admit(ServerHandshake(stream))
            if session is not None:
                await self._run_session(session)
        except* Exception as group:  # noqa: BLE001 - the seam: one connection's fault touches no other
            self._metrics.faults.inc()
            self._log.exception("connection_fault", exc_info=group)
        finally:
            self.ended_connections += 1
            await trio.aclose_forcefully(stream)

    async def _accept(self, stream: trio.SocketStream) -> None:
        await self.handle(TCPStream(stream.socket))

    async def _admit(self, handshake: ServerHandshake) -> Session | None:
        """Answer a request; returns the session that it opens, if it does."""
        try:
            request = await handshake.receive_request()
        except HandshakeFailed:
            self._metrics.connections_dropped.inc()
            return None
        try:
            path, parameters = split_target(request.target)
        except BadRequest as error:
            await _respond(handshake, HTTPAnswer(400, f"{error}\n"))
            return None
        if path != "/listen" or not request.is_upgrade:
            await _respond(
                handshake,
                answer(request.method, path, is_ready=self.is_ready, metrics=self._metrics),
            )
            return None
        refusal = self._refusal()
        if refusal is not None:
            await _respond(handshake, refusal)
            return None
        try:
            websocket = handshake.accept()
        except HandshakeFailed as failure:
            await _respond(handshake, HTTPAnswer(failure.status or 400, f"{failure}\n"))
            return None
        # Accepted first, refused after: a client can read a close reason, but no HTTP error.
        try:
            listen = parse_listen(parameters)
        except BadRequest as error:
            await self._close(websocket, error.close_code, str(error))
            return None
        try:
            return self._open_session(websocket, listen)
        except OpusUnavailable as error:
            await self._close(websocket, 1011, str(error))
            return None

    def _refusal(self) -> HTTPAnswer | None:
        if not self.is_ready:
            self._metrics.upgrades_refused.labels("draining").inc()
            return unavailable("going away", self._retry_seconds())
        if len(self.sessions) >= self._settings.max_sessions:
            self._metrics.upgrades_refused.labels("full").inc()
            return unavailable("too many sessions", self._retry_seconds())
        if self.budget.is_full:
            self._metrics.upgrades_refused.labels("memory").inc()
            return unavailable("no memory for another session", self._retry_seconds())
        wait = self._provider.breaker.retry_after(trio.current_time())
        if wait is not None:
            self._metrics.upgrades_refused.labels("breaker").inc()
            return unavailable("the speech provider refuses", wait)
        return None

    def _retry_seconds(self) -> int:
        return self._provider.random.randint(*RETRY_SECONDS)

    def _open_session(self, websocket: WebSocket, listen: ListenRequest) -> Session:
        return Session(
            websocket,
            listen,
            self._provider,
            self._settings,
            self._metrics,
            self._profiles,
            self._pace,
            self.budget,
        )

    async def _run_session(self, session: Session) -> None:
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)
            self.session_left.set()
            self.session_left = trio.Event()

    async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        self._log.info("request_refused", code=code, reason=reason)
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

    async def _wait_until_empty(self) -> None:
        """Wait until no session is left. Cancelling is safe."""
        while self.sessions:
            await self.session_left.wait()


async def _respond(handshake: ServerHandshake, reply: HTTPAnswer) -> None:
    await handshake.respond(
        reply.status, reply.body, content_type=reply.content_type, headers=reply.headers
    )


async def drain_on_signal(
    draining: trio.Event,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """On the first SIGTERM or SIGINT set ``draining``; on the second end everything at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if not draining.is_set():
                draining.set()
            else:
                scope.cancel("second signal")
                return


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: two sockets a session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
