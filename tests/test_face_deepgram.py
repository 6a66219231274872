"""`/v1/listen`: Deepgram's live API as this server speaks it, in whole sessions."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import pytest
import trio
from attrs import evolve

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.core.errors import HandshakeFailed
from omi_rt.faces.custom_stt import CustomSTTFace
from omi_rt.faces.deepgram import DeepgramFace
from omi_rt.faces.face import Face
from omi_rt.faces.omi import OmiFace
from omi_rt.faces.stream import StreamFace
from omi_rt.fake import FaultScript, Script, plain_words, synthesise
from omi_rt.fake.faults import Close, Drop, Silence
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import open_websocket
from tests.harness import CLOSE_STREAM, Device, World, listening_server, split_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio.testing import MockClock

PATH = "/v1/listen"
QUERY = {
    "model": "nova-3",
    "encoding": "linear16",
    "sample_rate": "16000",
    "punctuate": "true",
    "diarize": "true",
}
KEY = {"Authorization": "Token sesame"}
TALK = Script(
    [*utterance("amber bako celu", 1, 0.5), *utterance("dorin elfa fimo garo", 4, 2.5)], 5.0
)
LONG_TALK = Script(
    [
        word
        for number, words in enumerate(("amber bako celu", "dorin elfa fimo", "garo amber celu"))
        for word in utterance(words, 1 + number, 0.5 + 4 * number)
    ],
    14.0,
)


def results(device: Device) -> list[dict[str, Any]]:
    return device.events("Results")


def words(device: Device) -> list[dict[str, Any]]:
    return [
        word
        for message in results(device)
        for word in message["channel"]["alternatives"][0]["words"]
    ]


def transcript(device: Device) -> list[str]:
    alternatives = [message["channel"]["alternatives"][0] for message in results(device)]
    return plain_words(" ".join(alternative["transcript"] for alternative in alternatives))


async def play(device: Device, script: Script, rate: int = 16_000, **options: Any) -> None:
    await device.stream_audio(synthesise(script, rate), rate * 2 * script.channels, **options)
    device.send(CLOSE_STREAM)
    await device.ended()


async def refusal(
    world: World, query: Any, headers: Mapping[str, str] = KEY
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """What an upgrade is answered that must not become a session."""
    head = [
        f"GET {PATH}?{urlencode(query, doseq=True)} HTTP/1.1",
        "Host: server",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    stream = world.open_stream()
    await stream.send_all("\r\n".join([*head, "", ""]).encode())
    data = b""
    with trio.move_on_after(10):
        while more := await stream.receive_some():
            data += more
    status, fields, body = split_response(data)
    assert not world.server.sessions
    return status, fields, json.loads(body)


async def test_a_client_of_deepgrams_gets_every_word_once_and_the_summary_last(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, fake),
        world.client(PATH, QUERY, headers=KEY) as device,
    ):
        await play(device, TALK)
    assert transcript(device) == TALK.transcript()
    assert device.closed is not None
    assert device.closed.code == 1000
    assert [message["type"] for message in device.messages[-1:]] == ["Metadata"]
    metadata = device.messages[-1]
    assert metadata["duration"] == 5.0
    assert metadata["channels"] == 1
    assert metadata["sha256"] == hashlib.sha256(synthesise(TALK, 16_000)).hexdigest()
    ids = {message["metadata"]["request_id"] for message in results(device)}
    assert ids == {metadata["request_id"]} != {fake.connections[0].request_id}
    assert {message["type"] for message in device.messages} == {"Results", "Metadata"}


async def test_words_have_all_fields_that_were_asked_for_and_times_on_the_session_clock(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client(PATH, QUERY, headers=KEY) as device,
    ):
        await play(device, TALK)
    for word, said in zip(words(device), TALK.words, strict=True):
        assert word["start"] == pytest.approx(said.start, abs=0.001)
        assert word["end"] == pytest.approx(said.end, abs=0.001)
        assert word.keys() == {
            "word",
            "punctuated_word",
            "start",
            "end",
            "confidence",
            "speaker",
        }
    assert [word["word"] for word in words(device)] == [word.text for word in TALK.words]
    assert words(device)[0]["punctuated_word"] == "Amber."
    assert {word["speaker"] for word in words(device)} == {0, 1}


async def test_finals_follow_each_other_without_a_gap_from_the_first_second_to_the_last(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client(PATH, QUERY, headers=KEY) as device,
    ):
        await play(device, LONG_TALK)
    end = 0.0
    for message in results(device):
        assert message["start"] == pytest.approx(end, abs=1e-6)
        assert message["is_final"] is True
        assert message["channel_index"] == [0, 1]
        end = message["start"] + message["duration"]
    assert end == pytest.approx(14.0)


async def test_without_punctuation_and_diarization_words_are_bare(
    autojump_clock: MockClock,
) -> None:
    query = {"encoding": "linear16", "sample_rate": "16000"}
    async with listening_server() as (world, fake), world.client(PATH, query) as device:
        await play(device, TALK)
    assert words(device)[0].keys() == {"word", "start", "end", "confidence"}
    sent = dict(part.split("=") for part in fake.connections[0].target.partition("?")[2].split("&"))
    assert sent == {
        "encoding": "linear16",
        "sample_rate": "16000",
        "channels": "1",
        "multichannel": "false",
    }


async def test_the_clients_own_parameters_go_up_as_they_came(autojump_clock: MockClock) -> None:
    query = [
        *QUERY.items(),
        ("keyterm", "Omi"),
        ("keyterm", "real time"),
        ("tag", "a"),
        ("endpointing", "300"),
        ("smart_format", "true"),
        ("numerals", "false"),
        ("filler_words", "true"),
        ("no_delay", "true"),
        ("mip_opt_out", "true"),
        ("redact", "pci"),
        ("language", "en-US"),
    ]
    async with listening_server() as (world, fake), world.client(PATH, query) as device:
        await play(device, TALK)
    target = fake.connections[0].target
    assert target is not None
    sent = target.partition("?")[2].split("&")
    for name, value in query:
        if name not in {"encoding", "sample_rate"}:
            assert urlencode({name: value}) in sent
    assert [part for part in sent if part.startswith("keyterm")] == [
        "keyterm=Omi",
        "keyterm=real+time",
    ]


async def test_the_operators_options_go_up_where_the_client_says_nothing(
    autojump_clock: MockClock,
) -> None:
    options = {"mip_opt_out": ("true",), "model": ("nova-2",)}
    async with (
        listening_server(deepgram_options=options) as (world, fake),
        world.client(PATH, QUERY) as device,
    ):
        await play(device, TALK)
    assert "mip_opt_out=true" in fake.connections[0].target
    assert "model=nova-3" in fake.connections[0].target


async def test_options_that_cannot_be_honoured_are_taken_as_false(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"detect_entities": "false", "measurements": "false", "paragraphs": "False"}
    async with listening_server() as (world, fake), world.client(PATH, query) as device:
        await play(device, TALK)
    assert transcript(device) == TALK.transcript()
    assert "detect_entities" not in fake.connections[0].target


@pytest.mark.parametrize("drop", [Drop(after_results=1), Close(code=1011, after_results=1)])
async def test_the_client_does_not_notice_a_connection_that_is_lost(
    autojump_clock: MockClock, drop: Any
) -> None:
    async with (
        listening_server(faults=FaultScript.of([drop])) as (world, fake),
        world.client(PATH, QUERY, headers=KEY) as device,
    ):
        await play(device, LONG_TALK)
    assert len(fake.connections) > 1
    assert transcript(device) == LONG_TALK.transcript()
    for word, said in zip(words(device), LONG_TALK.words, strict=True):
        assert word["start"] == pytest.approx(said.start, abs=0.001)
    assert {message["type"] for message in device.messages} == {"Results", "Metadata"}
    assert len({message["metadata"]["request_id"] for message in results(device)}) == 1


async def test_opus_packets_are_taken_bare(autojump_clock: MockClock) -> None:
    encoder, pcm = OpusEncoder(16_000, 1), synthesise(TALK, 16_000)
    query = QUERY | {"encoding": "opus"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        for start in range(0, len(pcm), 640):
            await trio.sleep(0.02)
            device.send(encoder.encode(pcm[start : start + 640]))
        device.send(CLOSE_STREAM)
        await device.ended()
    assert transcript(device) == TALK.transcript()


def mulaw(pcm: bytes) -> bytes:
    """Encode as G.711 says: the nearest code of the 256."""
    from omi_rt.codecs.g711 import G711Decoder

    table = np.frombuffer(G711Decoder("mulaw", 1).decode(bytes(range(256))), "<i2").astype(int)
    order = np.argsort(table, kind="stable")
    places = np.searchsorted(table[order], np.frombuffer(pcm, "<i2"))
    return bytes(order[np.clip(places, 0, 255)].astype(np.uint8))


async def test_mulaw_is_taken(autojump_clock: MockClock) -> None:
    query = QUERY | {"encoding": "mulaw", "sample_rate": "8000"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        await device.stream_audio(mulaw(synthesise(TALK, 8_000)), 8_000)
        device.send(CLOSE_STREAM)
        await device.ended()
    assert transcript(device) == TALK.transcript()
    assert device.event("Metadata")["duration"] == 5.0


async def test_channels_are_told_apart_where_the_client_wants_them_so(
    autojump_clock: MockClock,
) -> None:
    script = Script(
        [*utterance("amber bako", 1, 0.5), *utterance("celu dorin", 2, 0.8, channel=1)], 3.0, 2
    )
    query = QUERY | {"channels": "2", "multichannel": "true"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        await play(device, script)
    for channel in (0, 1):
        own = [m for m in results(device) if m["channel_index"] == [channel, 2]]
        text = " ".join(m["channel"]["alternatives"][0]["transcript"] for m in own)
        assert plain_words(text) == script.transcript(channel)
    assert device.event("Metadata")["channels"] == 2


async def test_an_empty_message_ends_the_stream(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        await device.stream_audio(synthesise(TALK, 16_000), 32_000)
        device.send(b"")
        await device.ended()
    assert transcript(device) == TALK.transcript()
    assert device.closed is not None
    assert device.closed.code == 1000


async def test_a_client_that_goes_right_after_close_stream_has_its_words_finalised(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        await device.stream_audio(synthesise(TALK, 16_000), 32_000, speed=8)
        device.send(CLOSE_STREAM)
        device.websocket.close_nowait(1000)
        session = device.session
        await world.sessions_ended()
    balance = session.coverage.balance()
    assert (balance.finalised, balance.lost) == (5 * 16_000, 0)


async def test_keep_alive_may_come_before_any_audio(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        for _ in range(6):
            device.send('{"type":"KeepAlive"}')
            await trio.sleep(5)
        await play(device, TALK)
    assert transcript(device) == TALK.transcript()
    assert words(device)[0]["start"] == pytest.approx(0.5, abs=0.001)


async def test_keep_alive_without_end_and_never_audio_is_closed_as_idle(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        started = trio.current_time()
        while device.closed is None:
            device.send('{"type":"KeepAlive"}')
            await trio.sleep(3)
            assert trio.current_time() - started < 120
    assert device.closed.code == 1011
    assert device.closed.reason.startswith("NET-0001")


async def test_a_client_that_says_nothing_for_ten_seconds_is_closed_with_its_words(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        await device.stream_audio(synthesise(TALK, 16_000), 32_000)
        silent_since = trio.current_time()
        await device.ended()
        assert trio.current_time() - silent_since == pytest.approx(10, abs=1.5)
    assert transcript(device) == TALK.transcript()
    assert device.closed is not None
    assert (device.closed.code, device.closed.reason[:8]) == (1011, "NET-0001")


async def test_text_that_is_no_message_is_answered_a_few_times_and_the_stream_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        for text in ["no JSON", "[]", '{"type":"Nonsense"}', '{"type":["KeepAlive"]}'] * 5:
            device.send(text)
        await play(device, TALK)
    errors = device.events("Error")
    assert len(errors) == 10
    assert errors[0]["variant"] == "SchemaError"
    assert errors[0]["message"] == "no JSON"
    assert transcript(device) == TALK.transcript()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoding": ""}, "encoding"),
        ({"encoding": ["linear16", "opus"]}, "encoding"),
        ({"encoding": "flac"}, "encoding"),
        ({"encoding": None}, "encoding"),
        ({"sample_rate": None}, "sample_rate"),
        ({"sample_rate": "1e4"}, "sample_rate"),
        ({"sample_rate": "4000"}, "sample_rate"),
        ({"encoding": "opus", "sample_rate": "44100"}, "sample_rate"),
        ({"channels": "0"}, "channels"),
        ({"channels": "9"}, "channels"),
        ({"channels": "-1"}, "channels"),
        ({"punctuate": "yes"}, "punctuate"),
        ({"detect_entities": "true"}, "detect_entities"),
        ({"callback": "http://example.com"}, "callback"),
        ({"search": "omi"}, "search"),
        ({"alternatives": "3"}, "alternatives"),
        ({"nonsense": "1"}, "nonsense"),
        ({"utterance_end_ms": "1000"}, "utterance_end_ms"),
        ({"diarize": "false", "diarize_model": "v1"}, "diarize"),
        ({"keyterm": "a", "keywords": "b"}, "keyterm"),
        ({"endpointing": "soon"}, "endpointing"),
        ({"uid": "../etc"}, "uid"),
        ({"language": "english please"}, "language"),
        ({"keyterm": "['a', 'b']"}, "keyterm"),
        ({"token": "sesame"}, "token"),
    ],
)
async def test_a_bad_query_is_refused_before_the_upgrade_as_deepgram_refuses_it(
    autojump_clock: MockClock, change: dict[str, Any], named: str
) -> None:
    query = {name: value for name, value in (QUERY | change).items() if value is not None}
    async with listening_server() as (world, fake):
        status, headers, body = await refusal(world, query)
    assert status == 400
    assert named in headers["dg-error"]
    assert body == {
        "err_code": "INVALID_QUERY_PARAMETER",
        "err_msg": headers["dg-error"],
        "request_id": headers["dg-request-id"],
    }
    assert fake.connections == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Token sesame"},
        {"Authorization": "token sesame"},
        {"Authorization": "Bearer sesame"},
    ],
)
async def test_a_key_is_taken_under_either_scheme_and_goes_no_further(
    autojump_clock: MockClock, headers: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        listening_server() as (world, fake),
        world.client(PATH, QUERY, headers=headers) as device,
    ):
        await play(device, TALK)
    assert transcript(device) == TALK.transcript()
    assert fake.connections[0].headers["authorization"] == "Token secret"
    assert "sesame" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Authorization": "Token a", "Sec-WebSocket-Protocol": "token, b"}, {}, 400),
        (
            {"Authorization": "Token a", "Sec-WebSocket-Protocol": "token, b"},
            {"access_token": "c"},
            400,
        ),
        ({"Authorization": "Token"}, {}, 401),
        ({"Sec-WebSocket-Protocol": "token"}, {}, 401),
    ],
)
async def test_a_key_in_several_places_or_none_where_one_is_announced_is_refused(
    autojump_clock: MockClock, headers: dict[str, str], query: dict[str, str], status: int
) -> None:
    async with listening_server() as (world, _fake):
        found, fields, body = await refusal(world, QUERY | query, headers)
    assert found == status
    assert body["err_msg"] == fields["dg-error"]


async def test_the_upgrade_names_the_protocol_that_carried_the_key_and_no_compression(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        stream = world.open_stream()
        head = (
            f"GET {PATH}?{urlencode(QUERY)} HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: token, sesame\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
        )
        await stream.send_all(head.encode())
        answer = bytes(await stream.receive_some()).partition(b"\r\n\r\n")[0].lower()
        assert b"101" in answer
        assert b"sec-websocket-protocol: token\r\n" in answer + b"\r\n"
        assert b"dg-request-id: " in answer
        assert b"extensions" not in answer
        assert b"sesame" not in answer
        await stream.aclose()


async def test_an_upgrade_that_is_refused_is_no_session_to_a_websocket_client(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake):
        with pytest.raises(HandshakeFailed) as caught:
            await open_websocket(world.open_stream(), f"ws://server{PATH}?model=nova-3")
    assert caught.value.status == 400


def finals(device: Device) -> list[dict[str, Any]]:
    return [message for message in results(device) if message["is_final"]]


def said_finally(device: Device) -> list[str]:
    texts = [message["channel"]["alternatives"][0]["transcript"] for message in finals(device)]
    return plain_words(" ".join(texts))


async def test_finalize_is_answered_once_with_what_had_come_by_then(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"endpointing": "5000"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        pcm = synthesise(TALK, 16_000)
        await device.stream_audio(pcm[: 2 * 32_000], 32_000)
        device.send('{"type":"Finalize"}')
        await device.until(lambda: any(m["from_finalize"] for m in finals(device)), within=3)
        assert said_finally(device) == ["amber", "bako", "celu"]
        await device.stream_audio(pcm[2 * 32_000 :], 32_000)
        device.send(CLOSE_STREAM)
        await device.ended()
    assert [m["from_finalize"] for m in finals(device)].count(True) == 1
    assert said_finally(device) == TALK.transcript()


async def test_finalize_is_about_the_audio_before_it_though_both_arrive_at_once(
    autojump_clock: MockClock,
) -> None:
    pcm = synthesise(TALK, 16_000)
    together: list[str | bytes] = [pcm[: 2 * 32_000], '{"type":"Finalize"}', bytes(3_200)]
    query = QUERY | {"endpointing": "5000"}
    async with (
        listening_server() as (world, _fake),
        world.client(PATH, query, first=together, capacity_bytes=200_000) as device,
    ):
        await device.until(lambda: finals(device), within=6)
        answer = finals(device)[0]
    assert answer["from_finalize"] is True
    assert said_finally(device) == ["amber", "bako", "celu"]
    assert answer["start"] + answer["duration"] == pytest.approx(2.0, abs=0.3)


async def test_finalize_with_nothing_to_finalise_is_answered_at_once(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY) as device:
        device.send('{"type":"Finalize"}')
        await device.until(lambda: finals(device), within=0.1)
    (answer,) = finals(device)
    assert answer["from_finalize"] is True
    assert answer["channel"]["alternatives"][0]["words"] == []


async def test_a_finalize_that_a_lost_connection_took_is_answered_by_the_next(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"endpointing": "5000"}
    faults = FaultScript.of([Drop(after_audio=2.0)])
    async with (
        listening_server(faults=faults) as (world, fake),
        world.client(PATH, query) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000)[: 2 * 32_000], 32_000)
        device.send('{"type":"Finalize"}')
        await device.until(lambda: any(m["from_finalize"] for m in finals(device)), within=6)
        assert said_finally(device) == ["amber", "bako", "celu"]
    assert len(fake.connections) == 2


@pytest.mark.parametrize("channels", [1, 2])
async def test_each_connection_is_asked_once_what_the_ones_before_took_and_never_answered(
    autojump_clock: MockClock, channels: int
) -> None:
    query = QUERY | {"endpointing": "5000", "channels": str(channels), "multichannel": "true"}
    faults = FaultScript.of(
        [Silence(), Drop(after_seconds=3.0)],
        [Silence(), Drop(after_seconds=1.0)],
    )
    async with (
        listening_server(faults=faults) as (world, fake),
        world.client(PATH, query) as device,
    ):
        script = Script([evolve(w, channel=channels - 1) for w in TALK.words], 6.0, channels)
        pcm = synthesise(script, 16_000)
        await device.stream_audio(pcm[: 2 * 32_000 * channels], 32_000 * channels)
        device.send('{"type":"Finalize"}')
        await device.until(lambda: said_finally(device), within=8)
        await trio.sleep(2)
    assert [connection.texts["Finalize"] for connection in fake.connections] == [1, 1, 1]
    # Each channel has one answer, where nothing was said as well.
    answered = [m["channel_index"] for m in finals(device) if m["from_finalize"]]
    assert sorted(answered) == [[channel, channels] for channel in range(channels)]
    assert said_finally(device) == ["amber", "bako", "celu"]


async def test_a_thousand_finalizes_a_second_cost_the_provider_a_few(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake), world.client(PATH, QUERY) as device:
        pcm = synthesise(TALK, 16_000)
        for start in range(0, len(pcm), 3_200):
            await trio.sleep(0.1)
            device.send(pcm[start : start + 3_200])
            for _ in range(100):
                device.send('{"type":"Finalize"}')
        device.send(CLOSE_STREAM)
        await device.ended()
    assert said_finally(device) == TALK.transcript()
    assert fake.connections[0].texts["Finalize"] <= 50
    assert len(finals(device)) <= 100


async def test_interims_come_where_asked_for_and_are_replaced_by_the_final(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"interim_results": "true", "endpointing": "300"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        await play(device, LONG_TALK)
        assert device.session.coverage.balance().is_exact
    interims = [m for m in results(device) if not m["is_final"]]
    assert interims
    assert not any(m["speech_final"] or m["from_finalize"] for m in interims)
    assert said_finally(device) == LONG_TALK.transcript()
    times = {(w.text): (w.start, w.end) for w in LONG_TALK.words[:3]}
    for word in interims[0]["channel"]["alternatives"][0]["words"]:
        assert (word["start"], word["end"]) == pytest.approx(times[word["word"]], abs=0.001)


async def test_interims_after_a_reconnect_are_on_the_session_clock_and_new(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"interim_results": "true", "endpointing": "300"}
    faults = FaultScript.of([Drop(after_audio=3.0)])
    async with (
        listening_server(faults=faults) as (world, fake),
        world.client(PATH, query) as device,
    ):
        await play(device, LONG_TALK)
    assert len(fake.connections) == 2
    covered = 0.0
    for message in results(device):
        for word in message["channel"]["alternatives"][0]["words"]:
            assert word["end"] > covered
            (said,) = [w for w in LONG_TALK.words if abs(w.start - word["start"]) < 0.01]
            assert said.text == word["word"]
        if message["is_final"]:
            covered = message["start"] + message["duration"] - 0.1
    assert said_finally(device) == LONG_TALK.transcript()


async def test_speech_events_are_on_the_session_clock(autojump_clock: MockClock) -> None:
    query = QUERY | {
        "interim_results": "true",
        "vad_events": "true",
        "utterance_end_ms": "1000",
    }
    faults = FaultScript.of([Drop(after_audio=3.0)])
    async with (
        listening_server(faults=faults) as (world, _fake),
        world.client(PATH, query) as device,
    ):
        await play(device, LONG_TALK)
    starts = [event["timestamp"] for event in device.events("SpeechStarted")]
    ends = [event["last_word_end"] for event in device.events("UtteranceEnd")]
    for utterance_words in (LONG_TALK.words[:3], LONG_TALK.words[3:6], LONG_TALK.words[6:]):
        assert any(abs(utterance_words[0].start - start) < 0.01 for start in starts)
        assert any(abs(utterance_words[-1].end - end) < 0.01 for end in ends)
    assert all(event["channel"] == [0, 1] for event in device.events("UtteranceEnd"))


async def test_key_terms_are_changed_where_the_provider_has_them_and_kept_on_a_reconnect(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"keyterm": "old"}
    faults = FaultScript.of([Drop(after_audio=2.0)])
    async with (
        listening_server(faults=faults) as (world, fake),
        world.client(PATH, query) as device,
    ):
        device.send('{"type":"Configure","keyterms":["Omi","real time"]}')
        await play(device, TALK)
    answer = device.event("ConfigureSuccess")
    assert answer["keyterms"] == ["Omi", "real time"]
    assert answer["request_id"] == device.event("Metadata")["request_id"]
    first, second = (str(connection.target) for connection in fake.connections)
    assert "keyterm=old" in first
    assert "keyterm=Omi&keyterm=real+time" in second
    assert "old" not in second


@pytest.mark.parametrize(
    ("query", "configures", "code"),
    [
        ({"model": "nova-2"}, ['{"keyterms":["a"]}'], "CONFIGURE_KEYTERMS_NOT_SUPPORTED"),
        ({}, ['{"keyterms":["' + "a " * 501 + '"]}'], "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"),
        ({}, ['{"keyterms":["a"]}'] * 2, "CONFIGURE_ALREADY_PENDING"),
    ],
)
async def test_a_configure_that_cannot_be_is_answered_with_deepgrams_code(
    autojump_clock: MockClock, query: dict[str, str], configures: list[str], code: str
) -> None:
    async with listening_server() as (world, _fake), world.client(PATH, QUERY | query) as device:
        await trio.sleep(1)
        for configure in configures:
            device.send('{"type":"Configure",' + configure[1:])
        await play(device, TALK)
    assert device.event("ConfigureFailure")["code"] == code
    assert said_finally(device) == TALK.transcript()


async def test_a_full_server_says_so_in_deepgrams_form(autojump_clock: MockClock) -> None:
    async with (
        listening_server(max_sessions=1) as (world, _fake),
        world.client(PATH, QUERY) as device,
    ):
        with pytest.raises(HandshakeFailed) as caught:
            await open_websocket(world.open_stream(), f"ws://server{PATH}?{urlencode(QUERY)}")
        await play(device, TALK)
    assert caught.value.status == 503
    assert caught.value.retry_after is not None
    assert said_finally(device) == TALK.transcript()


async def test_a_foreign_page_is_refused_in_deepgrams_form(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake):
        status, headers, body = await refusal(world, QUERY, {"Origin": "https://evil.example"})
    assert (status, body["err_code"]) == (403, "FORBIDDEN")
    assert body["err_msg"] == headers["dg-error"]


async def test_other_sessions_do_not_notice_what_one_client_does_wrong(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client(PATH, QUERY) as good,
        world.client(PATH, QUERY, headers=KEY) as bad,
        world.client(PATH, QUERY) as worse,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(play, good, TALK)
        for text in ["{" * 60_000] * 5 + ["no JSON", '{"type":"Finalize","channel":99}'] * 100:
            bad.send(text)
        # A text frame that is no UTF-8, masked with zeros.
        await worse.stream.send_all(b"\x81\x82\x00\x00\x00\x00\xff\xfe")
        await worse.ended()
        bad.send(CLOSE_STREAM)
        await bad.ended()
    assert worse.closed is not None
    assert worse.closed.code == 1007
    assert bad.closed is not None
    assert bad.closed.code == 1000
    assert said_finally(good) == TALK.transcript()
    assert good.events("Error") == []
    assert "sesame" not in "".join(capsys.readouterr())


async def test_finalize_waits_for_audio_that_has_not_gone_up_yet(
    autojump_clock: MockClock,
) -> None:
    query = QUERY | {"endpointing": "5000"}
    async with listening_server() as (world, _fake), world.client(PATH, query) as device:
        await device.stream_audio(synthesise(TALK, 16_000), 32_000, speed=50)
        device.send('{"type":"Finalize"}')
        await device.until(lambda: any(m["from_finalize"] for m in finals(device)), within=5)
        assert said_finally(device) == TALK.transcript()


async def test_with_a_uid_voices_are_told_apart_for_us_and_words_say_whose_they_are(
    autojump_clock: MockClock,
) -> None:
    query = {"encoding": "linear16", "sample_rate": "16000", "uid": "u1"}
    async with listening_server() as (world, fake), world.client(PATH, query) as device:
        await play(device, TALK)
    assert "diarize=true" in str(fake.connections[0].target)
    assert words(device)[0].keys() == {
        "word",
        "start",
        "end",
        "confidence",
        "is_user",
        "person_id",
    }


def test_a_face_that_hears_audio_says_so() -> None:
    for face in (CustomSTTFace, DeepgramFace, OmiFace, StreamFace):
        assert face.hears_audio == (face.hear is not Face.hear)
