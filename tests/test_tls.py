"""TLS streams over real sockets, against the standard library's other side."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trustme

from omi_rt.net.poller import Kind, open_poller
from omi_rt.net.stream import open_tcp_stream
from omi_rt.net.tls import TLSStream

AUTHORITY = trustme.CA()
Serve = Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[None]]


@asynccontextmanager
async def connected(
    serve: Serve,
    *,
    authority: trustme.CA = AUTHORITY,
    hostname: str = "localhost",
    versions: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> AsyncIterator[TLSStream]:
    """A stream to a server that runs ``serve`` for it; the handshake is still to be made."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    theirs.minimum_version = theirs.maximum_version = versions

    async def accept(stream: trio.SocketStream) -> None:
        try:
            await serve(trio.SSLStream(stream, theirs, server_side=True, https_compatible=True))
        except trio.BrokenResourceError:
            await stream.aclose()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, accept, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            tls = TLSStream(await open_tcp_stream("127.0.0.1", port), ours, hostname)
            yield tls
            await tls.aclose()
            nursery.cancel_scope.cancel()


async def echo(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Send back all that comes, in the order in which it came."""
    async for data in stream:
        await stream.send_all(data)


@pytest.mark.parametrize("versions", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_is_sent_comes_back_byte_for_byte(versions: ssl.TLSVersion) -> None:
    data = bytes(range(256)) * 8_000
    async with connected(echo, versions=versions) as tls:
        await tls.do_handshake()
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.send_all, data)
            while len(received) < len(data):
                received += await tls.receive_some()
        assert received == data


async def test_the_poller_passes_on_all_records_of_one_read_though_nothing_follows() -> None:
    """Records that came in one piece: three of 16 KiB at most."""
    data = bytes(range(250)) * 160

    async def send_and_wait(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(data)
        await trio.sleep_forever()

    async with connected(send_and_wait) as tls, open_poller(lambda: 0.0):
        await tls.do_handshake()
        received, sizes = bytearray(), []

        def take(part: bytes, _: float) -> bool:
            received.extend(part)
            sizes.append(len(part))
            return len(received) == len(data)

        await tls.serve(take, Kind.PROVIDER)
        assert received == data
        assert len(sizes) == 3


async def test_small_records_of_one_read_are_passed_on_some_at_a_time_and_none_is_lost() -> None:
    records = [bytes([number]) * 3 for number in range(250)]

    async def send_and_wait(stream: trio.SSLStream[trio.SocketStream]) -> None:
        for record in records:
            await stream.send_all(record)
        await trio.sleep_forever()

    async with connected(send_and_wait) as tls, open_poller(lambda: 0.0):
        await tls.do_handshake()
        await trio.sleep(0.3)  # until all of them lie in the kernel
        received: list[bytes] = []
        in_one_go: list[int] = []

        def take(part: bytes, _: float) -> bool:
            received.append(part)
            return len(received) == len(records)

        while len(received) < len(records):
            before = len(received)
            await tls.serve(take, Kind.DEVICE)
            in_one_go.append(len(received) - before)
        assert received == records
        assert in_one_go == [25] * 10


async def test_what_the_kernel_does_not_take_at_once_follows_in_order() -> None:
    may_read, has_read = trio.Event(), trio.Event()
    received = bytearray()

    async def read_late(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await may_read.wait()
        async for data in stream:
            received.extend(data)
            if received.endswith(b"the end"):
                has_read.set()

    async with connected(read_late) as tls:
        await tls.do_handshake()
        sent = bytearray()
        rest: bytes | None = None
        while rest is None:
            message = len(sent).to_bytes(4, "big") * 16_000
            rest = tls.send_nowait(message)
            sent += message
        assert rest == b"", "all is encrypted: nothing of it must be given again"
        may_read.set()
        await tls.send_all(rest)
        await tls.send_all(b"the end")
        sent += b"the end"
        await has_read.wait()
        assert received == sent


async def test_an_end_without_a_goodbye_is_an_end() -> None:
    async def vanish(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.send_all(b"hello")
        await stream.transport_stream.aclose()

    async with connected(vanish) as tls:
        await tls.do_handshake()
        assert await tls.receive_some() == b"hello"
        assert await tls.receive_some() == b""


async def test_our_end_is_heard_and_nothing_can_be_sent_after_it() -> None:
    ended = trio.Event()

    async def listen(stream: trio.SSLStream[trio.SocketStream]) -> None:
        assert await stream.receive_some() == b""
        ended.set()

    async with connected(listen) as tls:
        await tls.do_handshake()
        await tls.aclose()
        await ended.wait()
        with pytest.raises(trio.ClosedResourceError):
            await tls.send_all(b"too late")


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with connected(echo) as tls:
        await tls.do_handshake()
        with trio.move_on_after(0.05):
            await tls.receive_some()
        await tls.send_all(b"hello")
        assert await tls.receive_some() == b"hello"


@pytest.mark.parametrize(
    ("authority", "hostname"), [(trustme.CA(), "localhost"), (AUTHORITY, "elsewhere")]
)
async def test_a_certificate_of_somebody_else_is_not_accepted(
    authority: trustme.CA, hostname: str
) -> None:
    async with connected(echo, authority=authority, hostname=hostname) as tls:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await tls.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_garbage_instead_of_tls_is_an_error() -> None:
    async def babble(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.transport_stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

    async with connected(babble) as tls:
        with pytest.raises(trio.BrokenResourceError):
            await tls.do_handshake()


async def test_garbage_after_the_handshake_is_an_error() -> None:
    async def babble(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.do_handshake()
        await stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))

    async with connected(babble) as tls:
        await tls.do_handshake()
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()


@pytest.mark.parametrize("versions", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_after_our_goodbye_the_other_side_hears_the_end_and_we_hear_its_own(
    versions: ssl.TLSVersion,
) -> None:
    heard = bytearray()

    async def listen(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async for data in stream:
            heard.extend(data)
        await stream.aclose()

    async with connected(listen, versions=versions) as tls:
        await tls.do_handshake()
        await tls.send_all(b"the last words")
        await tls.send_eof()
        assert await tls.receive_some() == b""
        assert heard == b"the last words"
        with pytest.raises(trio.BrokenResourceError):
            await tls.send_all(b"more")


async def test_what_comes_after_our_goodbye_is_still_read() -> None:
    async def go_on(stream: trio.SSLStream[trio.SocketStream]) -> None:
        assert await stream.receive_some() == b"x"
        await trio.sleep(0.05)
        await stream.send_all(b"what was under way")
        await stream.aclose()

    async with connected(go_on) as tls:
        await tls.do_handshake()
        await tls.send_all(b"x")
        await tls.send_eof()
        assert await tls.receive_some() == b"what was under way"
        assert await tls.receive_some() == b""
