"""The page, and what it asks beside sessions; what else comes over plain HTTP is passed on.

====================  ===============================================================================
``GET /``             the page
``GET /web/NAME``     its scripts and its style sheet
``GET /web/about``    what the page has to know of this server
``POST /web/profile`` a voice to be checked, or stored (`omi_rt.server.enrol`)
``/web/watch``        a WebSocket that follows a session, or the list of them (`omi_rt.server.watching`)
====================  ===============================================================================
"""

from __future__ import annotations

from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

import omi_rt
from omi_rt.core.errors import BadRequest, DeviceError, HandshakeFailed, PeerClosed
from omi_rt.core.login import BadToken
from omi_rt.faces.face import Call, bearer_token
from omi_rt.log import get_logger, pseudonym
from omi_rt.net.handshake import ServerHandshake
from omi_rt.net.protocol import HTTPRequest
from omi_rt.server.counts import Counts
from omi_rt.server.enrol import MAX_BYTES, Enrolment, as_json, body_bytes, refusal
from omi_rt.server.gate import receive_proof
from omi_rt.server.http import HTTPAnswer, answer, respond, unavailable
from omi_rt.server.watching import NO_MORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omi_rt.core.admission import Refusal
    from omi_rt.net.websocket import WebSocket
    from omi_rt.server.gate import Gate
    from omi_rt.server.shared import Shared

CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
SECURITY_HEADERS: Final = {
    # Nothing comes from anywhere else, and nothing in the page itself is run: a script that somebody
    # gets into a transcript or a name stays text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TRY_AGAIN_SECONDS: Final = 5


@frozen
class Visit:
    """A request that opens no session."""

    handshake: ServerHandshake
    request: HTTPRequest
    call: Call
    address: str
    """Of the client; empty where it is not known."""
    peer: str
    is_loopback: bool
    """Whether it came in over the loopback interface, perhaps through a proxy there."""
    beginning: Counts
    """Closed when the connection watches a session."""


@frozen
class _File:
    content: bytes
    content_type: str
    tag: str
    """Changes with the content."""


class Web:
    """Answers whatever opens no session.

    Args:
        shared: what all sessions share.
        gate: asks who somebody is.
        draining: set when the server goes.
    """

    def __init__(self, shared: Shared, gate: Gate, draining: trio.Event) -> None:
        self._shared = shared
        self._gate = gate
        self._draining = draining
        self._watching = shared.watching
        self._enrolment = Enrolment(shared.profiles)
        self._files = _read_files()

    @property
    def watchers(self) -> int:
        """How many connections watch."""
        return self._watching.count

    async def serve(self, visit: Visit, refused: Refusal | None) -> None:
        """Answer one request; ``refused`` is why new sessions are sent away, if they are.

        Cancelling this closes a watcher's connection.
        """
        path = visit.call.path
        if path == "/web/watch" and visit.request.is_upgrade:
            await self._watch(visit)
        elif path == "/web/profile":
            await self._enrol(visit)
        else:
            await respond(visit.handshake, self._answer(visit, refused))

    def _answer(self, visit: Visit, refused: Refusal | None) -> HTTPAnswer:
        method, path = visit.request.method, visit.call.path
        if path == "/web/watch":
            return HTTPAnswer(
                HTTPStatus.UPGRADE_REQUIRED,
                f"{path} is a WebSocket endpoint\n",
                headers={"Upgrade": "websocket"},
            )
        file = self._files.get(path)
        if file is None and path != "/web/about":
            return answer(method, path, refusal=refused, metrics=self._shared.metrics)
        if method not in {"GET", "HEAD"}:
            return HTTPAnswer(
                HTTPStatus.METHOD_NOT_ALLOWED, "only GET\n", headers={"Allow": "GET, HEAD"}
            )
        if file is None:
            return as_json(HTTPStatus.OK, self._about(visit.call))
        headers = {**SECURITY_HEADERS, "ETag": file.tag, "Cache-Control": "no-cache"}
        if visit.request.headers.get("if-none-match") == file.tag:
            return HTTPAnswer(HTTPStatus.NOT_MODIFIED, b"", file.content_type, headers)
        return HTTPAnswer(HTTPStatus.OK, file.content, file.content_type, headers)

    def _about(self, call: Call) -> dict[str, object]:
        settings = self._shared.settings
        # Without a login a token names a uid, and is taken on this machine alone.
        takes_tokens = self._gate.asks or call.is_loopback
        return {
            "version": omi_rt.__version__,
            "asks_token": self._gate.asks,
            "listen": "/v4/web/listen" if takes_tokens else "/listen",
            "may_enrol": takes_tokens and self._shared.profiles is not None,
            "may_watch": takes_tokens,
            "stores_voices": self._shared.profiles is not None and settings.profile_learn,
        }

    async def _enrol(self, visit: Visit) -> None:
        handshake, request = visit.handshake, visit.request
        refused = self._gate.refuse_origin(request, visit.peer, is_loopback=visit.is_loopback)
        refused = refused or self._enrolment.refuse(request)
        if refused is None:
            try:
                uid = await self._prove(visit.call, bearer_token(visit.call), visit.address)
            except BadToken as error:
                refused = refusal(HTTPStatus.UNAUTHORIZED, str(error))
            except BadRequest as error:
                refused = refusal(HTTPStatus.FORBIDDEN, str(error))
            else:
                # Others may have come while this one proved who it is.
                refused = self._enrolment.refuse_when_busy()
            if refused is None:
                parameters = visit.call.parameters
                reply = await self._enrolment.take(handshake, request, uid, parameters)
                await respond(handshake, reply)
                return
        await respond(handshake, refused)
        await handshake.discard(min(body_bytes(request), MAX_BYTES))

    async def _prove(self, call: Call, token: str, address: str) -> str:
        """Return whose voice a client may store, and whose sessions it may watch.

        Raises:
            BadToken: the token proves nothing.
            BadRequest: there is no login, and the client is not on this machine.
        """
        if self._gate.asks:
            return (await self._gate.prove(call, token, address)).uid or ""
        if not call.is_loopback:
            raise BadRequest("there is no login here, so this is for this machine alone")
        return call.parameters.get("uid", "")

    async def _watch(self, visit: Visit) -> None:
        handshake, request = visit.handshake, visit.request
        refused = self._gate.refuse_origin(request, visit.peer, is_loopback=visit.is_loopback)
        refused = refused or self._refuse_watcher()
        if refused is not None:
            await respond(handshake, refused)
            return
        try:
            websocket = handshake.accept()
        except HandshakeFailed as failure:
            status = failure.status or HTTPStatus.BAD_REQUEST
            await respond(handshake, HTTPAnswer(status, f"{failure}\n"))
            return
        try:
            await self._follow(websocket, visit)
        except DeviceError as error:
            await self._close(websocket, error.close_code, str(error))
        except PeerClosed as closed:
            await self._close(websocket, BadRequest.close_code, f"auth: {closed}")

    def _refuse_watcher(self) -> HTTPAnswer | None:
        """Decide whether nobody may watch now, whoever it is."""
        if self._draining.is_set():
            limit, reason = "draining", "going away"
        elif self._watching.is_full:
            limit, reason = "full", NO_MORE
        else:
            return None
        self._shared.metrics.watchers_refused.labels(limit).inc()
        return unavailable(reason, _TRY_AGAIN_SECONDS)

    async def _follow(self, websocket: WebSocket, visit: Visit) -> None:
        """Let somebody watch who may.

        Raises:
            DeviceError: they may not, there is no such session, or there is no place for them.
            PeerClosed: they have gone.
        """
        call = visit.call
        token = ""
        if self._gate.asks and not (token := bearer_token(call)):
            # A page cannot set headers: it says first who it is.
            call, _ = await receive_proof(websocket, call)
            token = call.token or ""
        uid = await self._prove(call, token, visit.address)
        # Not before: whoever has proved nothing would take places away from those who may watch.
        with self._watching.place(uid):
            visit.beginning.close()
            await self._show(websocket, call, uid, visit.peer)

    async def _show(self, websocket: WebSocket, call: Call, uid: str, peer: str) -> None:
        """Show somebody a session, or the list of theirs.

        Raises:
            BadRequest: there is no such session.
        """
        settings = self._shared.settings
        session_id = call.parameters.get("session")
        log = get_logger(uid_hash=pseudonym(uid), peer=peer)
        if session_id is None:
            log.info("watch_began")
            await self._watching.follow_list(
                uid, websocket, settings.heartbeat_seconds, self._draining
            )
            return
        session = self._watching.find(session_id, uid if self._gate.asks else None)
        if session is None:
            # Nobody is told which sessions others have.
            raise BadRequest("session: there is no such session of yours")
        log.info("watch_began", session=session.facts.id)
        await self._watching.follow_session(session, websocket, settings.heartbeat_seconds)

    async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
        get_logger().info("watch_refused", peer=websocket.peer, code=code, reason=reason)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, self._shared.settings.send_timeout)
            await websocket.aclose(code, reason)


def _read_files() -> Mapping[str, _File]:
    """Read the page's files into memory: a path that leads out of the folder leads to nothing."""
    found = {}
    for each in (files(omi_rt) / "web").iterdir():
        kind = each.name.rpartition(".")[2]
        if kind in CONTENT_TYPES and each.is_file():
            content = each.read_bytes()
            tag = f'"{sha256(content).hexdigest()[:16]}"'
            found[f"/web/{each.name}"] = _File(content, CONTENT_TYPES[kind], tag)
    found["/"] = found.pop("/web/index.html")
    return found
