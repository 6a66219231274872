"""TCP streams for the hot path: the same contract as ``trio.SocketStream``, with fewer steps.

``trio.SocketStream`` passes two checkpoints around each call. Here a send that the kernel takes
whole costs one system call, and a receive waits for readiness first, since on a live stream the
data is hardly ever there already.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
from typing import TYPE_CHECKING

import trio

from omi_rt.net.poller import running_poller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from omi_rt.net.poller import Kind

RECEIVE_BYTES = 65_536
_CLOSED_ERRNOS = frozenset({errno.EBADF, errno.ENOTSOCK})


class TCPStream(trio.abc.HalfCloseableStream):
    """A connected TCP socket as a Trio stream.

    ``send_all`` is not a checkpoint when the kernel takes everything at once: a caller that loops
    on it must have a checkpoint of its own. Cancelling ``send_all`` may leave part of the data
    sent; cancelling ``receive_some`` loses nothing.
    """

    __slots__ = ("_fd", "socket")

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self.socket = socket
        socket.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        # The descriptor is used directly, because Trio's send and recv add checkpoints; Trio has put it
        # in non-blocking mode. It is -1 once closed, since the system may give the number out again.
        self._fd = socket.fileno()

    @property
    def peer(self) -> str:
        """The address and port of the other side; empty where it has gone already."""
        try:
            host, port = self.socket.getpeername()[:2]
        except OSError:
            return ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Raises as ``trio.abc.SendStream.send_all`` does."""
        rest = self.send_nowait(data)
        while rest is not None:
            await self.wait_send_all_might_not_block()
            rest = self.send_nowait(rest)

    def send_nowait(
        self, data: bytes | bytearray | memoryview
    ) -> bytes | bytearray | memoryview | None:
        """Send what the kernel takes at once; return the rest, or None if nothing is left.

        ``send_all`` must be called with a rest before anything else is sent. Raises as it does.
        Nobody may be in ``send_all``.
        """
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise _stream_error(error) from error
        return None if sent == len(data) else memoryview(data)[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket is writable."""
        try:
            await trio.lowlevel.wait_writable(self.socket)
        except OSError as error:
            raise _stream_error(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return what is there, at most 64 KiB; ``b""`` at the end."""
        size = RECEIVE_BYTES if max_bytes is None else max_bytes
        while True:
            try:
                if self._fd < 0:
                    raise trio.ClosedResourceError("this socket was closed")
                await trio.lowlevel.wait_readable(self.socket)
                return os.read(self._fd, size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _stream_error(error) from error

    def serve(self, take: Callable[[bytes, float], bool], kind: Kind) -> Awaitable[None]:
        """Pass all that arrives to ``take``, with the time, until that returns True.

        The poller calls it (`Poller.serve`): it must not wait, and there may be no current task. It is
        passed ``b""`` at the end of the stream, or where the connection has broken, and must then return
        True. Cancelling is safe. Nobody may be in ``receive_some``, and a poller must run
        (`running_poller`).

        (Not a coroutine itself: each takes 260 bytes, and a session waits in two of these.)

        Raises:
            trio.ClosedResourceError: this end was closed.
        """
        poller = running_poller()
        assert poller is not None
        if self._fd < 0:
            raise trio.ClosedResourceError("this socket was closed")
        fd = self._fd

        def read(now: float) -> bool:
            try:
                data = os.read(fd, RECEIVE_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            return take(data, now)

        return poller.serve(fd, read, kind)

    async def send_eof(self) -> None:
        """Shut down the sending side."""
        try:
            self.socket.shutdown(stdlib_socket.SHUT_WR)
        except OSError as error:
            raise _stream_error(error) from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the socket at once."""
        poller = running_poller()
        if poller is not None:
            poller.release(self._fd)
        self._fd = -1
        self.socket.close()
        await trio.lowlevel.checkpoint()


async def open_tcp_stream(host: str, port: int) -> TCPStream:
    """Connect to ``host:port`` (happy eyeballs).

    Cancelling this closes what was half open. Raises ``OSError`` where no address answers.
    """
    return TCPStream((await trio.open_tcp_stream(host, port)).socket)


def _stream_error(error: OSError) -> Exception:
    if error.errno in _CLOSED_ERRNOS:
        return trio.ClosedResourceError("this socket was closed")
    return trio.BrokenResourceError(f"socket connection broken: {error.strerror}")
