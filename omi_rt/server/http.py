"""The plain HTTP side of the port: health, readiness, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from attrs import field, frozen

from omi_rt.core import live_api
from omi_rt.faces.table import FACES
from omi_rt.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from omi_rt.core.admission import Refusal
    from omi_rt.metrics import Metrics
    from omi_rt.net.handshake import ServerHandshake

TEXT = "text/plain; charset=utf-8"


@frozen
class HTTPAnswer:
    """What a plain request gets."""

    status: int
    body: str | bytes = ""
    content_type: str = TEXT
    headers: Mapping[str, str] = field(factory=dict)


def answer(method: str, path: str, *, refusal: Refusal | None, metrics: Metrics) -> HTTPAnswer:
    """Decide what a request that opens no session gets.

    ``refusal`` is why new sessions are sent away, if they are.
    """
    if path in FACES:
        return HTTPAnswer(
            HTTPStatus.UPGRADE_REQUIRED,
            f"{path} is a WebSocket endpoint\n",
            headers={"Upgrade": "websocket"},
        )
    if path not in {"/healthz", "/readyz", "/metrics"}:
        return HTTPAnswer(HTTPStatus.NOT_FOUND, "not found\n")
    if method not in {"GET", "HEAD"}:
        return HTTPAnswer(
            HTTPStatus.METHOD_NOT_ALLOWED, "only GET\n", headers={"Allow": "GET, HEAD"}
        )
    if path == "/metrics":
        return HTTPAnswer(HTTPStatus.OK, metrics.exposition(), CONTENT_TYPE)
    if path == "/readyz" and refusal is not None:
        return HTTPAnswer(HTTPStatus.SERVICE_UNAVAILABLE, f"{refusal.reason}\n")
    return HTTPAnswer(HTTPStatus.OK, "ok\n")


async def respond(handshake: ServerHandshake, reply: HTTPAnswer) -> None:
    """Answer a request as plain HTTP, and end its connection."""
    await handshake.respond(
        reply.status, reply.body, content_type=reply.content_type, headers=reply.headers
    )


def unavailable(reason: str, retry_after: int) -> HTTPAnswer:
    """A 503 with ``Retry-After`` in seconds."""
    return HTTPAnswer(
        HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n", headers={"Retry-After": str(retry_after)}
    )


def deepgram_refusal(
    status: int,
    code: str,
    message: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> HTTPAnswer:
    """A refusal as clients of Deepgram's read it; ``message`` is one line."""
    told = {"dg-error": message, "dg-request-id": request_id, **(headers or {})}
    body = live_api.refusal_body(code, message, request_id)
    return HTTPAnswer(status, body, "application/json", told)
