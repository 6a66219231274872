"""Devices that send more audio than anybody speaks: it is taken in steps, and let go of at the end."""

from __future__ import annotations

import gc
import struct
from typing import TYPE_CHECKING

import trio
from attrs import define
from trio.testing import MockClock, memory_stream_pair

from omi_rt.core.endings import DEVICE_VANISHED
from omi_rt.log import configure_logging
from omi_rt.net.handshake import ServerHandshake
from omi_rt.net.protocol import FRAMES_PER_STEP
from omi_rt.server.line import Line
from tests.harness import listening_server
from tests.processes_e2e import UPGRADE
from tests.test_log_lines import lines, named
from tests.test_resume import resuming, until_ready

if TYPE_CHECKING:
    import pytest

HEARTBEAT_SECONDS = 20.0
DECODE_SECONDS = 0.05
SAMPLES = 64
STEP_BYTES = 65_536
PACKETS = 200
TWO_BYTES_OF_OPUS = bytes((26, 0))
"""A packet that claims 120 ms, which are `PACKET_BYTES` of 48 kHz stereo."""
PACKET_BYTES = 5760 * 4


def frame(payload: bytes) -> bytes:
    """A masked binary frame of at most 125 bytes (RFC 6455, 5.2)."""
    return struct.pack("!BB", 0x82, 0x80 | len(payload)) + bytes(4) + payload


@define
class SlowDecoder:
    """Takes its time, of which the virtual clock knows."""

    clock: MockClock
    failures_in_a_row: int = 0
    concealed_packets: int = 0

    def decode(self, packet: bytes) -> bytes:
        """Return the packet as it is, `DECODE_SECONDS` later."""
        self.clock.jump(DECODE_SECONDS)
        return packet

    def close(self) -> None:
        """Do nothing."""


async def test_what_a_lost_connection_left_in_the_kernel_is_read_for_five_seconds(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "json")
    monkeypatch.setattr(
        "omi_rt.server.session.open_decoder", lambda *_: SlowDecoder(autojump_clock)
    )
    async with listening_server(heartbeat_seconds=HEARTBEAT_SECONDS, resume_seconds=0.0) as (
        world,
        _fake,
    ):
        stream = world.open_stream(capacity_bytes=1_000_000)
        await stream.send_all(UPGRADE.encode())
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        world.server.all_sessions.append(session)
        began = trio.current_time()
        # It would take two hundred seconds to decode.
        await stream.send_all(frame(bytes(SAMPLES)) * 4000)
        await trio.sleep(1.0)
        await stream.aclose()
        await world.sessions_ended()
        took = trio.current_time() - began
    (ended,) = named(lines(capsys), "session_ended")
    assert ended["reason"] == "device_vanished"
    assert ended["close_code"] == 1001
    assert ended["received"] == ended["finalised"] > 0.0, "what was read of it is transcribed"
    # The first heartbeat meets the loss; by silence alone it would be found out after two. Who
    # sends that much is decoded for half of the time.
    decoded_seconds = session.coverage.backlog.end / SAMPLES * DECODE_SECONDS
    assert decoded_seconds < HEARTBEAT_SECONDS + 1.0
    assert HEARTBEAT_SECONDS + 5.0 <= took < HEARTBEAT_SECONDS + 15.0


async def test_packets_that_decode_to_much_are_taken_in_steps_of_64_kib_between_which_others_run(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    turns: list[int] = []
    async with (
        listening_server() as (world, _fake),
        world.device(codec="opus", sample_rate=48_000, channels=2) as device,
    ):
        take = Line._take

        def note_step(line: Line, messages: list[bytes | str], now: float) -> list[bytes | str]:
            left = take(line, messages, now)
            steps.append(len(messages) - len(left))
            return left

        async def note_turn() -> None:
            turns.append(len(steps))
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(Line, "_take", note_step)
        monkeypatch.setattr("omi_rt.server.line.wait_turn", note_turn)
        for _ in range(PACKETS):
            device.send(TWO_BYTES_OF_OPUS)
        ended = await device.finish()
    assert ended["received"] == ended["finalised"] == PACKETS * 0.12
    assert sum(steps) == PACKETS + 1, "the CloseStream is one more message"
    assert max(steps) == -(-STEP_BYTES // PACKET_BYTES)
    batches = -(-(PACKETS + 1) // FRAMES_PER_STEP)
    assert len(turns) == len(steps) - batches, "others ran before each step but a batch's first"


async def test_the_poller_is_left_what_is_more_than_a_step_and_nothing_of_what_is_less(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.device(codec="opus", sample_rate=48_000, channels=2) as device,
    ):
        line, now = device.session._line, trio.current_time()
        packets: list[bytes | str] = [TWO_BYTES_OF_OPUS] * 8
        assert line._take_at_once(packets, now) == packets[3:]
        assert line._take_at_once(packets[:2], now) is None
        ended = await device.finish()
    assert ended["received"] == 5 * 0.12


async def test_messages_that_hold_little_are_taken_all_at_once_and_wait_in_no_line(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []

    async def note_turn() -> None:
        turns.append(1)
        await trio.lowlevel.checkpoint()

    async with (
        listening_server() as (world, _fake),
        world.device(codec="pcm16", sample_rate=16_000) as device,
    ):
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("omi_rt.server.line.wait_turn", note_turn)
        for _ in range(5):
            for _ in range(20):
                device.send(bytes(640))
            await trio.sleep(0.4)
        ended = await device.finish()
    assert ended["finalised"] == ended["received"] == 2.0
    assert not turns


async def test_what_waits_in_line_when_its_connection_is_lost_is_left_to_the_next_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    async with (
        listening_server() as (world, _fake),
        world.device(codec="opus", sample_rate=48_000, channels=2) as device,
    ):
        secret = await until_ready(device)
        session = device.session

        async def lose() -> None:
            # Lost in the very turn in which it is let go: it is too late to be cancelled.
            await trio.lowlevel.checkpoint()
            if not taken:
                session.lose(session._line, DEVICE_VANISHED)
                taken.append(session.coverage.backlog.end)

        monkeypatch.setattr("omi_rt.server.line.wait_turn", lose)
        for _ in range(20):
            device.send(TWO_BYTES_OF_OPUS)
        await trio.sleep(1)
        async with resuming(world, secret, codec="opus", sample_rate=48_000, channels=2) as second:
            ended = await second.finish()
    assert taken == [3 * 5760]
    assert second.messages[0]["received"] == ended["received"] == 3 * 0.12


async def test_a_connection_that_is_lost_takes_no_more_messages_to_send(
    autojump_clock: MockClock,
) -> None:
    here, there = memory_stream_pair()
    handshake = ServerHandshake(there)
    await here.send_all(UPGRADE.encode())
    await handshake.receive_request()
    websocket = handshake.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(websocket.run_writer, 5.0)
        await trio.testing.wait_all_tasks_blocked()
        await here.aclose()
        websocket.send_nowait("the message that meets the loss")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100_000):
            websocket.send_nowait("nobody will ever send this")
        assert websocket._queued_bytes < 100
        nursery.cancel_scope.cancel()


async def test_audio_that_came_with_the_request_is_handed_over_and_not_kept(
    autojump_clock: MockClock,
) -> None:
    here, there = memory_stream_pair()
    handshake = ServerHandshake(there)
    await here.send_all(UPGRADE.encode() + frame(b"audio"))
    await handshake.receive_request()
    websocket = handshake.accept()
    assert await websocket.receive() == [b"audio"]
    assert not any(
        isinstance(held, bytes | bytearray) and held for held in gc.get_referents(handshake)
    )
