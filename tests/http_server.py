"""A real HTTP server on loopback for tests, whose answers the test decides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import h11
import trio
from attrs import define, field, frozen

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable


@frozen
class Request:
    """What came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    came_at: float

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@frozen
class Reply:
    """What goes back; without a status nothing ever does."""

    status: int | None = 200
    body: bytes = b""
    headers: dict[str, str] = field(factory=dict)
    endless: bool = False
    """Whether the body is repeated for as long as somebody reads."""
    delay: float = 0.0


@define
class HTTPServer:
    """The server: what it was asked, and how it answers."""

    port: int = 0
    answer: Callable[[Request], Reply] = lambda _request: Reply()
    requests: list[Request] = field(factory=list)
    connections: int = 0
    sent_bytes: int = 0
    scheme: str = "http"
    _news: trio.Event = field(factory=trio.Event)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def until(self, condition: Callable[[], object], within: float = 10.0) -> None:
        """Wait until ``condition`` holds, looking whenever a request has come."""
        with trio.fail_after(within):
            while not condition():
                await self._news.wait()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        connection = h11.Connection(h11.SERVER)
        try:
            async with stream:
                while await self._answer_one(stream, connection):
                    connection.start_next_cycle()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            return

    async def _answer_one(self, stream: trio.abc.Stream, connection: h11.Connection) -> bool:
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        request = Request(
            head.method.decode(), head.target.decode(), headers, body, trio.current_time()
        )
        reply = self.answer(request)
        self.requests.append(request)
        self._news.set()
        self._news = trio.Event()
        await trio.sleep(reply.delay)
        if reply.status is None:
            await trio.sleep_forever()
        assert reply.status is not None
        fields = list(reply.headers.items())
        if not reply.endless:
            fields.append(("Content-Length", str(len(reply.body))))
        await stream.send_all(
            connection.send(h11.Response(status_code=reply.status, headers=fields)) or b""
        )
        while True:
            await stream.send_all(connection.send(h11.Data(data=reply.body)) or b"")
            self.sent_bytes += len(reply.body)
            if not reply.endless:
                break
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE


@asynccontextmanager
async def http_server(
    answer: Callable[[Request], Reply] = lambda _request: Reply(),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[HTTPServer]:
    """Serve on a port of its own, beside the body."""
    server = HTTPServer(answer=answer, scheme="http" if context is None else "https")
    open_listeners: Callable[[], Awaitable[list[trio.abc.Listener[trio.abc.Stream]]]]
    if context is None:
        open_listeners = partial(trio.open_tcp_listeners, port, host=host)  # type: ignore[assignment]
    else:
        open_listeners = partial(  # type: ignore[assignment]
            trio.open_ssl_over_tcp_listeners, port, context, host=host
        )
    listeners = await open_listeners()
    first = listeners[0]
    inner = first.transport_listener if isinstance(first, trio.SSLListener) else first
    assert isinstance(inner, trio.SocketListener)
    server.port = inner.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.serve, listeners)
        yield server
        nursery.cancel_scope.cancel()
