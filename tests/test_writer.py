"""A connection has a task that waits to send only while its kernel refuses data."""

from __future__ import annotations

import socket
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.core.errors import PeerTooSlow
from omi_rt.fake import Script, synthesise
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import ServerHandshake, open_websocket
from omi_rt.net.stream import TCPStream
from tests.harness import assert_whole, listening_server

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omi_rt.net.websocket import WebSocket

TALK = Script(utterance("amber bako celu", 1, 0.5), seconds=3.0)
BIG = 100_000


def tasks_of(nursery: trio.Nursery | None) -> set[str]:
    assert nursery is not None
    return {task.name.rpartition(".")[2] for task in nursery.child_tasks}


async def connected() -> tuple[WebSocket, WebSocket]:
    """The two ends of a WebSocket over sockets; the server's kernel buffers little."""
    here, there = trio.socket.socketpair()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    handshake = ServerHandshake(stream_of(there))
    ends: list[WebSocket] = []

    async def accept() -> None:
        await handshake.receive_request()
        ends.append(handshake.accept())
        await ends[0].flush(5.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await open_websocket(stream_of(here), "ws://server/listen")
    return ends[0], client


def stream_of(end: trio.socket.SocketType) -> TCPStream:
    stream = object.__new__(TCPStream)
    # A socket pair has no TCP_NODELAY to set.
    stream.socket, stream._fd = end, end.fileno()
    return stream


async def test_a_session_has_no_writer_once_all_is_sent_and_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.device(codec="pcm16", sample_rate=16_000, capacity_bytes=700) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000), bytes_per_second=32_000)
        await trio.testing.wait_all_tasks_blocked()
        tasks = tasks_of(device.session._nursery)
        await device.finish()
    assert "_serve_device" in tasks
    assert "_deliver" not in tasks
    assert_whole(device, TALK)


@pytest.mark.realtime
async def test_a_writer_is_started_when_the_kernel_refuses_and_keeps_the_order() -> None:
    server, client = await connected()
    started, finished = 0, []

    async def write() -> None:
        finished.append(await server.write(5.0))

    async with trio.open_nursery() as nursery:

        def start() -> None:
            nonlocal started
            started += 1
            nursery.start_soon(write)

        server.send_with(start)
        nursery.start_soon(client.run_writer, 5.0)
        for round_of_messages in range(3):
            server.send_nowait("small")
            assert started == round_of_messages, "the kernel takes what is small at once"
            sent = [f"{number}:{'x' * BIG}" for number in range(4)]
            for message in sent:
                server.send_nowait(message[:60_000])
            assert started == round_of_messages + 1, "there is one writer at a time"
            got: list[bytes | str] = []
            while len(got) < 5:
                got += await client.receive()
            assert got == ["small", *(message[:60_000] for message in sent)]
            await server.drained()
            await trio.testing.wait_all_tasks_blocked()
            assert finished == [False] * (round_of_messages + 1)
            assert server.has_sent_all
        nursery.start_soon(partial(client.aclose, 1000))
        await server.aclose(1000)
        assert finished == [False] * 3 + [True]
        assert not server.can_send
        nursery.cancel_scope.cancel()


@pytest.mark.realtime
async def test_a_peer_that_reads_nothing_is_too_slow_and_is_sent_nothing_more() -> None:
    server, client = await connected()
    failures: list[str] = []

    async def write() -> None:
        try:
            await server.write(0.1)
        except PeerTooSlow as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        server.send_with(partial(nursery.start_soon, write))
        for _ in range(10):
            server.send_nowait("x" * 60_000)
        assert not server.has_sent_all
    assert failures == ["took no data for 0.1 s"]
    assert not server.can_send
    server.send_nowait("nobody will send this")
    with trio.fail_after(1):
        await server.drained()
    await server.abort(1001)
    await client.abort(1001)


@pytest.mark.realtime
async def test_a_loss_that_is_met_while_sending_at_once_is_told_by_a_writer() -> None:
    server, client = await connected()
    await client.abort(1001)
    finished: list[bool] = []

    async def write() -> None:
        finished.append(await server.write(5.0))

    async with trio.open_nursery() as nursery:
        server.send_with(partial(nursery.start_soon, write))
        for _ in range(3):
            server.send_nowait("who hears this?")
            await trio.testing.wait_all_tasks_blocked()
    assert finished == [True]
    assert not server.can_send
    await server.abort(1001)


@pytest.mark.realtime
async def test_who_waits_for_what_was_queued_before_anybody_sent_is_woken() -> None:
    server, client = await connected()
    client.send_nowait("early")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.drained)
            await trio.testing.wait_all_tasks_blocked()
            client.send_with(lambda: None)
    assert await server.receive() == ["early"]
    await client.abort(1001)
    await server.abort(1001)


async def test_a_text_goes_out_behind_what_is_to_be_sent_already(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        protocol = device.session._line.websocket._protocol
        protocol.ping()
        assert protocol.frame("text") == b"\x89\x00\x81\x04text"
        assert protocol.frame("more") == b"\x81\x04more"
        protocol.close(1000, "")
        assert protocol.frame("after the close") == b""


@pytest.mark.realtime
@pytest.mark.parametrize("way", ["abort", "aclose"])
async def test_what_could_not_be_sent_is_let_go_with_the_connection(way: str) -> None:
    server, client = await connected()
    server.send_with(lambda: None)  # the writer has not come to it yet
    tracemalloc.start()
    try:
        for _ in range(8):
            server.send_nowait("x" * BIG)
        assert tracemalloc.get_traced_memory()[0] > 6 * BIG
        with trio.move_on_after(0.1):
            await (server.abort(1001) if way == "abort" else server.aclose(1001))
        # Nobody has collected garbage, and whoever held the connection may hold it still.
        assert tracemalloc.get_traced_memory()[0] < 3 * BIG
    finally:
        tracemalloc.stop()

    await client.abort(1001)
