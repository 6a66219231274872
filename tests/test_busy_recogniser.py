"""A recogniser that is busy says so and is waited for; one that stands still is replaced as ever."""

from __future__ import annotations

import json
import os
import re
import signal
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.codecs.wav import convert, read_wav
from omi_rt.core.deepgram import PROGRESS_TYPE
from omi_rt.fake import FaultScript, random_script, synthesise
from omi_rt.fake.faults import Drop, Say, Silence, Stall
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text, sample_wav
from omi_rt.log import configure_logging
from tests.harness import listening_server, words_of
from tests.processes import children_of, descendants_of
from tests.processes_e2e import serving
from tests.test_admission import assert_sends_away
from tests.test_log_lines import lines, named
from tests.test_metrics import scrape

if TYPE_CHECKING:
    from trio.testing import MockClock

RATE = 8000
NO_ROOM = "the embedded recogniser cannot carry another session now"
_SLOW_SECONDS = 10.0
TALK = random_script(Random(3), 90.0)


def progress(worked: float, behind: float) -> str:
    return json.dumps({"type": PROGRESS_TYPE, "seconds_worked": worked, "seconds_behind": behind})


def busy(start: int, end: int, *, stands_still: bool = False) -> FaultScript:
    """Results are held from second ``start`` to ``end``; meanwhile it says how it gets on."""
    told = [
        Say(
            text=progress(start if stands_still else start + 0.1 * n, 0.9 * n),
            after_seconds=start + float(n),
        )
        for n in range(1, end - start)
    ]
    caught_up = Say(text=progress(float(end), 0.0), after_seconds=float(end))
    return FaultScript.of(
        [Silence(after_seconds=float(start), seconds=float(end - start)), *told, caught_up]
    )


async def test_a_busy_recogniser_is_waited_for_however_long_it_takes(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """For longer than the patience, the send timeout, and all that the backlog holds."""
    configure_logging("info", "json")
    async with (
        listening_server(faults=busy(10, 110)) as (world, fake),
        world.device() as device,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(device.stream_audio, synthesise(TALK, RATE), RATE * 2)
        await trio.sleep(40.5)
        series = await scrape(world)
        assert series["omi_rt_sessions_behind"] == 1.0
        assert series["omi_rt_behind_seconds"] == pytest.approx(27.0, abs=1.0)
        await trio.sleep(80)
        series = await scrape(world)
        assert (series["omi_rt_sessions_behind"], series["omi_rt_behind_seconds"]) == (0.0, 0.0)
        assert series['omi_rt_provider_messages_total{kind="ignored"}'] == 0.0
        await trio.sleep(60)
        assert device.session.coverage.backlog.end == RATE * 90
        ended = await device.finish()
        assert len(fake.connections) == 1, "it was not replaced"
    assert words_of(device.segments) == TALK.transcript()
    assert {segment["speaker"] for segment in device.segments} == {
        f"SPEAKER_{n:02}" for n in range(len({word.voice for word in TALK.words}))
    }
    assert (ended["sent"]["live"], ended["sent"]["replay"], ended["lost"]) == (90.0, 0.0, 0.0)
    told = [e for e in device.events("service_status") if e["status"].startswith("stt_")]
    assert [event["status"] for event in told] == ["stt_behind", "stt_caught_up"]
    assert 5.0 <= told[0]["seconds_behind"] < 6.0
    log = lines(capsys)
    (began,) = named(log, "provider_behind")
    (over,) = named(log, "provider_behind_ended")
    assert (began["level"], began["session"]) == ("warning", device.session.id)
    assert (over["cause"], over["most_seconds_behind"]) == ("caught_up", pytest.approx(89.1))
    assert over["seconds"] == pytest.approx(94.0, abs=1.0)


async def test_one_that_says_that_it_is_busy_and_does_not_get_on_is_replaced(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    faults = busy(20, 110, stands_still=True)
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, RATE), RATE * 2)
        ended = await device.finish()
        assert len(fake.connections) == 2
    assert words_of(device.segments) == TALK.transcript()
    assert ended["lost"] == 0.0
    assert "stt_degraded" in device.statuses()
    assert named(lines(capsys), "provider_behind") == []


async def test_one_that_falls_silent_while_it_was_behind_is_replaced_and_no_longer_behind(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    told = [Say(text=progress(20 + n, 0.9 * n), after_seconds=20.0 + n) for n in range(1, 12)]
    faults = FaultScript.of([Silence(after_seconds=20.0), *told])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, RATE), RATE * 2)
        series = await scrape(world)
        assert (series["omi_rt_sessions_behind"], series["omi_rt_behind_seconds"]) == (0.0, 0.0)
        await device.finish()
        assert len(fake.connections) == 2
    assert words_of(device.segments) == TALK.transcript()
    (over,) = named(lines(capsys), "provider_behind_ended")
    assert over["cause"] == "connection_ended"


async def test_a_busy_recogniser_that_takes_no_audio_for_long_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    """It does not read, for longer than a send may take, and says that it gets on."""
    told = [Say(text=progress(float(n), 30.0), after_seconds=10.0 + n) for n in range(1, 40)]
    faults = FaultScript.of([Stall(after_seconds=10.0, seconds=40.0), *told])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, RATE), RATE * 2)
        ended = await device.finish()
        assert len(fake.connections) == 1
    assert words_of(device.segments) == TALK.transcript()
    assert (ended["sent"]["replay"], ended["lost"]) == (0.0, 0.0)


async def test_a_busy_recogniser_is_not_asked_for_what_it_has_not_come_to(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(faults=busy(10, 60)) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(random_script(Random(4), 40.0), RATE), RATE * 2)
        await device.finish()
        assert fake.connections[0].texts["Finalize"] == 0


async def test_a_session_that_ends_while_behind_leaves_nothing_in_the_gauges(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "json")
    async with listening_server(faults=busy(5, 200)) as (world, _fake):
        async with world.device() as device:
            await device.stream_audio(synthesise(random_script(Random(4), 20.0), RATE), RATE * 2)
            device.session.drain(5.0)
            await device.ended()
        await world.sessions_ended()
        series = await scrape(world)
    assert (series["omi_rt_sessions_behind"], series["omi_rt_behind_seconds"]) == (0.0, 0.0)
    assert len(named(lines(capsys), "provider_behind_ended")) == 1


async def test_a_connection_that_is_lost_while_behind_leaves_nothing_in_the_gauges(
    autojump_clock: MockClock,
) -> None:
    told = [Say(text=progress(5.0 + n, 6.0), after_seconds=5.0 + n) for n in range(1, 4)]
    faults = FaultScript.of([*told, Drop(after_seconds=9.0)])
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        await device.stream_audio(synthesise(random_script(Random(3), 20.0), RATE), RATE * 2)
        series = await scrape(world)
        assert (series["omi_rt_sessions_behind"], series["omi_rt_behind_seconds"]) == (0.0, 0.0)
        await device.finish()
    assert device.statuses().count("stt_behind") == 1


async def test_the_last_words_of_a_busy_recogniser_are_waited_for(
    autojump_clock: MockClock,
) -> None:
    """For longer than an end may take otherwise, 78 s."""
    script = random_script(Random(4), 40.0)
    async with listening_server(faults=busy(10, 200)) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(script, RATE), RATE * 2)
        ended = await device.finish(300)
        assert len(fake.connections) == 1
    assert words_of(device.segments) == script.transcript()
    assert (ended["finalised"], ended["lost"]) == (40.0, 0.0)


async def test_a_server_that_goes_does_not_wait_for_a_busy_recogniser(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(faults=busy(5, 200)) as (world, _fake), world.device() as device:
        await device.stream_audio(synthesise(random_script(Random(4), 40.0), RATE), RATE * 2)
        device.session.drain(10.0)
        began = trio.current_time()
        await device.ended()
        assert trio.current_time() - began == pytest.approx(10.0, abs=1.5)


async def test_a_recogniser_that_can_carry_no_more_sends_upgrades_away(
    autojump_clock: MockClock,
) -> None:
    carried = [1]
    async with (
        listening_server(find_carried=lambda: carried[0]) as (world, _fake),
        world.device() as device,
    ):
        await assert_sends_away(world, NO_ROOM)
        series = await scrape(world)
        assert series['omi_rt_upgrades_refused_total{reason="recogniser"}'] == 1.0
        assert series["omi_rt_carried_sessions"] == 1.0
        carried[0] = 2
        assert (await world.get("/readyz"))[0] == 200
        async with world.device(uid="u2") as other:
            await other.finish()
        await device.finish()


@pytest.mark.realtime
async def test_a_real_worker_that_gets_little_of_a_core_is_behind_and_not_replaced() -> None:
    """Its process runs a thirtieth or a hundredth of the time, as where many want the processor.

    pocketsphinx works in small steps and tells of each. Whisper decodes without a word, and at a
    hundredth for longer than a recogniser may be silent that has been sent speech. The two run beside
    each other, because nearly all of it is waiting.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_be_behind, "off", 0.6)
        nursery.start_soon(_be_behind, "", 2.0)


async def _be_behind(model: str, stopped_seconds: float) -> None:
    with sample_wav() as path:
        pcm = convert(read_wav(path.read_bytes()), 16000, 1).pcm
    async with serving(OMI_RT_WHISPER_MODEL=model) as server:
        async with (
            server.device(codec="pcm16", sample_rate=16000) as device,
            trio.open_nursery() as nursery,
        ):
            await device.until(lambda: "ready" in device.statuses(), 20)
            await trio.sleep(1.0)
            is_slow = trio.CancelScope()
            nursery.start_soon(_slow_down, server.program.pid, stopped_seconds, is_slow)
            await device.stream_audio(pcm, 32000)
            await device.until(lambda: "stt_behind" in device.statuses(), 30)
            with trio.fail_after(10):
                while (answer := await server.get("/readyz"))[0] == 200:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            await trio.sleep(_SLOW_SECONDS)
            is_slow.cancel()
            assert answer[::2] == (503, f"{NO_ROOM}\n")
            await device.finish(60)
            nursery.cancel_scope.cancel()
        log = server.program.errors
    statuses = [s for s in device.statuses() if s.startswith("stt_")]
    assert statuses == ["stt_behind", "stt_caught_up"]
    assert device.event("session_ended")["sent"]["replay"] == 0.0
    assert device.event("session_ended")["lost"] == 0.0
    text = " ".join(segment["text"] for segment in device.segments)
    assert word_accuracy(sample_text(), text) >= (0.8 if model == "off" else 0.95)
    for event in ("provider_behind", "provider_behind_ended", "connection_opened"):
        assert len(re.findall(rf"\b{event} ", log)) == 1


async def _slow_down(server: int, stopped_seconds: float, scope: trio.CancelScope) -> None:
    """Stop the recogniser's workers for so long between every 20 ms, until cancelled."""
    (recogniser,) = children_of(server)
    with scope:
        await _stop_now_and_then(recogniser, stopped_seconds)
    for worker in descendants_of(recogniser):
        os.kill(worker, signal.SIGCONT)


async def _stop_now_and_then(recogniser: int, stopped_seconds: float) -> None:
    while True:
        for worker in children_of(recogniser):
            os.kill(worker, signal.SIGSTOP)
        await trio.sleep(stopped_seconds)
        for worker in children_of(recogniser):
            os.kill(worker, signal.SIGCONT)
        await trio.sleep(0.02)
