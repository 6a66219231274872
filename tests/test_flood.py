"""Clients that send more than anybody reads: none takes memory, and none takes the others' time."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.errors import PeerTooSlow
from omi_rt.fake import Script
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import open_websocket
from omi_rt.net.protocol import (
    FRAMES_PER_STEP,
    MAX_BYTES_AFTER_CLOSE,
    ServerOpening,
    WebSocketProtocol,
)
from omi_rt.net.websocket import CLOSE_SECONDS, MAX_MESSAGE_BYTES, MAX_QUEUED_BYTES
from tests.harness import (
    assert_whole,
    listening_server,
    play,
    read_all,
    running_server,
    unreachable,
)
from tests.processes_e2e import UPGRADE, fake_in_process, resident_bytes, serving

if TYPE_CHECKING:
    from trio.testing import MockClock

TALK = Script(utterance("amber bako celu dorin", 1, 0.2), 1.5)
MIB = 1_048_576


def frame(first: int, payload: bytes, mask: bytes = b"\0\0\0\0") -> bytes:
    """A masked frame, as clients send them (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


ONE_BYTE = frame(0x82, b"x")
BIG = frame(0x82, bytes(60_000))
PING = frame(0x89, b"")


def accepted() -> WebSocketProtocol:
    """A server's side, just open."""
    handshake = ServerOpening(MAX_MESSAGE_BYTES)
    handshake.receive_head(UPGRADE.encode())
    protocol = handshake.accept({}, b"")
    protocol.take_writes()
    return protocol


def take_all(protocol: WebSocketProtocol) -> list[bytes | str]:
    """Every message, however many steps it takes; no step is too long."""
    messages = protocol.take_messages()
    assert protocol.taken_frames <= FRAMES_PER_STEP
    while protocol.has_more:
        more = protocol.take_messages()
        assert protocol.taken_frames <= FRAMES_PER_STEP
        messages += more
    return messages


payloads = st.one_of(
    st.binary(max_size=40), st.sampled_from((125, 126, 65_535, 65_536)).map(lambda n: bytes(n))
)
pieces = st.one_of(
    st.tuples(st.just("binary"), payloads),
    st.tuples(st.just("text"), st.text(max_size=20).map(str.encode)),
    st.tuples(st.just("ping"), st.binary(max_size=20)),
    st.tuples(st.just("fragments"), payloads),
)


@given(
    sent=st.lists(pieces, max_size=60),
    mask=st.binary(min_size=4, max_size=4),
    cuts=st.lists(st.integers(0, 500_000), max_size=20),
)
def test_every_message_comes_once_and_in_order_however_the_stream_is_cut(
    sent: list[tuple[str, bytes]], mask: bytes, cuts: list[int]
) -> None:
    data = b""
    expected: list[bytes | str] = []
    for kind, payload in sent:
        if kind == "binary":
            data += frame(0x82, payload, mask)
            expected.append(payload)
        elif kind == "text":
            data += frame(0x81, payload, mask)
            expected.append(payload.decode())
        elif kind == "ping":
            data += frame(0x89, payload, mask)
        else:
            half = len(payload) // 2
            data += frame(0x02, payload[:half], mask) + frame(0x89, b"", mask)
            data += frame(0x80, payload[half:], mask)
            expected.append(payload)
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    protocol, received = accepted(), []
    for a, b in zip([0, *places], [*places, len(data)], strict=True):
        if a < b:
            protocol.receive(data[a:b])
            received += take_all(protocol)
    assert received == expected
    assert protocol.is_open
    pongs = sum(kind in {"ping", "fragments"} for kind, _ in sent)
    assert sum(write[:1] == b"\x8a" for write in protocol.take_writes()) == pongs


@pytest.mark.parametrize("kind", [ONE_BYTE, PING], ids=["one byte", "ping"])
def test_a_thousand_frames_take_forty_steps(kind: bytes) -> None:
    protocol = accepted()
    protocol.receive(kind * 1000)
    for _ in range(1000 // FRAMES_PER_STEP - 1):
        protocol.take_messages()
        assert protocol.taken_frames == FRAMES_PER_STEP
        assert protocol.has_more
    protocol.take_messages()
    assert not protocol.has_more


@given(
    before=st.lists(st.sampled_from((ONE_BYTE, BIG, PING)), max_size=3),
    after=st.lists(st.sampled_from((ONE_BYTE, BIG, PING, frame(0x01, b"a part"))), max_size=20),
    split=st.integers(0, 70_000),
    cuts=st.lists(st.integers(0, 500_000), max_size=10),
)
def test_after_our_close_only_the_peers_own_is_found(
    before: list[bytes], after: list[bytes], split: int, cuts: list[int]
) -> None:
    protocol = accepted()
    data = b"".join([*before, *after, frame(0x88, struct.pack("!H", 1000))])
    split %= len(b"".join(before)) + 1
    if split:
        protocol.receive(data[:split])
        take_all(protocol)
    protocol.close(1008, "no")
    protocol.take_writes()
    rest = data[split:]
    places = sorted({cut % (len(rest) + 1) for cut in cuts})
    for a, b in zip([0, *places], [*places, len(rest)], strict=True):
        if a < b:
            assert not protocol._protocol.eof_sent
            protocol.receive(rest[a:b])
            assert take_all(protocol) == []
            assert len(protocol._unread) - protocol._next < 14
    assert b"" in protocol.take_writes(), "the peer's close was seen, so this side ends"


async def test_who_sends_on_after_our_close_is_dropped_after_some_mebibytes(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(UPGRADE.replace("uid=u1", "codec=mp3").encode())
        sent = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while sent < 3 * MAX_BYTES_AFTER_CLOSE:
                await stream.send_all(BIG)
                sent += len(BIG)
        assert MAX_BYTES_AFTER_CLOSE < sent < MAX_BYTES_AFTER_CLOSE + MIB
        assert trio.current_time() < CLOSE_SECONDS


async def test_who_sends_a_little_after_our_close_is_dropped_in_time(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(UPGRADE.replace("uid=u1", "codec=mp3").encode())
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(100):
                await stream.send_all(ONE_BYTE)
                await trio.sleep(0.1)
        assert CLOSE_SECONDS <= trio.current_time() < CLOSE_SECONDS + 1


async def test_who_had_audio_under_way_still_reads_why_it_was_closed(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        websocket = await open_websocket(stream, "ws://server/listen?uid=u&codec=mp3")
        for _ in range(30):
            await stream.send_all(BIG)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, 5.0)
            await websocket.aclose()
            nursery.cancel_scope.cancel()
        closed = websocket._protocol.closed()
        assert (closed.code, closed.reason[:6]) == (1008, "codec:")


async def test_pings_whose_answers_nobody_reads_wait_in_a_bounded_queue(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(UPGRADE.encode())
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        most, sent = 0, 0
        with trio.move_on_after(5), contextlib.suppress(trio.BrokenResourceError):
            while sent < 4 * MAX_QUEUED_BYTES:
                await stream.send_all(frame(0x89, bytes(125)) * 100)
                sent += 100 * 125
                most = max(most, session._line.websocket._queued_bytes)
        assert 0.9 * MAX_QUEUED_BYTES < most < MAX_QUEUED_BYTES + 130 * FRAMES_PER_STEP
        assert sent < 2 * MAX_QUEUED_BYTES
        await stream.aclose()


@pytest.mark.realtime
async def test_a_flood_after_a_refusal_leaves_no_memory_behind() -> None:
    """Each kind has a server of its own; all at once, because nearly all of it is waiting."""
    async with trio.open_nursery() as nursery:
        for name, kind in {"one byte": ONE_BYTE, "60 kB": BIG, "ping": PING}.items():
            nursery.start_soon(flood_after_a_refusal, name, kind)


async def flood_after_a_refusal(name: str, kind: bytes) -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, OMI_RT_LOG_LEVEL="error") as server,
        trio.open_nursery() as nursery,
    ):
        before = most = resident_bytes(server.program.pid)
        data = kind * max(1, 60_000 // len(kind))

        async def flood() -> None:
            async with await server.connect() as stream:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(UPGRADE.replace("uid=u1", "codec=mp3").encode())
                    while True:
                        await stream.send_all(data)

        for _ in range(4):
            nursery.start_soon(flood)
        with trio.move_on_after(CLOSE_SECONDS + 2):
            while True:
                most = max(most, resident_bytes(server.program.pid))
                await trio.sleep(0.05)
        assert (await server.get("/healthz"))[0] == 200
        nursery.cancel_scope.cancel()
    assert most - before < 20 * MIB, name


async def test_a_session_beside_floods_keeps_every_word(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        async with trio.open_nursery() as nursery:
            for kind in (ONE_BYTE, PING, frame(0x81, b"{}"), frame(0x82, b"")):

                async def flood(data: bytes = kind * 300) -> None:
                    stream = world.open_stream()
                    await stream.send_all(UPGRADE.encode())
                    nursery.start_soon(read_all, stream)
                    with contextlib.suppress(trio.BrokenResourceError):
                        while True:
                            await stream.send_all(data)
                            await trio.sleep(0.02)

                nursery.start_soon(flood)
            await play(device, TALK, 8000)
            nursery.cancel_scope.cancel()
        for stream in world.streams[1:]:
            await stream.aclose()
    assert_whole(device, TALK)


async def test_what_a_device_does_not_read_waits_in_a_bounded_queue(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream(2000)
        await stream.send_all(UPGRADE.encode())
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        queued, refusal = 0, ""
        while queued < 4 * MAX_QUEUED_BYTES and not refusal:
            try:
                session._line.websocket.send_nowait("x" * 1000)
                queued += 1000
            except PeerTooSlow as error:
                refusal = str(error)
        assert refusal == "the peer does not read what it is sent"
        assert MAX_QUEUED_BYTES - 10_000 < queued < MAX_QUEUED_BYTES + 10_000
        # The session ends as soon as it has something to say itself.
        session._line.send([{"type": "ping"}])
        await world.sessions_ended()
        assert session._ending.close_code == 1011


async def test_frames_that_come_with_the_upgrade_are_taken_without_another_byte(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        stream = world.open_stream()
        await stream.send_all(UPGRADE.encode() + frame(0x82, bytes(1600)))
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        assert session.coverage.ledger.received == 800
        await stream.aclose()


async def test_behind_a_frame_that_was_cut_off_comes_no_close_frame(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable, send_timeout=5.0) as world:
        stream = world.open_stream(2000)
        await stream.send_all(UPGRADE.encode())
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        session._line.websocket.send_nowait("x" * 50_000)
        await trio.sleep(5.5)
        got = await read_all(stream)
        assert b"took no data" not in got
        await world.sessions_ended()
        assert session._ending.reason == "took no data for 5 s"
