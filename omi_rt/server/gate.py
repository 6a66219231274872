"""The gate: who comes in, as whom, and what a refusal costs whoever tries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import evolve

from omi_rt.core.login import BadToken, FailedLogins, NoToken
from omi_rt.log import get_logger

if TYPE_CHECKING:
    from omi_rt.auth.login import Login
    from omi_rt.faces.face import Call
    from omi_rt.faces.table import Row
    from omi_rt.metrics import Metrics


class Gate:
    """Asks each client who it is, where there is a login.

    Args:
        login: of the server; None where whoever comes is who they say.
        metrics: of the server.
    """

    def __init__(self, login: Login | None, metrics: Metrics) -> None:
        self._login = login
        self._metrics = metrics
        self._failed = FailedLogins()

    @property
    def problem(self) -> str | None:
        """Why nobody can log in now; None where they can."""
        return None if self._login is None else self._login.problem

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
        token = row.token(call)
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
