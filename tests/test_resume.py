"""A session outlives its device's connections: taken up by its secret, nothing lost, nothing twice."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.core.outbox import MAX_OUTBOX_BYTES
from omi_rt.fake import FaultScript, Script, random_script, synthesise
from omi_rt.fake.faults import Close, Unreachable
from omi_rt.fake.speech import utterance
from omi_rt.log import configure_logging
from omi_rt.net.handshake import open_websocket
from omi_rt.server.session import Session
from omi_rt.timers import open_timers, running_timers
from tests.harness import Device, World, listening_server, running_server, unreachable, words_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from omi_rt.core.resume import Decision, Wish
    from omi_rt.faces.face import Opening
    from omi_rt.server.line import Line

RATE = 8000
SECOND = RATE * 2
TALK = random_script(Random(3), 20.0)
PCM = synthesise(TALK, RATE)


async def until_ready(device: Device) -> str:
    """Wait for the secret and return it."""
    await device.until(lambda: "ready" in device.statuses())
    (ready,) = [e for e in device.events("service_status") if e["status"] == "ready"]
    secret = ready["resume"]
    assert isinstance(secret, str)
    return secret


def numbers_of(message: Any) -> list[int]:
    """The numbers of a message as it came."""
    parts = message if isinstance(message, list) else [message]
    return [part["seq"] for part in parts if "seq" in part]


async def drop(device: Device) -> None:
    """Lose the connection, after all that was sent has arrived."""
    await device.websocket.drained()
    await trio.testing.wait_all_tasks_blocked()
    await trio.aclose_forcefully(device.stream)


@asynccontextmanager
async def resuming(world: World, secret: str, **more: Any) -> AsyncIterator[Device]:
    """Come back with a secret."""
    async with world.device(resume=secret, **more) as device:
        yield device


async def test_one_transcript_comes_out_of_two_connections(autojump_clock: MockClock) -> None:
    cut = 7 * SECOND + 1234
    async with listening_server() as (world, fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:cut], SECOND)
        await drop(first)
        await trio.sleep(20)
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            assert second.messages[0] == {
                "type": "service_status",
                "status": "resumed",
                "session_id": first.session.id,
                "received": round(cut / SECOND, 6),
            }
            await second.stream_audio(PCM[cut:], SECOND)
            ended = await second.finish()
        assert len(fake.connections) == 1, "the epoch goes on"
    assert words_of(first.segments + second.segments) == TALK.transcript()
    assert ended["received"] == ended["finalised"] == TALK.seconds
    numbers = first.numbers + second.numbers
    assert numbers == list(range(1, len(numbers) + 1))
    assert world.metrics.sessions_ended.labels("client_closed_stream")._value.get() == 1


async def test_words_that_come_while_the_device_is_away_are_told_when_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM, SECOND, speed=10.0)
        await drop(first)
        await trio.sleep(25)
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            await second.finish()
    assert second.segments
    assert words_of(first.segments + second.segments) == TALK.transcript()


@pytest.mark.parametrize("after", [0, "inside"])
async def test_a_message_of_several_segments_is_told_again_once(
    autojump_clock: MockClock, after: int | str
) -> None:
    """Two voices share the last final, and so one message."""
    first_said = utterance("amber bako", 1, 0.5)
    then_said = utterance("dorin elfa", 4, first_said[-1].end + 0.08)
    script = Script([*first_said, *then_said], 4.0)
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(synthesise(script, RATE), SECOND)
        await first.until(lambda: first.segments)
        (told,) = [m for m in first.raw if isinstance(m, list)]
        assert len(told) == 2
        await drop(first)
        seq = told[0]["seq"] if after == "inside" else 0
        async with resuming(world, secret, after=seq) as second:
            await second.finish()
    again = [each for m in second.raw if isinstance(m, list) for each in m]
    assert again == (told[1:] if after == "inside" else told)
    assert second.numbers == list(range(seq + 1, second.numbers[-1] + 1))


async def test_without_after_the_last_minute_comes_again_with_the_same_ids(
    autojump_clock: MockClock,
) -> None:
    script = random_script(Random(5), 90.0)
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(synthesise(script, RATE), SECOND)
        await drop(first)
        async with resuming(world, secret) as second:
            await second.finish()
    again = [each for each in second.segments if each in first.segments]
    told = {each["id"] for each in second.segments}
    assert [each for each in first.segments if each["start"] > 35.0] == [
        each for each in again if each["start"] > 35.0
    ]
    assert not any(each["id"] in told for each in first.segments if each["end"] < 25.0)
    merged = {each["id"]: each for each in first.segments + second.segments}
    assert words_of(list(merged.values())) == script.transcript()


async def test_what_fell_out_of_the_store_is_told_as_a_gap(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.core.outbox.MAX_OUTBOX_BYTES", 1500)
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM, SECOND)
        await drop(first)
        async with resuming(world, secret, after=1) as second:
            await second.finish()
    resumed, missing = second.messages[:2]
    assert resumed["status"] == "resumed"
    assert missing["type"] == "messages_missing"
    assert missing["first"] == 2
    assert second.numbers == list(range(missing["last"] + 1, second.numbers[-1] + 1))
    assert second.numbers


async def test_where_all_stores_together_are_full_who_was_told_much_is_told_of_a_gap(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.core.budget._OUTBOX_SHARE", 0.008)
    most = int(0.008 * 1_048_576)
    async with listening_server(backlog_bytes=1_048_576) as (world, _fake):
        budget, held = world.server.budget, 0
        async with world.device(uid="quiet") as quiet, world.device() as first:
            quiet_secret, secret = await until_ready(quiet), await until_ready(first)
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    nonlocal held
                    while True:
                        held = max(held, budget.outbox_bytes)
                        await trio.sleep(0.1)

                nursery.start_soon(watch)
                for _ in range(3):
                    await first.stream_audio(PCM, SECOND)
                nursery.cancel_scope.cancel()
            assert f"omi_rt_outbox_bytes {float(budget.outbox_bytes)}" in world.exposition()
            await drop(first)
            await drop(quiet)
            async with resuming(world, secret, after=0) as second:
                await second.finish()
            async with world.device(uid="quiet", resume=quiet_secret, after=0) as again:
                await again.finish()
    assert most / 3 < held <= most
    missing = second.event("messages_missing")
    assert missing["first"] == 1
    assert second.numbers == list(range(missing["last"] + 1, second.numbers[-1] + 1))
    assert second.segments
    assert again.events("messages_missing") == []
    assert again.numbers == list(range(1, again.numbers[-1] + 1))


# Audio


async def test_audio_that_came_before_is_left_out_by_its_position(
    autojump_clock: MockClock,
) -> None:
    cut = 7 * SECOND
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[:cut], SECOND)
        await drop(first)
        parameters = {"after": first.numbers[-1], "from": 3.0}
        async with resuming(world, secret, **parameters) as second:
            await second.stream_audio(PCM[3 * SECOND :], SECOND, message_seconds=0.37)
            ended = await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()
    assert ended["received"] == TALK.seconds


async def test_without_from_it_is_new_audio(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await drop(first)
        async with resuming(world, secret) as second:
            await second.stream_audio(PCM[3 * SECOND :], SECOND)
            ended = await second.finish()
    assert ended["received"] == 7.0 + 17.0


@pytest.mark.parametrize("at_once", [1, 23])
async def test_opus_packets_that_came_before_do_not_reach_the_decoder(
    autojump_clock: MockClock, at_once: int
) -> None:
    rate, frame = 16_000, 320
    pcm = synthesise(TALK, rate)
    encoder = OpusEncoder(rate, 1)
    packets = [
        encoder.encode(pcm[at : at + frame * 2].ljust(frame * 2, b"\0"))
        for at in range(0, len(pcm), frame * 2)
    ]
    query = {"codec": "opus_fs320", "sample_rate": rate}
    async with listening_server() as (world, _fake), world.device(**query) as first:
        secret = await until_ready(first)
        for packet in packets[:400]:
            first.send(packet)
            await trio.sleep(0.02)
        await drop(first)
        again = {"after": first.numbers[-1], "from": 100 * 0.02, "codec": "opus"}
        async with resuming(world, secret, **(query | again)) as second:
            for at in range(100, len(packets), at_once):
                for packet in packets[at : at + at_once]:
                    second.send(packet)
                await trio.sleep(0.02 * at_once)
            ended = await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()
    assert ended["received"] == pytest.approx(TALK.seconds, abs=0.02)


async def test_part_of_a_sample_at_the_cut_is_dropped(autojump_clock: MockClock) -> None:
    cut = 7 * SECOND
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: cut + 1], SECOND)
        await drop(first)
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            assert second.messages[0]["received"] == 7.0
            await second.stream_audio(PCM[cut:], SECOND)
            ended = await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()
    assert ended["received"] == TALK.seconds


async def test_audio_is_acknowledged_once_a_second_at_most(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device(acknowledge="true") as device:
        began = trio.current_time()
        await device.stream_audio(PCM, SECOND)
        await trio.sleep(30)
        told = device.events("audio_received")
        assert trio.current_time() - began > len(told) > 18
        ended = await device.finish()
    assert [e["received"] for e in told] == sorted(e["received"] for e in told)
    assert all(e["finalised"] <= e["received"] <= TALK.seconds for e in told)
    assert told[-1]["received"] == ended["received"]
    assert all("seq" not in m for m in device.raw if "audio_received" in str(m))


async def test_audio_is_not_acknowledged_unasked(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.stream_audio(PCM[: 3 * SECOND], SECOND)
        await device.finish()
    assert device.events("audio_received") == []


# Who may, and who may not


@pytest.mark.parametrize("secret", ["", "wrong", "x" * 4_000, "%00\udcff"])
async def test_an_unknown_secret_begins_a_new_session_that_says_so(
    autojump_clock: MockClock, secret: str
) -> None:
    secret = secret.encode("utf-8", "surrogateescape").decode("latin-1")
    async with listening_server() as (world, _fake), resuming(world, secret, after=99) as device:
        await device.stream_audio(PCM, SECOND)
        ended = await device.finish()
    assert device.messages[0] == {"type": "service_status", "status": "resume_unknown"}
    assert words_of(device.segments) == TALK.transcript()
    assert ended["received"] == TALK.seconds


async def test_a_secret_of_a_megabyte_is_no_request(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        status, _, body = await world.get("/listen?uid=u1&resume=" + "x" * 1_000_000)
        assert (status, body) == (431, "the request head is too long\n")
        assert not world.server.sessions


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"uid": "another"}, "resume: the session is of another uid"),
        ({"codec": "opus", "sample_rate": 16000}, "resume: codec, sample_rate and channels"),
        ({"sample_rate": 16000}, "resume: codec, sample_rate and channels"),
        ({"channels": 2}, "resume: codec, sample_rate and channels"),
        ({"after": 1000}, "after: the session has told"),
        ({"after": -1}, "after: must be a whole number"),
        ({"after": "x"}, "after: must be a whole number"),
        ({"from": "-3"}, "from: must be seconds"),
        ({"from": "nan"}, "from: must be seconds"),
        ({"acknowledge": "perhaps"}, "acknowledge: must be"),
    ],
    ids=str,
)
async def test_a_resume_that_cannot_be_is_closed_with_1008_and_the_session_waits_on(
    autojump_clock: MockClock, more: dict[str, Any], reason: str
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await drop(first)
        async with resuming(world, secret, **more) as refused:
            await refused.ended()
        assert refused.closed is not None
        assert refused.closed.code == 1008
        assert refused.closed.reason.startswith(reason)
        assert refused.messages == []
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_names_of_one_codec_are_one(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        async with resuming(world, secret, codec="linear16") as second:
            assert second.statuses()[0] == "resumed"
            await second.finish()


async def test_the_secret_of_a_session_that_has_ended_is_unknown(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        async with world.device() as first:
            secret = await until_ready(first)
            await first.finish()
        async with resuming(world, secret) as second:
            assert second.statuses()[0] == "resume_unknown"
            await second.finish()


async def test_a_session_whose_audio_was_ended_is_not_taken_up(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 5 * SECOND], SECOND)
        first.send('{"type":"CloseStream"}')
        await drop(first)
        async with resuming(world, secret) as second:
            assert second.statuses()[0] == "resume_unknown"
            await second.finish()


async def test_who_closes_with_1000_has_left(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        await until_ready(first)
        first.websocket.close_nowait(1000)
        await trio.sleep(12)
        assert not world.server.sessions


async def test_nobody_is_waited_for_longer_than_was_set_nor_at_all_with_0(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(resume_seconds=12.0) as (world, _fake), world.device() as first:
        await until_ready(first)
        await drop(first)
        await trio.sleep(11.9)
        assert world.server.sessions
        assert b"omi_rt_sessions_away 1.0" in world.metrics.exposition()
        await trio.sleep(3.2)
        assert not world.server.sessions
        assert b"omi_rt_sessions_away 0.0" in world.metrics.exposition()
    async with listening_server(resume_seconds=0.0) as (world, _fake), world.device() as first:
        await first.until(lambda: "ready" in first.statuses())
        assert "resume" not in str(first.messages)
        await drop(first)
        await trio.sleep(3)
        assert not world.server.sessions


async def test_the_newer_connection_wins_and_the_older_is_told(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            first.send(PCM[:SECOND])
            await first.ended()
            assert first.closed is not None
            assert first.closed.code == 1008
            assert first.closed.reason.startswith("resumed:")
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            ended = await second.finish()
    assert ended["received"] == TALK.seconds, "what the older one still sent is on no clock"
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_what_the_older_connection_brings_in_the_moment_of_the_change_is_not_taken(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        resume = Session.resume

        def resume_in_a_race(
            session: Session, line: Line, opening: Opening, wish: Wish
        ) -> Decision:
            first.stream.send_nowait(first.websocket._protocol.frame(PCM[:SECOND]))
            return resume(session, line, opening, wish)

        monkeypatch.setattr(Session, "resume", resume_in_a_race)
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            assert second.messages[0]["received"] == 7.0
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            ended = await second.finish()
    assert ended["received"] == TALK.seconds
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_a_race_of_ten_ends_with_one(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        open_ones: list[Device] = []

        async def race() -> None:
            async with resuming(world, secret) as device:
                await trio.sleep(2)
                if device.closed is None:
                    open_ones.append(device)
                    await device.finish()
                else:
                    assert device.closed.code in {1008, 1013}

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(race)
        assert len(open_ones) == 1
        assert world.metrics.resumes.labels("resumed")._value.get() == 5
        assert world.metrics.resumes.labels("too_often")._value.get() == 5


async def test_a_hundred_resumes_a_second_are_answered_once_a_second(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        codes: list[int] = []
        for _ in range(300):
            async with resuming(world, secret) as device:
                await trio.sleep(0.01)
                if device.closed is not None:
                    codes.append(device.closed.code)
            await trio.aclose_forcefully(device.stream)
        assert 5 <= 300 - codes.count(1013) <= 9
        await trio.sleep(5)
        async with resuming(world, secret) as device:
            assert device.statuses()[0] == "resumed"
            await device.finish()


async def test_a_drain_ends_sessions_that_wait_and_takes_none_up(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await drop(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.server._drain_sessions)
            world.server.drain()
            target = f"GET /listen?uid=u1&resume={secret} HTTP/1.1\r\nHost: x\r\n"
            stream = world.open_stream()
            await stream.send_all(
                f"{target}Connection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 503")
        assert not world.server.sessions
        balance = first.session.coverage.balance()
        assert balance.finalised == balance.received == 7 * RATE
        assert world.server.cut_sessions == 0


async def test_a_full_server_takes_its_own_sessions_up(autojump_clock: MockClock) -> None:
    async with listening_server(max_sessions=1) as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        async with resuming(world, secret) as second:
            assert second.statuses()[0] == "resumed"
            await second.finish()


async def test_of_too_many_that_wait_the_one_that_waits_longest_gives_way(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(max_sessions=4) as (world, _fake):
        secrets = []
        for number in range(3):
            async with world.device(uid=f"u{number}") as device:
                secrets.append(await until_ready(device))
                await drop(device)
            await trio.sleep(1)
        for number, status in enumerate(["resume_unknown", "resumed", "resumed"]):
            async with resuming(world, secrets[number], uid=f"u{number}") as device:
                assert device.statuses()[0] == status
                await device.finish()


async def test_a_session_is_not_taken_for_idle_or_vanished_while_its_device_is_away(
    autojump_clock: MockClock,
) -> None:
    query = [("encoding", "linear16"), ("sample_rate", RATE), ("resume", "")]
    async with listening_server(heartbeat_seconds=2.0) as (world, _fake):
        async with world.client("/v1/listen", query) as first:
            secret = await until_ready(first)
            await first.stream_audio(PCM[: 3 * SECOND], SECOND)
            await drop(first)
            await trio.sleep(25)
            again = [*query[:2], ("resume", secret), ("after", 1), ("acknowledge", "true")]
            async with world.client("/v1/listen", again) as second:
                assert second.statuses()[0] == "resumed"
                await second.stream_audio(PCM[3 * SECOND :], SECOND)
                second.send('{"type":"CloseStream"}')
                await second.ended()
    texts = [
        m["channel"]["alternatives"][0]["transcript"]
        for m in {m["seq"]: m for m in [*first.raw, *second.raw] if "seq" in m}.values()
        if m["type"] == "Results" and m["is_final"]
    ]
    assert words_of([{"text": " ".join(texts)}]) == TALK.transcript()
    assert second.events("audio_received")
    assert second.events("Metadata")


async def test_a_client_of_deepgram_s_that_knows_nothing_of_this_is_told_nothing_of_it(
    autojump_clock: MockClock,
) -> None:
    query = [("encoding", "linear16"), ("sample_rate", RATE)]
    async with listening_server() as (world, _fake), world.client("/v1/listen", query) as device:
        await device.stream_audio(PCM[: 5 * SECOND], SECOND)
        await trio.sleep(5)
        await drop(device)
        await trio.sleep(5)
        assert not world.server.sessions
    assert device.numbers == []
    assert {m["type"] for m in device.messages} == {"Results"}


async def test_the_form_of_the_first_path_is_kept_on_another(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        await drop(first)
        query = {"uid": "u1", "resume": secret, "after": first.numbers[-1]}
        async with world.client("/v2/listen", query) as second:
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_a_device_that_reads_slowly_gets_the_past_before_the_present(
    autojump_clock: MockClock,
) -> None:
    """Two hundred kilobytes of segments through a small pipe, while more is said."""
    script = random_script(Random(9), 1500.0)
    pcm = synthesise(script, RATE)
    async with listening_server() as (world, _fake), world.device(interim="true") as first:
        secret = await until_ready(first)
        await first.stream_audio(pcm[: -20 * SECOND], SECOND, message_seconds=0.5, speed=1.2)
        await first.websocket.drained()
        await trio.testing.wait_all_tasks_blocked()
        assert first.session.outbox.held_bytes < MAX_OUTBOX_BYTES
        past = first.session.outbox.last_seq
        stream = world.open_stream(2_000)
        query = f"uid=u1&interim=true&acknowledge=true&after=0&resume={secret}"
        url = f"ws://server/listen?{query}"
        second = Device(await open_websocket(stream, url), stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.websocket.run_writer, 1e6)
            nursery.start_soon(second.stream_audio, pcm[-20 * SECOND :], SECOND)
            # Not so long that the server gives it up.
            await trio.sleep(9.0)
            nursery.start_soon(second.read)
            await trio.sleep(15.0)
            await second.finish()
            nursery.cancel_scope.cancel()
    assert second.numbers == list(range(1, second.numbers[-1] + 1))
    assert words_of(second.segments) == script.transcript()
    first_told = second.messages.index(second.events("audio_received")[0])
    numbers = [n for m in second.raw[:first_told] for n in numbers_of(m)]
    assert max(numbers) >= past, "audio was acknowledged before the past was told"
    next_start, interims = math.inf, 0
    for message in reversed(second.messages):
        segments = message if isinstance(message, list) else message.get("segments", [])
        if isinstance(message, dict) and message.get("type") == "interim":
            interims += 1
            assert segments[0]["start"] <= next_start, "the present came before the past"
        elif segments:
            next_start = min(next_start, segments[0]["start"])
    assert interims


async def test_a_provider_that_is_away_as_well_costs_no_word(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, fake), world.device() as first:
        secret = await until_ready(first)
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        fake.faults = FaultScript((), (Unreachable(),))
        await drop(first)
        await trio.sleep(20)
        fake.faults = FaultScript()
        async with resuming(world, secret, after=first.numbers[-1]) as second:
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            await second.finish()
    assert words_of(first.segments + second.segments) == TALK.transcript()


async def test_no_secret_is_logged_or_shown(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug", "json")
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        await drop(first)
        async with resuming(world, secret, uid="other") as refused:
            await refused.ended()
        async with resuming(world, secret) as second:
            held = [getattr(first.session, name) for name in Session.__slots__]
            shown = repr(held) + repr(world.server._shared)
            await second.finish()
    captured = capsys.readouterr()
    assert "session_resumed" in captured.err
    assert len(secret) >= 22
    assert secret not in captured.out + captured.err + shown


async def test_a_device_that_is_lost_counts_for_what_it_leaves_behind_in_memory(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        secret = await until_ready(first)
        before = world.server.gone_connections
        await drop(first)
        assert world.server.gone_connections == before + 1
        async with resuming(world, secret) as second:
            assert world.server.gone_connections == before + 1
            await second.finish()


async def test_neither_lost_lines_nor_lost_connections_leave_timers_behind(
    autojump_clock: MockClock,
) -> None:
    """A line has one for its heartbeat, a connection to the provider one for what is due."""
    async with (
        open_timers(),
        listening_server(faults=FaultScript.of([Close(code=1001, after_seconds=3.0)])) as (
            world,
            fake,
        ),
        world.device() as first,
    ):
        timers = running_timers()
        assert timers is not None
        secret = await until_ready(first)
        assert timers.running == 2
        await first.stream_audio(PCM[: 7 * SECOND], SECOND)
        assert len(fake.connections) == 2
        assert timers.running == 2
        await drop(first)
        await trio.testing.wait_all_tasks_blocked()
        assert timers.running == 1
        async with resuming(world, secret) as second:
            await trio.testing.wait_all_tasks_blocked()
            assert timers.running == 2
            await second.stream_audio(PCM[7 * SECOND :], SECOND)
            await second.finish()
        await trio.sleep(60)
        assert timers.running == 0


async def test_no_timer_outlives_the_moment_in_which_its_session_s_nursery_ends(
    autojump_clock: MockClock,
) -> None:
    """What a timer raises later could not be raised there, and would end the task of all timers."""
    seen: list[int] = []

    async def look_when_cancelled() -> None:
        timers = running_timers()
        assert timers is not None
        try:
            await trio.sleep_forever()
        finally:
            seen.append(timers.running)

    async with (
        open_timers(),
        listening_server() as (world, _fake),
        world.device(acknowledge="true") as device,
    ):
        nursery = device.session._nursery
        assert nursery is not None
        nursery.start_soon(look_when_cancelled)
        await device.stream_audio(PCM[: 3 * SECOND], SECOND)
        await device.finish()
    assert seen == [0]
