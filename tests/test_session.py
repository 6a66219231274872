"""Whole sessions against the fake Deepgram that listens: the straight path."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.core.json import dumps
from omi_rt.deepgram.transcriber import Transcriber
from omi_rt.fake import FaultScript, Options, Script, random_script, synthesise
from omi_rt.fake.faults import ConnectionPlan, Silence
from omi_rt.fake.speech import utterance
from omi_rt.log import configure_logging
from omi_rt.server.line import UNDECODABLE_IN_A_ROW
from tests.harness import CLOSE_STREAM, assert_whole, listening_server, play

if TYPE_CHECKING:
    from trio.testing import MockClock

TALK = Script(
    [*utterance("amber bako celu", 1, 0.5), *utterance("dorin elfa fimo garo", 4, 2.5)], 5.0
)


@pytest.mark.parametrize("codec", ["pcm16", "linear16", "pcm8"])
@pytest.mark.parametrize("rate", [8000, 16000])
async def test_pcm_comes_out_word_for_word_with_exact_times(
    autojump_clock: MockClock, codec: str, rate: int
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.device(codec=codec, sample_rate=rate) as device,
    ):
        ended = await play(device, TALK, rate)
    assert_whole(device, TALK)
    assert ended["sent"] == {
        "live": 5.0,
        "replay": 0.0,
        "overlap": 0.0,
        "lead_in": 0.0,
        "filler": 0.0,
    }
    assert device.closed is not None
    assert device.closed.code == 1000
    first, second = device.segments
    assert first["start"] == pytest.approx(TALK.words[0].start, abs=0.001)
    assert first["end"] == pytest.approx(TALK.words[2].end, abs=0.001)
    assert second["start"] == pytest.approx(TALK.words[3].start, abs=0.001)
    assert second["end"] == pytest.approx(TALK.words[6].end, abs=0.001)


@pytest.mark.parametrize(("codec", "samples"), [("opus", 160), ("opus_fs320", 320)])
async def test_opus_comes_out_word_for_word_with_times_within_30_ms(
    autojump_clock: MockClock, codec: str, samples: int
) -> None:
    encoder = OpusEncoder(16000, 1)
    pcm = synthesise(TALK, 16000)
    async with (
        listening_server() as (world, _fake),
        world.device(codec=codec, sample_rate=16000) as device,
    ):
        for start in range(0, len(pcm), 2 * samples):
            await trio.sleep(samples / 16000)
            device.send(encoder.encode(pcm[start : start + 2 * samples]))
        await device.finish()
    assert_whole(device, TALK, within=0.03)


async def test_each_message_of_a_device_is_one_to_the_provider(autojump_clock: MockClock) -> None:
    pcm = synthesise(TALK, 8000)
    async with (
        listening_server() as (world, fake),
        world.device(sample_rate=8000) as device,
    ):
        for start in range(0, len(pcm), 320):
            await trio.sleep(0.02)
            device.send(pcm[start : start + 320])
        await device.finish()
    assert_whole(device, TALK)
    assert 250 <= fake.connections[0].audio_messages <= 260


async def test_stereo_is_transcribed_channel_by_channel(autojump_clock: MockClock) -> None:
    script = random_script(Random(5), 20.0, channels=2)
    async with listening_server() as (world, _fake), world.device(channels=2) as device:
        await play(device, script, 8000)
    assert_whole(device, script)


async def test_the_audio_of_a_final_is_finalised_when_its_segments_have_come(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, 8000)[: 16_000 * 3], 16_000)
        await device.until(lambda: device.segments)
        balance = device.session.coverage.balance()
        assert balance.finalised >= 8000 * device.segments[-1]["end"]


async def test_segments_have_the_documented_fields(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await play(device, TALK, 8000)
    first, second = device.segments
    assert first.keys() == {
        "id",
        "speaker",
        "speaker_id",
        "start",
        "end",
        "text",
        "is_user",
        "person_id",
    }
    assert first["text"] == "Amber bako celu."
    assert (first["speaker"], first["speaker_id"]) == ("SPEAKER_00", 0)
    assert (second["speaker"], second["speaker_id"]) == ("SPEAKER_01", 1)
    assert first["id"] != second["id"]
    assert (first["is_user"], first["person_id"]) == (False, None)
    assert isinstance(first["start"], float)


def test_times_are_written_with_a_decimal_point() -> None:
    assert dumps({"start": 0.0, "end": 12.0}) == '{"start":0.0,"end":12.0}'


async def test_only_arrays_with_something_in_them_are_sent(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.stream_audio(bytes(16000 * 20), 16000)
        assert [m for m in device.messages if isinstance(m, list)] == []
        await play(device, TALK, 8000)
    assert len([m for m in device.messages if isinstance(m, list)]) == 2
    assert [] not in device.messages


async def test_every_row_of_the_configuration_goes_up_and_the_key_in_the_header(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, fake),
        world.device(codec="pcm16", sample_rate=16000, language="auto") as device,
    ):
        await device.finish()
    (record,) = fake.connections
    query = {name: value for name, (value,) in parse_qs(urlsplit(record.target).query).items()}
    assert query == {
        "language": "multi",
        "sample_rate": "16000",
        "encoding": "linear16",
        "channels": "1",
        "punctuate": "true",
        "no_delay": "true",
        "endpointing": "100",
        "interim_results": "false",
        "smart_format": "true",
        "profanity_filter": "false",
        "diarize": "true",
        "filler_words": "false",
        "multichannel": "false",
        "model": "nova-2-general",
    }
    assert record.headers["authorization"] == "Token secret"
    assert record.close_stream_at is not None
    assert record.metadata_sent


async def test_the_device_is_told_from_the_start_to_ready(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.until(lambda: "ready" in device.statuses())
        assert device.statuses() == ["initiating", "ready"]
        ready = device.events("service_status")[-1]
        assert ready["session_id"] == device.session.id
        assert ready["started_at"].endswith("+00:00")


async def test_audio_from_the_first_byte_is_kept_while_deepgram_is_dialled(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        dial = world.provider.dial

        async def slow(url: str) -> trio.abc.Stream:
            await trio.sleep(3)
            return await dial(url)

        world.provider.dial = slow
        async with world.device() as device:
            await play(device, TALK, 8000)
    assert_whole(device, TALK)


async def test_the_heartbeat_comes_at_its_interval(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await trio.sleep(95)
        assert len(device.events("ping")) == 3


async def test_keepalive_goes_up_when_nothing_else_does(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, fake), world.device() as device:
        device.send(bytes(1600))
        await trio.sleep(60)
        await device.finish()
    (record,) = fake.connections
    # Nothing sounded: there is nothing to ask for.
    assert record.texts["Finalize"] == 0
    assert record.texts["KeepAlive"] == 15
    assert record.audio_seconds == pytest.approx(0.1)


async def test_a_connection_without_audio_is_held_by_silence_that_moves_no_time(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake), world.device() as device:
        await trio.sleep(60)
        ended = await play(device, TALK, 8000)
    assert len(fake.connections) == 1
    assert ended["sent"]["filler"] == 0.1
    assert_whole(device, TALK)


async def test_an_odd_byte_of_pcm_is_carried_over(autojump_clock: MockClock) -> None:
    pcm = synthesise(TALK, 8000)
    async with listening_server() as (world, _fake), world.device() as device:
        for start in range(0, len(pcm), 1601):
            device.send(pcm[start : start + 1601])
            await trio.sleep(0.1)
        await device.finish()
    assert_whole(device, TALK)


async def test_the_app_s_heartbeat_answer_is_no_audio(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        device.send(b"\x8a\x00")
        ended = await device.finish()
    assert ended["received"] == 0.0


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ('{"type":"KeepAlive"}', "KeepAlive"),
        ('{"type":["CloseStream"]}', None),
        ("ping", None),
        ("null", None),
        ('{"type":"' + "x" * 65 + '"}', "x" * 64),
    ],
)
async def test_text_that_is_not_known_is_answered_once_a_session(
    autojump_clock: MockClock, text: str, received: str | None
) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        for each in (text, "ping", "{", "[]", "null", '{"type":"unknown"}', text):
            device.send(each)
        await trio.sleep(1)
        assert device.closed is None
        assert device.event("unknown_message") == {
            "type": "unknown_message",
            "received": received,
            "known": ["CloseStream", "speaker_assigned"],
        }
        assert (await device.finish())["reason"] == "client_closed_stream"


async def test_text_that_is_known_is_not_answered_as_unknown(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.finish()
        assert device.events("unknown_message") == []


async def test_an_undecodable_packet_is_concealed_and_fifty_in_a_row_are_told_once(
    autojump_clock: MockClock,
) -> None:
    encoder = OpusEncoder(16000, 1)
    good = encoder.encode(bytes(320))
    async with (
        listening_server() as (world, _fake),
        world.device(codec="opus", sample_rate=16000) as device,
    ):
        device.send(good)
        for _ in range(49):
            device.send(b"\xff\xff\xff")
        await trio.sleep(1)
        assert device.events("undecodable_audio") == []
        device.send(b"\xff\xff\xff")
        await trio.sleep(1)
        assert len(device.events("undecodable_audio")) == 1
        for _ in range(199):
            device.send(b"\xff\xff\xff")
        await trio.sleep(1)
        assert device.event("undecodable_audio")["in_a_row"] == 50
        ended = await device.finish()
    assert ended["received"] == 2.5


async def test_a_device_that_disconnects_still_has_its_audio_finalised(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(resume_seconds=5.0) as (world, fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, 8000), 16000)
        await device.websocket.drained()
        gone_at = trio.current_time()
        await trio.aclose_forcefully(device.stream)
        await world.sessions_ended()
        assert 5 <= trio.current_time() - gone_at < 5 + 15
        balance = device.session.coverage.balance()
        assert balance.finalised == balance.received == 40_000
    assert fake.connections[0].close_stream_at is not None


async def test_a_fault_inside_one_session_touches_no_other(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        async with world.device() as broken, world.device(uid="u2") as other:
            await trio.sleep(1)

            class Exploding:
                concealed_packets = 0
                failures_in_a_row = 0

                def decode(self, _message: bytes) -> bytes:
                    raise ZeroDivisionError("a bug")

                def cut(self) -> None:
                    pass

                def close(self) -> None:
                    pass

            broken.session.decoder = Exploding()
            broken.send(bytes(1600))
            await broken.ended()
            assert broken.closed is not None
            assert broken.closed.code == 1011
            await play(other, TALK, 8000)
            assert_whole(other, TALK)
        assert world.metrics.faults._value.get() == 1


async def test_nothing_secret_is_logged(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    async with (
        listening_server(options=Options(keys=frozenset({"other"}))) as (world, _fake),
        world.device() as device,
    ):
        await device.ended()
    logged = capsys.readouterr()
    assert "provider_failed" in logged.err
    assert "secret" not in logged.out + logged.err + repr(device.messages)


async def test_a_drain_ends_with_the_last_session(autojump_clock: MockClock) -> None:
    async with listening_server(drain_seconds=30.0) as (world, _fake), world.device() as device:
        started = trio.current_time()
        await world.server._drain_sessions()
        # The device has 5 s to close its side, which this one does not.
        assert trio.current_time() - started < 6.0
        await device.ended()
        assert device.closed is not None
        assert device.closed.code == 1001


async def test_audio_that_comes_while_the_transcription_ends_is_given_up_and_its_memory_freed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Transcriber.run

    async def run_and_receive(transcriber: Transcriber) -> None:
        try:
            await run(transcriber)
        finally:
            transcriber.receive(bytes(1600), trio.current_time())

    monkeypatch.setattr(Transcriber, "run", run_and_receive)
    async with listening_server() as (world, _fake), world.device() as device:
        await play(device, TALK, 8000)
        await world.sessions_ended()
        balance = device.session.coverage.balance()
        assert (balance.received, balance.lost, balance.pending) == (40_800, 800, 0)
        assert world.server.budget.held_bytes == 0


async def test_after_closestream_no_audio_is_taken_and_the_reason_stays(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as device:
        await device.stream_audio(synthesise(TALK, 8000), 16_000)
        device.send(CLOSE_STREAM)
        device.send(bytes(1600))
        await trio.sleep(0.001)
        device.session.drain(5.0)
        await device.ended()
        assert device.closed is not None
        assert (device.closed.code, device.closed.reason) == (1000, "client_closed_stream")
    assert_whole(device, TALK)
    assert device.event("session_ended")["reason"] == "client_closed_stream"


@pytest.mark.parametrize("codec", ["pcm16", "opus"])
async def test_a_frame_that_goes_straight_comes_to_the_same_as_any_other(
    autojump_clock: MockClock, codec: str
) -> None:
    script = random_script(Random(5), 12.0)
    pcm, encoder = synthesise(script, 16_000), OpusEncoder(16_000, 1)
    packets = (
        [encoder.encode(pcm[start : start + 640]) for start in range(0, len(pcm), 640)]
        if codec == "opus"
        else [pcm[start : start + 640] for start in range(0, len(pcm), 640)]
    )
    async with (
        listening_server() as (world, _fake),
        world.device(codec=codec, sample_rate=16_000) as device,
    ):
        line = device.session._line
        for packet in packets:
            assert line._take_frame(packet, trio.current_time()) is None
            await trio.sleep(0.02)
        await device.finish()
    assert_whole(device, script, within=None if codec == "opus" else 0.002)


async def test_what_is_no_audio_or_came_before_is_left_out_on_the_straight_way_too(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.device() as first:
        await first.until(lambda: "ready" in first.statuses())
        secret = next(m["resume"] for m in first.raw if "resume" in m)
        first.send(bytes(1600))
        await trio.testing.wait_all_tasks_blocked()
        line, now = first.session._line, trio.current_time()
        assert line._take_frame(b"\x8a\x00", now) is None, "the app's answer to a ping"
        assert first.session.received_samples == 800
        query = {"uid": "u1", "resume": secret, "from": 0.05}
        async with world.client("/listen", query) as second:
            assert line._take_frame(bytes(1600), now) == [], "the line has been taken over"
            await second.until(lambda: second.messages)
            line = first.session._line
            assert line._take_frame(bytes(640), now) is None
            assert first.session.received_samples == 800
            assert line._take_frame(bytes(640), now) is None
            assert first.session.received_samples == 1040
            ended = await second.finish()
    assert ended["received"] == 0.13


async def test_the_straight_way_ends_where_the_backlog_is_full_or_all_of_them_hold_much(
    autojump_clock: MockClock,
) -> None:
    one_second = bytes(16_000)
    faults = FaultScript((ConnectionPlan((Silence(),)),))
    async with (
        listening_server(faults=faults, backlog_seconds=10, backlog_bytes=10_000_000) as (world, _),
        world.device() as device,
    ):
        await device.until(lambda: "ready" in device.statuses())
        session, now = device.session, trio.current_time()
        line, budget = session._line, session._line._shared.budget
        for _ in range(9):
            assert line._take_frame(one_second, now) is None
        assert line._take_frame(one_second, now) == []
        session.coverage.finalise(0, 5 * 8000)
        assert line._take_frame(one_second, now) is None
        others = int(budget.scarce_bytes)
        budget.held_bytes += others
        assert line._take_frame(one_second, now) == []
        budget.held_bytes -= others
        assert line._take_frame(one_second, now) is None
        session.drain(0.0)


async def test_packets_that_cannot_be_decoded_are_told_on_the_straight_way_too(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.device(codec="opus", sample_rate=16_000) as device,
    ):
        for _ in range(UNDECODABLE_IN_A_ROW):
            device.session._line._take_frame(b"\xff\xff\xff\xff", trio.current_time())
        await device.finish()
    assert len(device.events("undecodable_audio")) == 1
