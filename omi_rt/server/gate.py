"""The gate: who comes in, as whom, and what a refusal costs whoever tries."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from omi_rt.core.errors import BadRequest
from omi_rt.core.login import BadToken, FailedLogins, NoToken
from omi_rt.core.origin import is_allowed
from omi_rt.faces.omi import AUTH_SECONDS, read_auth
from omi_rt.log import get_logger
from omi_rt.server.http import HTTPAnswer

if TYPE_CHECKING:
    from collections.abc import Collection

    from omi_rt.auth.login import Login
    from omi_rt.core.origin import Origin
    from omi_rt.faces.face import Call
    from omi_rt.faces.table import Row
    from omi_rt.metrics import Metrics
    from omi_rt.net.protocol import HTTPRequest
    from omi_rt.net.websocket import WebSocket

_SHOWN_CHARACTERS = 100
"""The log shows this many characters of what a stranger says of itself."""


class Gate:
    """Asks each client who it is, where there is a login.

    Args:
        login: of the server; None where whoever comes is who they say.
        metrics: of the server.
        origins: of the web pages that may come besides the server's own.
    """

    def __init__(
        self, login: Login | None, metrics: Metrics, origins: Collection[Origin] = ()
    ) -> None:
        self._login = login
        self._metrics = metrics
        self._origins = origins
        self._failed = FailedLogins()

    @property
    def problem(self) -> str | None:
        """Why nobody can log in now; None where they can."""
        return None if self._login is None else self._login.problem

    @property
    def asks(self) -> bool:
        """Whether a client has to prove who it is."""
        return self._login is not None

    def refuse_origin(
        self, request: HTTPRequest, peer: str, *, is_loopback: bool
    ) -> HTTPAnswer | None:
        """Decide whether a web page may come in, before anything else is told to it."""
        origin, host = request.headers.get("origin"), request.headers.get("host")
        if is_allowed(origin, host, self._origins, is_loopback=is_loopback):
            return None
        self._metrics.upgrades_refused.labels("origin").inc()
        get_logger().info("origin_refused", peer=peer, origin=(origin or "")[:_SHOWN_CHARACTERS])
        return HTTPAnswer(
            HTTPStatus.FORBIDDEN,
            "this Origin may not open a session: OMI_RT_ORIGINS lists who may\n",
        )

    async def identify(self, row: Row, call: Call, address: str) -> Call:
        """Return the request with the uid that its token proves.

        A failure is answered late, and later the more there were from ``address``. Cancelling this
        is safe.

        Raises:
            BadToken: it proves none.
            Refused: a client of Deepgram's shows more than one key.
        """
        if self._login is None:
            return call
        return await self.prove(call, row.token(call), address)

    async def prove(self, call: Call, token: str, address: str) -> Call:
        """Return the request with the uid that ``token`` proves; `identify` says the rest.

        Raises:
            BadToken: it proves none.
        """
        assert self._login is not None
        try:
            if not token:
                raise NoToken
            return evolve(call, uid=await self._login.uid_of(token))
        except BadToken as error:
            failure = error
        self._metrics.login_failures.labels(failure.kind).inc()
        get_logger().info("login_failed", peer=address, path=call.path, kind=failure.kind)
        await trio.sleep(self._failed.note(address, trio.current_time()))
        raise failure


async def receive_proof(websocket: WebSocket, call: Call) -> tuple[Call, list[bytes | str]]:
    """Wait for the first message, which says who the client is; returns what came behind it.

    Raises:
        BadRequest: it did not come within `AUTH_SECONDS`, or was something else.
        PeerClosed: the client has gone.
    """
    messages: list[bytes | str] = []
    with trio.move_on_after(AUTH_SECONDS):
        await websocket.flush(AUTH_SECONDS)
        messages = await websocket.receive()
    if not messages:
        raise BadRequest(f"auth: nothing came within {AUTH_SECONDS:g} s")
    return evolve(call, token=read_auth(messages[0])), messages[1:]
