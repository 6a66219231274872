"""Omi's own wire in its versions: a strict client of each build, in whole sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.asks import Pass
from omi_rt.core.audio import AudioFormat
from omi_rt.faces.omi import OmiFace, Proof, Version
from omi_rt.faces.table import FACES
from omi_rt.fake import FaultScript, Options, Script, plain_words, synthesise
from omi_rt.fake.faults import Drop, Malformed
from omi_rt.fake.speech import utterance
from tests.harness import CLOSE_STREAM, Device, World, listening_server, words_of

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from trio.testing import MockClock

SOUND = {"codec": "pcm16", "sample_rate": 16_000}
AUTH = '{"type":"auth","token":"u1"}'
TALK = Script(
    [
        *utterance("amber bako celu", 1, 0.5),
        *utterance("dorin elfa", 1, 2.5),
        *utterance("fimo garo amber", 4, 4.0),
        *utterance("celu bako", 4, 9.0),
    ],
    11.0,
)


async def play(device: Device, script: Script = TALK, **options: Any) -> None:
    await device.stream_audio(synthesise(script, 16_000), 32_000, **options)
    device.send(CLOSE_STREAM)
    await device.ended()


def check_as_the_app_of_2024_does(messages: list[Any]) -> None:
    """What throws in the build of August 2024: a missing text, a time without a decimal point, a
    label without a number, an object where an array is meant."""
    for message in messages:
        if isinstance(message, dict):
            assert isinstance(message["type"], str)
            continue
        assert message, "an empty array was sent"
        for segment in message:
            assert isinstance(segment["text"], str)
            assert type(segment["start"]) is type(segment["end"]) is float
            assert int(segment["speaker"].split("_")[1]) == segment["speaker_id"]
            assert type(segment["is_user"]) is bool


def check_as_the_app_of_2025_does(messages: list[Any]) -> dict[str, dict[str, Any]]:
    """Replace segments by their id, as builds do since April 2025; returns what is shown."""
    shown: dict[str, dict[str, Any]] = {}
    for message in messages:
        if isinstance(message, list):
            for segment in message:
                assert segment["id"]
                shown[segment["id"]] = segment
    return shown


def open_path(world: World, path: str, **more: Any) -> AbstractAsyncContextManager[Device]:
    """Open a session of user u1 as a client of that path does."""
    is_new = path not in {"/listen", "/v2/listen"}
    headers = {"Authorization": "Bearer u1"} if is_new else None
    return world.client(
        path,
        SOUND | {"uid": "somebody" if is_new else "u1"} | more,
        headers=headers,
        is_loopback=True,
    )


@pytest.mark.parametrize("path", ["/listen", "/v2/listen", "/v3/listen"])
async def test_on_older_paths_every_message_is_new_text(
    autojump_clock: MockClock, path: str
) -> None:
    async with listening_server() as (world, _fake), open_path(world, path) as device:
        await play(device)
        assert device.session._request.uid == "u1"
    check_as_the_app_of_2024_does(device.messages)
    assert words_of(device.segments) == TALK.transcript()
    assert len({segment["id"] for segment in device.segments}) == len(device.segments)


async def test_on_v4_a_segment_grows_under_its_id(autojump_clock: MockClock) -> None:
    options = {"punctuate": ("false",), "smart_format": ("false",)}
    async with (
        listening_server(deepgram_options=options) as (world, _fake),
        open_path(world, "/v4/listen") as device,
    ):
        await play(device)
    shown = check_as_the_app_of_2025_does(device.messages)
    assert [segment["text"] for segment in shown.values()] == [
        "amber bako celu dorin elfa",
        "fimo garo amber",
        "celu bako",
    ]
    first = next(iter(shown.values()))
    assert first["start"] == pytest.approx(0.5, abs=0.001)
    assert first["end"] == pytest.approx(TALK.words[4].end, abs=0.001)
    assert [s["id"] for s in device.segments].count(first["id"]) == 2


async def test_on_v4_a_sentence_that_has_ended_does_not_grow(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), open_path(world, "/v4/listen") as device:
        await play(device)
    shown = check_as_the_app_of_2025_does(device.messages)
    assert len(shown) == len(device.segments) == 4
    assert all(segment["text"].endswith(".") for segment in shown.values())


@pytest.mark.parametrize("path", ["/v3/listen", "/v4/listen"])
@pytest.mark.parametrize(
    ("headers", "is_loopback", "named"),
    [
        ({}, True, "Authorization"),
        ({"Authorization": "Basic u1"}, True, "Authorization"),
        ({"Authorization": "Bearer "}, True, "token"),
        ({"Authorization": "Bearer ../etc"}, True, "token"),
        ({"Authorization": "Bearer " + "x" * 200}, True, "token"),
        ({"Authorization": "Bearer u1"}, False, "token"),
    ],
)
async def test_a_token_that_names_nobody_or_comes_from_elsewhere_is_refused_with_a_reason(
    autojump_clock: MockClock, path: str, headers: dict[str, str], is_loopback: bool, named: str
) -> None:
    async with (
        listening_server() as (world, fake),
        world.client(path, SOUND, headers=headers, is_loopback=is_loopback) as device,
    ):
        await device.ended()
    assert device.closed is not None
    assert device.closed.code == 1008
    assert device.closed.reason.startswith(named)
    assert fake.connections == []


async def test_the_web_app_says_who_it_is_in_its_first_message(autojump_clock: MockClock) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client("/v4/web/listen", SOUND, is_loopback=True, first=[AUTH]) as device,
    ):
        # It need not wait for the answer.
        await play(device)
    assert device.messages[0] == {"type": "auth_response", "success": True}
    shown = check_as_the_app_of_2025_does(device.messages)
    assert words_of(list(shown.values())) == TALK.transcript()


@pytest.mark.parametrize(
    "first",
    [
        b"\x00" * 320,
        '{"type":"auth"}',
        '{"type":"auth","token":7}',
        '{"type":"auth","token":"a/b"}',
        '{"type":"CloseStream"}',
        "no JSON",
    ],
)
async def test_a_first_message_that_is_no_proof_is_refused(
    autojump_clock: MockClock, first: str | bytes
) -> None:
    async with (
        listening_server() as (world, fake),
        world.client("/v4/web/listen", SOUND, is_loopback=True, first=[first]) as device,
    ):
        await device.ended()
    assert device.messages == [{"type": "auth_response", "success": False}]
    assert device.closed is not None
    assert device.closed.code == 1008
    assert fake.connections == []


async def test_a_first_message_of_a_megabyte_is_too_long(autojump_clock: MockClock) -> None:
    long = '{"type":"auth","token":"' + "x" * 1_000_000 + '"}'
    async with (
        listening_server() as (world, _fake),
        world.client("/v4/web/listen", SOUND, is_loopback=True, first=[long]) as device,
    ):
        await device.ended()
    assert device.closed is not None
    assert device.closed.code == 1009


async def test_a_first_message_that_does_not_come_is_waited_for_five_seconds(
    autojump_clock: MockClock,
) -> None:
    started = trio.current_time()
    async with (
        listening_server() as (world, _fake),
        world.client("/v4/web/listen", SOUND, is_loopback=True) as device,
    ):
        await device.ended()
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)
    assert device.closed is not None
    assert device.closed.code == 1008
    assert "5 s" in device.closed.reason


async def test_a_second_token_changes_nothing_and_is_said_to_be_unknown(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client(
            "/v4/web/listen", SOUND, is_loopback=True, first=[AUTH, AUTH.replace("u1", "u2")]
        ) as device,
    ):
        await play(device)
        assert device.session._request.uid == "u1"
    assert device.event("unknown_message")["received"] == "auth"
    shown = check_as_the_app_of_2025_does(device.messages)
    assert words_of(list(shown.values())) == TALK.transcript()


async def test_messages_of_newer_apps_and_plain_beats_are_passed_over(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), open_path(world, "/v4/listen") as device:
        for text in [
            "ping",
            "pong",
            '{"type":"client_state","foreground":true,"transcript_visible":false}',
            '{"type":"image_chunk","id":"1"}',
        ]:
            device.send(text)
        device.send(b"\x8a\x00")
        await play(device)
        assert device.session.coverage.backlog.end == 11 * 16_000
    assert device.events("unknown_message") == []


async def test_a_message_that_nobody_could_write_again_is_unknown_and_harms_nothing(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), open_path(world, "/v4/listen") as device:
        device.send('{"type":"\\ud800"}')
        await play(device)
    assert device.event("unknown_message")["received"] is None
    shown = check_as_the_app_of_2025_does(device.messages)
    assert words_of(list(shown.values())) == TALK.transcript()


async def test_the_stock_app_gets_objects_without_a_type_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, fake),
        world.client("/v1/stt", {"language": "en"}) as device,
    ):
        await play(device)
    assert all(message.keys() == {"segments"} for message in device.messages)
    segments = [segment for message in device.messages for segment in message["segments"]]
    assert plain_words(" ".join(segment["text"] for segment in segments)) == TALK.transcript()
    assert {segment["speaker"] for segment in segments} == {1, 2}
    assert segments[0].keys() == {"text", "start", "end", "speaker"}
    assert "sample_rate=16000" in fake.connections[0].target


async def test_the_stock_app_has_its_last_words_half_a_second_after_close_stream(
    autojump_clock: MockClock,
) -> None:
    script = Script([*utterance("amber bako celu", 1, 0.5)], 1.6)
    async with listening_server() as (world, _fake), world.client("/v1/stt") as device:
        await device.stream_audio(synthesise(script, 16_000), 32_000)
        device.send(CLOSE_STREAM)
        await trio.sleep(0.5)
        device.websocket.close_nowait(1000)
        texts = [s["text"] for message in device.messages for s in message["segments"]]
    assert plain_words(" ".join(texts)) == script.transcript()


async def test_a_device_sdk_gets_ready_and_transcripts_until_it_says_finalize(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client("/v3/stream", {"sample_rate": "16000"}) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000), 32_000)
        device.send("finalize")
        await device.ended()
    assert device.messages[0] == {"type": "ready"}
    texts = [message["text"] for message in device.messages[1:]]
    assert plain_words(" ".join(texts)) == TALK.transcript()
    assert {message["type"] for message in device.messages[1:]} == {"transcript"}
    assert device.closed is not None
    assert device.closed.code == 1000


@pytest.mark.parametrize("path", ["/v1/stt", "/v3/stream"])
async def test_raw_clients_are_refused_a_rate_that_nobody_has(
    autojump_clock: MockClock, path: str
) -> None:
    async with (
        listening_server() as (world, _fake),
        world.client(path, {"sample_rate": "7"}) as device,
    ):
        await device.ended()
    assert device.closed is not None
    assert (device.closed.code, device.closed.reason[:11]) == (1008, "sample_rate")


@pytest.mark.parametrize("path", ["/v4/listen", "/v1/stt", "/v3/stream"])
async def test_no_face_shows_a_connection_that_was_lost(
    autojump_clock: MockClock, path: str
) -> None:
    faults = FaultScript.of([Drop(after_results=1)], [Drop(after_results=1)])
    async with (
        listening_server(faults=faults, options=Options()) as (world, fake),
        open_path(world, path) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000), 32_000)
        device.send("finalize" if path == "/v3/stream" else CLOSE_STREAM)
        await device.ended()
    assert len(fake.connections) > 1
    if path == "/v4/listen":
        texts = [s["text"] for s in check_as_the_app_of_2025_does(device.messages).values()]
    else:
        texts = [s["text"] for m in device.messages for s in m.get("segments", [])]
    assert plain_words(" ".join(texts)) == TALK.transcript()


async def test_interims_come_where_asked_for_and_the_account_knows_nothing_of_them(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server() as (world, _fake),
        open_path(world, "/listen", interim="true") as device,
    ):
        await play(device)
    interims = device.events("interim")
    assert interims
    for event in interims:
        assert event.keys() == {"type", "segments"}
        assert all("id" not in segment and segment["text"] for segment in event["segments"])
    assert words_of(device.segments) == TALK.transcript()
    ended = device.event("session_ended")
    assert ended["received"] == ended["finalised"] == 11.0
    check_as_the_app_of_2024_does(device.messages)


async def test_without_asking_no_interim_comes(autojump_clock: MockClock) -> None:
    faults = FaultScript.of([Malformed(what="interim", results=3)])
    async with (
        listening_server(faults=faults) as (world, _fake),
        open_path(world, "/listen") as device,
    ):
        await play(device)
    assert device.events("interim") == []
    assert words_of(device.segments) == TALK.transcript()


def test_only_the_two_bytes_of_an_empty_pong_are_a_fake_pong() -> None:
    face = OmiFace(Version(Proof.UID_PARAMETER), AudioFormat(16_000, 1))
    assert face.read_short(b"\x8a\x00") == Pass()
    assert [face.read_short(each) for each in (b"", b"\x8a", b"\x00\x8a", b"\x08\x00")] == [
        None
    ] * 4


def test_each_path_of_the_table_is_told_as_a_websocket_endpoint() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert all(f"`{path}`" in text for path in FACES)


async def test_interims_that_the_operator_asked_for_are_not_told_to_who_did_not(
    autojump_clock: MockClock,
) -> None:
    options = {"interim_results": ("true",)}
    async with (
        listening_server(deepgram_options=options) as (world, _fake),
        open_path(world, "/listen") as device,
    ):
        await play(device)
    assert device.events("interim") == []
    assert words_of(device.segments) == TALK.transcript()
