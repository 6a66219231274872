"""What SIGTERM does to a running server: no new sessions, the last words, 1001, status 0."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.fake import Script, synthesise
from omi_rt.fake.faults import FaultScript, Silence
from omi_rt.fake.speech import utterance
from tests.harness import words_of
from tests.processes_e2e import KEY, NOWHERE, UPGRADE, exchange, fake_in_process, serving

if TYPE_CHECKING:
    from tests.harness import Device
    from tests.processes_e2e import ServerProgram

pytestmark = pytest.mark.realtime

WORDS = utterance("amber bako celu dorin elfa fimo garo", 1, 0.2)
# It ends before the pause that ends an utterance: without CloseStream it would bring no final.
CUT_SHORT = Script(WORDS, WORDS[-1].end + 0.05)
BYTES_PER_SECOND = 32_000
DEVICE = {"codec": "pcm16", "sample_rate": 16_000}
DRAIN_SECONDS = 6.0


async def talk(device: Device) -> None:
    """Say the whole of `CUT_SHORT`, a little faster than real time."""
    await device.stream_audio(synthesise(CUT_SHORT, 16_000), BYTES_PER_SECOND, speed=1.25)
    with trio.fail_after(5):
        await device.websocket.drained()


async def drain(server: ServerProgram) -> None:
    """Send SIGTERM, once everything that was sent before has been read."""
    assert (await server.get("/readyz"))[0] == 200
    server.program.signal()
    await server.program.says("draining")


async def test_sigterm_takes_no_new_session_and_lets_each_running_one_have_its_last_words() -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(
            DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_DRAIN_SECONDS=f"{DRAIN_SECONDS:g}"
        ) as server,
        server.device(**DEVICE) as one,
        server.device(**DEVICE) as two,
        server.device(**DEVICE) as three,
    ):
        early, other = await server.connect(), await server.connect()
        devices = (one, two, three)
        async with trio.open_nursery() as nursery:
            for device in devices:
                nursery.start_soon(talk, device)
        await drain(server)
        drained_at = trio.current_time()
        # Who was connected before is told, and so is who comes now.
        for stream in (early, await server.connect()):
            status, headers, body = await exchange(stream, UPGRADE)
            assert (status, body) == (503, "going away\n")
            assert int(headers["retry-after"]) > 0
        ready = await exchange(other, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ready[::2] == (await server.get("/readyz"))[::2] == (503, "going away\n")
        assert (await server.get("/healthz"))[0] == 200
        assert re.search(
            r"^omi_rt_sessions [123]\.0$", (await server.get("/metrics"))[2], re.MULTILINE
        )
        ended_at: list[float] = []

        async def end(device: Device) -> None:
            await device.ended(DRAIN_SECONDS)
            ended_at.append(trio.current_time() - drained_at)

        async with trio.open_nursery() as nursery:
            for device in devices:
                nursery.start_soon(end, device)
        assert await server.program.status() == 0
        assert trio.current_time() - drained_at < DRAIN_SECONDS
    for device in devices:
        assert words_of(device.segments) == CUT_SHORT.transcript()
        ended = device.event("session_ended")
        assert ended["received"] == ended["finalised"] == pytest.approx(CUT_SHORT.seconds, abs=1e-3)
        assert (ended["lost"], ended["pending"]) == (0.0, 0.0)
        assert device.closed is not None
        assert (device.closed.code, device.closed.reason) == (1001, "server_going_away")
    # Half of the time is for spreading them: three begin to end a second apart.
    assert ended_at[0] < 1.5
    assert ended_at[-1] - ended_at[0] > 0.5


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cuts_the_sessions_in_one_line_and_with_status_3(
    second: signal.Signals,
) -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_DRAIN_SECONDS="60") as server,
        server.device(**DEVICE) as device,
    ):
        # What the provider takes only in 16 s.
        device.send(bytes(60_000))
        for _ in range(10):
            device.send(bytes(64_000))
        with trio.fail_after(5):
            await device.websocket.drained()
        await drain(server)
        server.program.signal(second)
        assert await server.program.status(5) == 3
        await device.ended(5)
        assert device.closed is not None
        assert device.closed.code == 1001
    (line,) = (line for line in server.program.errors.splitlines() if "sessions_cut" in line)
    assert "sessions=1" in line
    assert "Traceback" not in server.program.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_without_sessions_a_signal_ends_it_at_once_with_status_0(
    number: signal.Signals,
) -> None:
    async with serving(DEEPGRAM_URL=NOWHERE) as server:
        assert (await server.get("/readyz"))[0] == 200
        server.program.signal(number)
        assert await server.program.status(3) == 0
    assert server.program.errors.count("\n") == 2, "that it is ready, and that it drains"


async def test_sighups_drain_and_cut_nobody() -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_DRAIN_SECONDS="5") as server,
        server.device(**DEVICE) as device,
    ):
        await talk(device)
        server.program.signal(signal.SIGHUP)
        server.program.signal(signal.SIGHUP)
        assert await server.program.status() == 0
        await device.ended(1)
        assert words_of(device.segments) == CUT_SHORT.transcript()
        assert device.closed is not None
        assert (device.closed.code, device.closed.reason) == (1001, "server_going_away")
    assert "sessions_cut" not in server.program.errors


async def test_a_sighup_that_was_ignored_from_the_start_stays_so() -> None:
    # As `nohup` does.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with serving(DEEPGRAM_URL=NOWHERE) as server:
            server.program.signal(signal.SIGHUP)
            assert (await server.get("/readyz"))[0] == 200
            with trio.move_on_after(0.5):
                await server.program.process.wait()
            assert (await server.get("/readyz"))[0] == 200
            server.program.signal()
            assert await server.program.status() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_signal_right_after_the_ready_line_drains_too() -> None:
    async def start_and_stop() -> None:
        async with serving(DEEPGRAM_URL=NOWHERE) as server:
            server.program.signal()
            assert await server.program.status() == 0

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(start_and_stop)


async def test_draining_ends_in_time_where_the_provider_does_not_answer() -> None:
    async with (
        fake_in_process(FaultScript(afterwards=(Silence(),))) as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_DRAIN_SECONDS="1.5") as server,
        server.device(**DEVICE) as device,
    ):
        await talk(device)
        await drain(server)
        assert await server.program.status(2.5) == 0
        await device.ended(1)
        assert device.closed is not None
        assert device.closed.code == 1001
        ended = device.event("session_ended")
        assert ended["lost"] == ended["received"] == pytest.approx(CUT_SHORT.seconds, abs=1e-3)
        assert device.event("audio_lost")["end"] == ended["received"]


async def test_draining_ends_in_time_where_a_device_does_not_answer_the_close() -> None:
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_DRAIN_SECONDS="1") as server,
        await server.connect() as mute,
    ):
        await mute.send_all(UPGRADE.encode())
        assert (await mute.receive_some()).startswith(b"HTTP/1.1 101 ")
        await drain(server)
        # A second more than it may take: as much as a supervisor forgives.
        assert await server.program.status(2) == 0
    assert "sessions_cut" not in server.program.errors, "it has been told everything"
