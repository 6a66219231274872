"""TLS for the hot path, with a send that need not wait.

Over ``trio.SSLStream`` 60 streams took 5.8 ms of CPU a stream-second, over this one 4.05 (bench/README.md).
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.net.poller import Kind
    from omi_rt.net.stream import TCPStream

_RECORD_BYTES = 16_384
"""A record holds at most this much plaintext (RFC 8446, 5.1)."""
_RECORDS_PER_STEP = 25
"""So many records are decrypted and passed on in one go. A device can put a small message into each, and
what a small message decodes to can be much."""
_HTTP_REQUEST = "HTTP_REQUEST"
"""OpenSSL's name for the error where somebody speaks plain HTTP to it."""
_NO_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: 48\r\n\r\nonly TLS is spoken here: say https://, or wss://"
)
"""Else a browser would only show that it got nothing."""


class TLSStream(trio.abc.HalfCloseableStream):
    """Either side of TLS over a connected TCP stream, by the standard library's ``SSLObject``.

    What ``trio.SSLStream`` is given is sent under a lock by a task that waits for it; here a frame
    is encrypted and offered to the kernel at once, as on plain TCP.

    The end of the stream is an end with or without TLS's own goodbye, as with HTTPS: what was cut
    off shows in the protocol above.

    One task may send and one other receive; nothing checks that. `send_all` and `receive_some` are
    checkpoints only where they have to wait, as `TCPStream`'s.
    """

    __slots__ = ("_incoming", "_is_closed", "_object", "_outgoing", "_stream", "_unsent")

    def __init__(
        self, stream: TCPStream, context: ssl.SSLContext, server_hostname: str | None
    ) -> None:
        """Prepare; `do_handshake` must follow.

        Args:
            stream: a connected stream that nobody else uses.
            context: whom to trust; on the server's side it holds the certificate.
            server_hostname: the name that the certificate must be for; None on the server's side.
        """
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )
        self._unsent = b""
        """Bytes that are encrypted already and have not been sent."""
        self._is_closed = False

    @property
    def peer(self) -> str:
        """The address and port of the other side; empty where it has gone already."""
        return self._stream.peer

    async def do_handshake(self) -> None:
        """Make the handshake. Cancelling leaves the stream unusable.

        Raises:
            trio.BrokenResourceError: it failed; the cause is an ``ssl.SSLError``.
        """
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._read_more()
            except ssl.SSLError as error:
                # The other side is told why, if it is still there.
                why = self._outgoing.read()
                if error.reason == _HTTP_REQUEST:
                    why = _NO_PLAIN_HTTP
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    self._stream.send_nowait(why)
                raise trio.BrokenResourceError("no TLS connection") from error
            else:
                await self._flush()
                return

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Raises as ``trio.abc.SendStream.send_all`` does."""
        if self.send_nowait(data) is not None:
            await self._flush()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Send what the kernel takes at once; the contract is `TCPStream.send_nowait`'s.

        All of ``data`` is encrypted, so that nothing of it is left to be given to ``send_all``: an
        empty rest only says that ``send_all`` must be called.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed")
        # An empty write would mean the end.
        if data:
            try:
                self._object.write(data)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("TLS connection broken") from error
        self._unsent += self._outgoing.read()
        rest = self._stream.send_nowait(self._unsent)
        self._unsent = b"" if rest is None else bytes(rest)
        return None if rest is None else b""

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket is writable."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return what is there, at most 16 KiB; ``b""`` at the end.

        Cancelling this loses nothing.
        """
        size = _RECORD_BYTES if max_bytes is None else max_bytes
        while True:
            try:
                return self._object.read(size)
            except ssl.SSLWantReadError:
                await self._read_more()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("TLS connection broken") from error

    async def serve(self, take: Callable[[bytes, float], bool], kind: Kind) -> None:
        """Pass all that arrives to ``take``, decrypted; the contract is `TCPStream.serve`'s.

        It returns as well where much has arrived at once: the next call goes on with that, when others have
        had their turn.
        """
        # Of what was read before a part may be left.
        if self._pass_on(take, trio.current_time()):
            await trio.lowlevel.checkpoint()
            return

        def take_encrypted(data: bytes, now: float) -> bool:
            self._add(data)
            return self._pass_on(take, now)

        await self._stream.serve(take_encrypted, kind)

    def _pass_on(self, take: Callable[[bytes, float], bool], now: float) -> bool:
        """Pass on what can be decrypted; returns whether ``take`` has enough, or others are to come first."""
        for _ in range(_RECORDS_PER_STEP):
            try:
                data = self._object.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                return False
            except ssl.SSLError:
                data = b""
            if take(data, now) or not data:
                return True
            # To ask for what is not there costs 2.4 µs, nearly as much as to decrypt a frame.
            if not self._incoming.pending:
                return False
        return True

    async def send_eof(self) -> None:
        """Say TLS's goodbye and shut down the sending side; what comes can still be read.

        The other side of a WebSocket waits for that end before it closes. Raises as ``send_all`` does.
        """
        # The goodbye is written all the same: what is missing is the other side's.
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        await self._flush()
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket without TLS's goodbye, because half a record may be on the wire."""
        self._is_closed = True
        await self._stream.aclose()

    async def _read_more(self) -> None:
        self._add(await self._stream.receive_some())

    def _add(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        data, self._unsent = self._unsent + self._outgoing.read(), b""
        if data:
            await self._stream.send_all(data)
