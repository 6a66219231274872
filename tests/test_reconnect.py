"""Never lose a word: Deepgram drops, refuses, stalls and lies, and the transcript comes out whole."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.errors import PeerClosed
from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.faults import (
    MALFORMED,
    Close,
    Double,
    Drop,
    Fault,
    IgnoreCloseStream,
    Late,
    LyingMetadata,
    Malformed,
    NoAnswer,
    Refuse,
    Silence,
    Stall,
    Unreachable,
)
from omi_rt.fake.speech import utterance
from omi_rt.fake.streams import BoundedStream
from omi_rt.net.handshake import open_websocket
from tests.harness import (
    LONG_MESSAGES,
    RATE,
    assert_whole,
    listening_server,
    play,
    running_server,
    unreachable,
    words_of,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

    from omi_rt.net.websocket import WebSocket

TALK = random_script(Random(3), 40.0)


@pytest.mark.parametrize("at", [0.2, 3.0, 7.7, 13.1, 25.0, 39.5])
@pytest.mark.parametrize(
    "fault",
    [
        lambda at: Close(code=1001, after_audio=at),
        lambda at: Close(code=1006, after_audio=at),
        lambda at: Close(code=1011, reason="net0001", after_audio=at),
        lambda at: Close(code=1012, after_audio=at),
        lambda at: Close(code=1013, after_audio=at),
        lambda at: Close(code=1000, after_audio=at),
        lambda at: Drop(at="now", after_audio=at),
        lambda at: Drop(at="frame", after_audio=at),
        lambda at: Drop(at="result", after_audio=at),
    ],
    ids=["1001", "1006", "1011", "1012", "1013", "1000", "drop", "torn-frame", "torn-result"],
)
async def test_a_retryable_end_costs_no_word(
    autojump_clock: MockClock, fault: Any, at: float
) -> None:
    faults = FaultScript.of([fault(at)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        ended = await play(device, TALK, message_seconds=LONG_MESSAGES)
    assert_whole(device, TALK)
    # A torn last frame may be Metadata: then everything was final before.
    assert len(fake.connections) == 2 or (at == 39.5 and ended["sent"]["replay"] == 0.0)
    assert ended["sent"]["live"] == 40.0


@pytest.mark.parametrize(
    "faults",
    [
        [Unreachable()],
        [Drop(at="request")],
        [Drop(at="response")],
        [NoAnswer()],
        [Refuse(status=500)],
        [Refuse(status=503, retry_after=3)],
        [Refuse(status=429, retry_after=2)],
        [Refuse(status=408)],
        [Stall(after_audio=5.0)],
        [Silence(after_audio=5.0)],
        [Silence(seconds=12.0, after_audio=5.0)],
        [Late(seconds=4.0)],
        [Double()],
        [Late(seconds=2.0), Double(), Drop(after_audio=20.0)],
    ],
    ids=lambda faults: "+".join(type(fault).__name__ for fault in faults),
)
async def test_other_retryable_faults_cost_no_word_either(
    autojump_clock: MockClock, faults: list[Fault]
) -> None:
    script = FaultScript.of(faults)
    async with listening_server(faults=script) as (world, _fake), world.device() as device:
        await play(device, TALK, message_seconds=LONG_MESSAGES)
    assert_whole(device, TALK)


async def test_the_device_is_told_of_a_drop_and_of_the_recovery(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Close(code=1011, after_audio=5.0)], [Refuse(status=503)])
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        await play(device, TALK)
    assert device.statuses() == ["initiating", "ready", "stt_degraded", "stt_recovered"]
    assert "1011" in device.events("service_status")[2]["reason"]


async def test_each_loss_after_a_final_is_the_first_again_and_redialled_at_once(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of(*([Drop(after_results=1)] for _ in range(6)))
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK)
    assert_whole(device, TALK)
    assert len(fake.connections) == 7
    for lost, following in itertools.pairwise(fake.connections):
        assert lost.closed_at is not None
        assert following.opened_at - lost.closed_at < 0.01


async def test_after_a_drop_live_words_are_delayed_by_the_replay_alone(
    autojump_clock: MockClock,
) -> None:
    script = Script(utterance("amber bako celu " * 8, 2, 0.5), 12.0)
    faults = FaultScript.of([Drop(after_audio=4.0)])
    options = Options(max_utterance=60.0)
    async with (
        listening_server(faults=faults, options=options) as (world, fake),
        world.device() as device,
    ):
        ended = await play(device, script)
        dropped, second = fake.connections
        assert dropped.closed_at is not None
        assert second.opened_at - dropped.closed_at < 0.05
        # 4 s wait to be sent again while more comes at 1.0: with 2 s at once and then 1.25 it has
        # caught up after (4 - 2) / 0.25 s.
        assert ended["sent"]["replay"] == pytest.approx(4.0, abs=0.3)
    assert_whole(device, script)


async def test_replay_goes_up_at_no_more_than_a_quarter_over_real_time(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of([Silence(), Drop(after_audio=9.0)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK)
        assert all(record.throttled_seconds == 0.0 for record in fake.connections)
    assert_whole(device, TALK)


# Refusals


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 414])
async def test_a_final_refusal_ends_the_session_with_1011_after_it_was_told(
    autojump_clock: MockClock, status: int
) -> None:
    faults = FaultScript((), (Refuse(status=status, error="no good"),))
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        device.send(bytes(1600))
        await device.ended()
        assert len(fake.connections) == 1
    failed = device.events("service_status")[-1]
    assert failed["status"] == "stt_failed"
    assert f"HTTP {status}" in failed["reason"]
    assert "dg-error no good" in failed["reason"]
    assert f"dg-request-id {fake.connections[0].request_id}" in failed["reason"]
    assert device.closed is not None
    assert device.closed.code == 1011
    ended = device.event("session_ended")
    assert ended["lost"] == ended["received"]


async def test_close_code_1008_is_final(autojump_clock: MockClock) -> None:
    faults = FaultScript((), (Close(code=1008, after_audio=1.0),))
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        pcm = synthesise(TALK, RATE)
        await device.stream_audio(pcm[: RATE * 2 * 5], RATE * 2)
        await device.ended()
        assert len(fake.connections) == 1
        assert device.closed is not None
        assert device.closed.code == 1011


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_what_concerns_every_session_opens_the_breaker(
    autojump_clock: MockClock, status: int
) -> None:
    faults = FaultScript((), (Refuse(status=status),))
    async with listening_server(faults=faults) as (world, fake):
        async with world.device() as device:
            await device.ended()
        dials = len(fake.connections)
        request = (
            "GET /listen?uid=u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        for _ in range(50):
            stream = world.open_stream()
            await stream.send_all(request.encode())
            answer = await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after" in answer.lower()
        assert len(fake.connections) == dials
        await trio.sleep(11)
        async with world.device() as probe:
            await probe.ended()
        assert len(fake.connections) == dials + 1
        fake.faults = FaultScript()
        await trio.sleep(11)
        async with world.device() as probe, world.device() as other:
            await other.until(lambda: "ready" in other.statuses())
            assert probe.closed is None


@pytest.mark.parametrize("status", [400, 405, 413, 414])
async def test_what_concerns_one_session_leaves_the_others(
    autojump_clock: MockClock, status: int
) -> None:
    faults = FaultScript.of([Refuse(status=status)])
    async with listening_server(faults=faults) as (world, _fake):
        async with world.device() as device:
            await device.ended()
        async with world.device() as other:
            await other.until(lambda: "ready" in other.statuses())


async def test_retry_after_is_honoured(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Refuse(status=429, retry_after=7)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await device.until(lambda: "ready" in device.statuses())
        assert fake.connections[1].opened_at - fake.connections[0].opened_at >= 7


async def test_redials_of_many_sessions_share_one_bucket(autojump_clock: MockClock) -> None:
    async with listening_server(redial_burst=5.0, redial_rate=2.0) as (world, fake):
        async with trio.open_nursery() as nursery:

            async def device(number: int) -> None:
                async with world.device(uid=f"u{number}") as each:
                    await trio.sleep(30)
                    await each.finish()

            fake.faults = FaultScript((), (Close(code=1001, after_seconds=10.0),))
            for number in range(20):
                nursery.start_soon(device, number)
            await trio.sleep(9.9)
            fake.faults = FaultScript()
            await trio.sleep(15)
            opened = [record.opened_at - 10.0 for record in fake.connections[20:]]
    assert len(opened) == 20, "every session has dialled again, once"
    # Five at once, then one every half second.
    expected = [0.0] * 5 + [(number + 1) / 2 for number in range(15)]
    assert opened == pytest.approx(expected, abs=0.1)


# A provider that is away


async def test_the_oldest_audio_goes_only_while_deepgram_is_away_and_is_told(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (Unreachable(),))
    async with listening_server(faults=faults, backlog_seconds=10.0) as (world, fake):
        async with world.device() as device:
            pcm = synthesise(TALK, RATE)
            await device.stream_audio(pcm[: RATE * 2 * 20], RATE * 2)
            await trio.sleep(1)
            lost = device.events("audio_lost")
            assert lost[0]["start"] == 0.0
            assert all(a["end"] == b["start"] for a, b in itertools.pairwise(lost))
            fake.faults = FaultScript()
            await device.stream_audio(pcm[RATE * 2 * 20 :], RATE * 2)
            ended = await device.finish()
    last = device.events("audio_lost")[-1]["end"]
    assert ended["lost"] == last
    assert ended["lost"] + ended["finalised"] == ended["received"] == 40.0
    heard = [word.text for word in TALK.words if word.start >= last]
    assert words_of(device.segments)[-len(heard) :] == heard


async def test_a_full_backlog_stops_reading_while_deepgram_takes_audio(
    autojump_clock: MockClock,
) -> None:
    """Twenty times faster than real time: memory stays flat, and nothing is lost."""
    script = random_script(Random(8), 300.0)
    most = 0
    async with listening_server(backlog_seconds=20.0) as (world, _fake), world.device() as device:

        async def watch() -> None:
            nonlocal most
            while True:
                backlog = device.session.coverage.backlog
                most = max(most, backlog.end - backlog.start)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            pcm = synthesise(script, RATE)
            await device.stream_audio(pcm, RATE * 2, speed=20.0)
            await device.finish(400)
            nursery.cancel_scope.cancel()
    assert_whole(device, script)
    assert most <= RATE * 23


async def test_a_device_that_is_held_back_for_many_heartbeats_has_not_vanished(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(8), 60.0)
    options = Options(lateness=(8.0, 8.0))
    async with (
        listening_server(options=options, backlog_seconds=12.0, heartbeat_seconds=1.0) as (
            world,
            _fake,
        ),
        world.device() as device,
    ):
        await device.stream_audio(synthesise(script, RATE), RATE * 2, speed=20.0)
        ended = await device.finish(400)
    assert_whole(device, script)
    assert ended["reason"] == "client_closed_stream"


@pytest.mark.parametrize("silences", [0, 2], ids=["a final makes room", "a loss makes room"])
async def test_a_device_that_is_held_back_is_read_on_in_the_moment_in_which_there_is_room(
    autojump_clock: MockClock, silences: int
) -> None:
    script = random_script(Random(8), 120.0)
    unanswered: list[Fault] = [Silence(), Close(code=1011, after_seconds=25.0)]
    faults = FaultScript.of(*[unanswered] * silences)
    step, moments = 0.01, 0
    async with (
        listening_server(faults=faults, backlog_seconds=45.0) as (world, _fake),
        world.device() as device,
    ):
        coverage = device.session.coverage

        async def watch() -> None:
            nonlocal moments
            while coverage.backlog.end < len(synthesised) // 2 - RATE:
                was_full, end = coverage.is_full, coverage.backlog.end
                await trio.sleep(step)
                await trio.testing.wait_all_tasks_blocked()
                has_room = end - coverage.backlog.start < coverage.backlog.capacity
                if was_full and has_room:
                    moments += 1
                    assert coverage.backlog.end > end
                    if silences:
                        return

        synthesised = synthesise(script, RATE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await device.stream_audio(synthesised, RATE * 2, speed=20.0)
        await device.finish(400)
    assert moments >= (1 if silences else 10)


async def test_a_provider_that_answers_nothing_for_thirty_seconds_counts_as_away(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (Silence(),))
    async with listening_server(faults=faults, backlog_seconds=10.0) as (world, fake):
        async with world.device() as device:
            # The backlog is full after 10 s, and holds the device back from then on.
            async with trio.open_nursery() as nursery:
                pcm = synthesise(TALK, RATE)
                nursery.start_soon(device.stream_audio, pcm, RATE * 2)
                await trio.sleep(28)
                assert device.events("audio_lost") == []
                await trio.sleep(10)
                assert device.events("audio_lost") != []
                fake.faults = FaultScript()
            await device.finish()


async def test_a_pause_of_the_device_s_is_not_held_against_deepgram(
    autojump_clock: MockClock,
) -> None:
    """Its last words before the pause come in it; a burst after it loses nothing."""
    script = random_script(Random(8), 200.0)
    pcm = synthesise(script, RATE)
    cut = RATE * 2 * 20 + 1000
    async with listening_server() as (world, _fake), world.device() as device:
        await device.stream_audio(pcm[:cut], RATE * 2)
        await trio.sleep(40)
        balance = device.session.coverage.balance()
        assert balance.pending < RATE
        await device.stream_audio(pcm[cut:], RATE * 2, speed=20.0)
        ended = await device.finish(400)
    assert_whole(device, script)
    assert ended["reason"] == "client_closed_stream"


@pytest.mark.parametrize("message_seconds", [0.256, 1.0, 1.9])
async def test_messages_longer_than_one_to_deepgram_go_up_whole(
    autojump_clock: MockClock, message_seconds: float
) -> None:
    async with listening_server() as (world, fake), world.device() as device:
        pcm = synthesise(TALK, RATE)
        await device.stream_audio(pcm, RATE * 2, message_seconds=message_seconds)
        await trio.sleep(1.0)
        assert fake.connections[0].audio_seconds == pytest.approx(40.0, abs=0.01)
        await device.finish()
    assert_whole(device, TALK)


async def test_a_provider_that_stops_reading_for_good_is_left_ten_seconds_after_the_window_is_full(
    autojump_clock: MockClock,
) -> None:
    """That is sooner than for want of answers: the window of 4 s is full at 9 s, and 20 s of patience are
    over at 25 s."""
    faults = FaultScript.of([Stall(after_audio=5.0)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.stream_audio, synthesise(TALK, RATE), RATE * 2)
            await trio.sleep(17.0)
            assert len(fake.connections) == 1
            await trio.sleep(5.0)
            assert len(fake.connections) == 2
        await device.finish()
    assert_whole(device, TALK)


@pytest.mark.parametrize("message_seconds", [0.02, 0.1, 0.25])
async def test_a_provider_that_stops_reading_and_goes_on_gets_every_sample_in_its_place(
    autojump_clock: MockClock, message_seconds: float
) -> None:
    """A frame is cut where the window is full, waits for its rest, and then audio goes straight again."""
    faults = FaultScript.of([Stall(after_audio=at, seconds=8.0) for at in (3.0, 20.0, 30.0)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK, message_seconds=message_seconds)
        (record,) = fake.connections
        assert record.audio_seconds == TALK.seconds
    assert_whole(device, TALK)


async def test_a_small_backlog_does_not_keep_a_silent_provider(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Silence(after_audio=5.0)])
    async with (
        listening_server(faults=faults, backlog_seconds=8.0) as (world, fake),
        world.device() as device,
    ):
        await play(device, TALK)
        assert len(fake.connections) == 2
    assert_whole(device, TALK)


async def test_two_stretches_of_lost_audio_are_told_apart(autojump_clock: MockClock) -> None:
    faults = FaultScript((), (Unreachable(),))
    async with listening_server(faults=faults, backlog_seconds=5.0) as (world, fake):
        async with world.device() as device:
            await device.stream_audio(bytes(int(RATE * 2 * 5.4)), RATE * 2)
            fake.faults = FaultScript()
            await trio.sleep(20)
            await device.stream_audio(bytes(RATE * 2 * 20), RATE * 2)
            ended = await device.finish()
    told = sum(event["end"] - event["start"] for event in device.events("audio_lost"))
    assert told == pytest.approx(ended["lost"], abs=0.001)
    assert 0.0 < ended["lost"] < 2.0


# Silence that is none


@pytest.mark.parametrize("empty_finals", [(3.0, 5.0), None])
async def test_an_hour_in_which_nobody_speaks_needs_no_reconnect(
    autojump_clock: MockClock, empty_finals: tuple[float, float] | None
) -> None:
    options = Options(empty_finals=empty_finals)
    most = 0
    async with listening_server(options=options) as (world, fake), world.device() as device:
        for _ in range(360):
            await device.stream_audio(bytes(RATE * 2 * 10), RATE * 2, message_seconds=1.0)
            backlog = device.session.coverage.backlog
            most = max(most, backlog.end - backlog.start)
        ended = await device.finish()
        assert len(fake.connections) == 1
    assert ended["finalised"] == 3600.0
    assert most <= RATE * 15


async def test_silent_channels_follow_the_channel_that_answers(autojump_clock: MockClock) -> None:
    script = random_script(Random(9), 60.0, channels=2)
    faults = FaultScript.of([Silence(channel=1, after_audio=5.0)])
    async with (
        listening_server(faults=faults) as (world, fake),
        world.device(channels=2) as device,
    ):
        pcm = synthesise(script, RATE)
        await device.stream_audio(pcm, RATE * 4)
        assert len(fake.connections) == 1
        balance = device.session.coverage.balance()
        assert balance.finalised > 35 * RATE
        await device.finish()
    assert words_of(device.segments, 0) == script.transcript(0)


# Lies


@pytest.mark.parametrize("what", sorted(set(MALFORMED) - {"jumps_ahead"}))
@pytest.mark.parametrize("instead", [False, True])
async def test_malformed_messages_cost_no_word_and_end_no_stream(
    autojump_clock: MockClock, what: str, instead: bool
) -> None:
    if instead and not MALFORMED[what].startswith("extra or instead"):
        instead = False
    faults = FaultScript.of([Malformed(what=what, results=50, instead=instead)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK, message_seconds=LONG_MESSAGES)
        if what not in {"huge", "invalid_utf8"}:
            assert len(fake.connections) == 1
    assert_whole(device, TALK, within=None)


async def test_a_final_that_jumps_ahead_is_clamped_to_what_was_sent(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of([Malformed(what="jumps_ahead", results=3)])
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        await play(device, TALK)
    assert_whole(device, TALK)


async def test_metadata_that_disagrees_is_counted(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([LyingMetadata(seconds=-2.0)])
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        ended = await play(device, TALK)
        assert world.metrics.provider_disagreements._value.get() == 1
    assert_whole(device, TALK)
    assert ended["received"] == 40.0


async def test_closestream_that_is_never_answered_ends_after_ten_seconds(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (IgnoreCloseStream(results=True),))
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        pcm = synthesise(TALK, RATE)
        await device.stream_audio(pcm, RATE * 2)
        asked_at = trio.current_time()
        ended = await device.finish()
        assert trio.current_time() - asked_at == pytest.approx(10.0, abs=0.5)
    assert ended["lost"] + ended["finalised"] == 40.0
    assert ended["lost"] < 0.5
    assert words_of(device.segments) == TALK.transcript()


async def test_closestream_that_is_not_answered_with_words_missing_is_tried_once_more(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript.of([Silence(after_audio=30.0)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK)
        assert len(fake.connections) == 2
    assert_whole(device, TALK)


# Ends


@pytest.mark.parametrize("at", ["now", "result"])
async def test_a_drop_while_finishing_is_a_new_epoch_and_closestream_again(
    autojump_clock: MockClock, at: Any
) -> None:
    faults = FaultScript.of([Drop(at=at, after_audio=39.95)])
    async with listening_server(faults=faults) as (world, fake), world.device() as device:
        await play(device, TALK)
        assert fake.connections[-1].close_stream_at is not None
    assert_whole(device, TALK)


async def test_a_session_never_outlives_its_audio_by_more_than_the_bound(
    autojump_clock: MockClock,
) -> None:
    faults = FaultScript((), (Unreachable(),))
    async with listening_server(faults=faults) as (world, _fake), world.device() as device:
        device.send(bytes(RATE * 2 * 4))
        await trio.sleep(1)
        asked_at = trio.current_time()
        ended = await device.finish()
        assert trio.current_time() - asked_at <= 60 / 1.25 + 30.1
    assert ended["lost"] == ended["received"] == 4.0
    assert device.event("audio_lost") == {"type": "audio_lost", "start": 0.0, "end": 4.0}


async def test_a_device_that_stops_reading_is_closed_while_its_audio_is_finalised(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(4), 60.0)
    async with listening_server() as (world, _fake):
        stream = world.open_stream(2000)
        websocket = await open_websocket(stream, "ws://server/listen?uid=u1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(websocket.run_writer, 1e6)
            await trio.testing.wait_all_tasks_blocked()
            (session,) = world.server.sessions
            world.server.all_sessions.append(session)
            pcm = synthesise(script, RATE)
            for offset in range(0, len(pcm), 1600):
                websocket.send_nowait(pcm[offset : offset + 1600])
                await trio.sleep(0.1)
            await world.sessions_ended()
            assert session._ending.close_code == 1011
            balance = session.coverage.balance()
            assert balance.finalised == balance.received > 0
            nursery.cancel_scope.cancel()


async def read_to_the_end(websocket: WebSocket) -> None:
    """Read until that raises why it ended."""
    while True:
        await websocket.receive()


async def test_a_device_that_vanishes_without_a_word_is_noticed_by_its_silence(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        stream = world.open_stream()
        websocket = await open_websocket(stream, "ws://server/listen?uid=u1")
        await trio.testing.wait_all_tasks_blocked()
        (session,) = world.server.sessions
        world.server.all_sessions.append(session)
        await world.sessions_ended()
        assert 60 + 30 <= trio.current_time() < 110 + 30
        # Should it come back after all, it reads why, and that it is to connect again.
        with pytest.raises(PeerClosed, match="1001: device_vanished"):
            await read_to_the_end(websocket)


class Delegating(trio.abc.Stream):
    """A stream that does what another does; there is no sending at once over it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


class OneWay(Delegating):
    """A connection of which only the way there breaks, at a given time; the way back goes on."""

    breaks_at = 0.0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if trio.current_time() >= self.breaks_at:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError
        await super().send_all(data)


async def test_a_connection_that_takes_nothing_more_is_read_for_a_second_and_replaced(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake):
        dial, dials = world.provider.dial, itertools.count()

        async def one_way(url: str) -> trio.abc.Stream:
            stream = OneWay(await dial(url))
            stream.breaks_at = 8.0 if next(dials) == 0 else math.inf
            return stream

        world.provider.dial = one_way
        async with world.device() as device:
            await play(device, TALK)
        _, second = fake.connections
        assert second.opened_at == pytest.approx(9.0, abs=0.3)
        assert device.statuses()[2:] == ["stt_degraded", "stt_recovered"]
    assert_whole(device, TALK)
    assert device.events("service_status")[2]["reason"] == "closed with 1006: connection lost"


class Narrow(Delegating):
    """A connection whose kernel takes at once a part of what it is offered, and often nothing."""

    def __init__(self, stream: BoundedStream) -> None:
        super().__init__(stream)
        self.offer = stream.send_nowait
        self.random = Random(5)
        self.in_part = 0

    def send_nowait(self, data: bytes) -> bytes | None:
        taken = self.random.choice([0, self.random.randrange(len(data) + 1), len(data)])
        self.in_part += 0 < taken < len(data)
        rest = self.offer(data[:taken]) if taken else None
        return ((rest or b"") + data[taken:]) or None


async def test_a_message_of_which_the_kernel_takes_a_part_goes_up_whole(
    autojump_clock: MockClock,
) -> None:
    streams: list[Narrow] = []
    async with listening_server() as (world, fake):
        dial = world.provider.dial

        async def narrow(url: str) -> trio.abc.Stream:
            stream = await dial(url)
            assert isinstance(stream, BoundedStream)
            streams.append(Narrow(stream))
            return streams[-1]

        world.provider.dial = narrow
        async with world.device() as device:
            await play(device, TALK)
        assert len(fake.connections) == 1
    assert_whole(device, TALK)
    assert streams[0].in_part > 50


async def test_who_waits_to_dial_and_goes_gives_the_place_up(autojump_clock: MockClock) -> None:
    async with running_server(unreachable, redial_burst=1.0, redial_rate=0.1) as world:
        await world.provider.wait_for_turn(is_redial=True)
        with trio.move_on_after(1.0):
            await world.provider.wait_for_turn(is_redial=True)
        await world.provider.wait_for_turn(is_redial=True)
        assert trio.current_time() == pytest.approx(10.0)
