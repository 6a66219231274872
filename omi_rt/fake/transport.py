"""A stream that breaks on demand: in the middle of what comes in, or of what goes out."""

from __future__ import annotations

import trio

STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)


class FaultyStream(trio.abc.HalfCloseableStream):
    """Passes everything through until it is told to break, after which the connection is gone."""

    __slots__ = ("_cut_receive", "_cut_send", "_inner")

    def __init__(self, inner: trio.abc.HalfCloseableStream) -> None:
        self._inner = inner
        self._cut_receive = False
        self._cut_send = False

    def cut_next_receive(self) -> None:
        """Break in the middle of the next data that comes in; nothing of it is passed on."""
        self._cut_receive = True

    def cut_next_send(self) -> None:
        """Break when half of the next data has gone out."""
        self._cut_send = True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. Raises as the stream underneath does."""
        if self._cut_send:
            await self._inner.send_all(bytes(data)[: len(data) // 2])
            await trio.aclose_forcefully(self._inner)
            raise trio.BrokenResourceError("dropped in the middle of a send")
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream underneath has room."""
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data. Cancelling this loses nothing."""
        data = await self._inner.receive_some(1 if self._cut_receive else max_bytes)
        if self._cut_receive and data:
            await trio.aclose_forcefully(self._inner)
            raise trio.BrokenResourceError("dropped in the middle of a frame")
        return bytes(data)

    async def send_eof(self) -> None:
        """End the sending side."""
        await self._inner.send_eof()

    async def aclose(self) -> None:
        """Close the stream underneath, at once."""
        await self._inner.aclose()


def server_frame(opcode: int, payload: bytes) -> bytes:
    """Make one whole unmasked frame (RFC 6455, 5.2), whatever is in it. 1 is text, 2 binary."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, length))
    elif length < 1 << 16:
        head = bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big")
    return head + payload
