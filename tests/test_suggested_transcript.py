"""An Omi app that transcribes by itself: nothing is dialled, and what it has heard is the transcript."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.core.asks import Suggest, SuggestedSegment
from omi_rt.core.errors import HandshakeFailed
from omi_rt.core.suggestions import (
    MAX_SUGGESTED_CHARACTERS,
    MAX_SUGGESTED_SECONDS,
    MAX_SUGGESTED_SEGMENTS,
    read_suggestion,
)
from omi_rt.core.voices import USER, Identity
from omi_rt.fake import synthesise
from omi_rt.log import configure_logging
from omi_rt.records.files import find_record
from tests.harness import Device, World, listening_server, running_server, unreachable, words_of
from tests.test_face_omi import AUTH, TALK, check_as_the_app_of_2025_does, open_path
from tests.test_identities import stored
from tests.test_records import keeping
from tests.test_resume import drop, until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

PATH = "/v4/listen"
PCM = synthesise(TALK, 16_000)
TOLD = {"type": "audio_received", "received": 11.0, "finalised": 11.0}


def said(text: str, start: float, end: float, speaker: int = 0, **more: Any) -> dict[str, Any]:
    """A segment as the app writes it, with fields that nobody here reads."""
    return {
        "text": text,
        "speaker": f"SPEAKER_{speaker}",
        "speaker_id": speaker,
        "is_user": False,
        "start": start,
        "end": end,
        "person_id": None,
        "translations": [],
        "stt_provider": "customLive",
    } | more


def suggestion(*segments: Any, **more: Any) -> str:
    message = {
        "type": "suggested_transcript",
        "segments": list(segments),
        "stt_provider": "customLive",
    }
    return json.dumps(message | more)


@asynccontextmanager
async def app(world: World, **more: Any) -> AsyncIterator[Device]:
    """A client that says that it transcribes by itself."""
    async with open_path(world, PATH, custom_stt="enabled", **more) as device:
        yield device


def shown(device: Device) -> list[tuple[str, int, float, float]]:
    """What the app shows in the end: text, speaker, start, end."""
    segments = check_as_the_app_of_2025_does(device.messages).values()
    return [(s["text"], s["speaker_id"], s["start"], s["end"]) for s in segments]


async def test_what_the_app_has_heard_comes_back_as_the_session_s_segments(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake), app(world) as device:
        await device.until(lambda: "ready" in device.statuses())
        device.send(suggestion(said("Good morning.", 0.5, 1.25, 3)))
        device.send(suggestion(said("Is it?", 2.0, 2.5, 1), said("Yes.", 3, 4, 3)))
        account = await device.finish()
    assert fake.connections == []
    assert device.statuses() == ["initiating", "ready"]
    # Numbers count in order of first appearance, as in every session.
    assert shown(device) == [
        ("Good morning.", 0, 0.5, 1.25),
        ("Is it?", 1, 2.0, 2.5),
        ("Yes.", 0, 3.0, 4.0),
    ]
    assert len({segment["id"] for segment in device.segments}) == 3
    assert [segment["speaker"] for segment in device.segments] == [
        "SPEAKER_00",
        "SPEAKER_01",
        "SPEAKER_00",
    ]
    # The harness has looked at every `seq`: they count from 1.
    assert len(device.numbers) == len(device.messages) - len(device.events("ping"))
    assert account["received"] == account["finalised"] == account["lost"] == 0.0
    assert device.closed is not None
    assert device.closed.code == 1000


async def test_segments_grow_under_their_id_until_a_sentence_ends(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(suggestion(said("so I", 0.0, 1.0), said("went home.", 1.5, 2.0)))
        device.send(suggestion(said("Then", 2.1, 3.0)))
        device.send(suggestion(said("late", 5.5, 6.0)))
        await device.finish()
    assert shown(device) == [
        ("so I went home.", 0, 0.0, 2.0),
        ("Then", 0, 2.1, 3.0),
        ("late", 0, 5.5, 6.0),
    ]


@pytest.mark.parametrize("codec", ["pcm16", "opus"])
async def test_audio_that_comes_goes_nowhere_and_is_accounted_for(
    autojump_clock: MockClock, tmp_path: Path, capfd: pytest.CaptureFixture[str], codec: str
) -> None:
    configure_logging("info")
    records, made = keeping(tmp_path, audio=True)
    async with (
        listening_server(watches=(lambda facts: records.watch(facts),)) as (world, fake),
        app(world, codec=codec, acknowledge="true") as device,
    ):
        if codec == "opus":
            encode = OpusEncoder(16_000, 1).encode
            for start in range(0, len(PCM), 640):
                await device.websocket.drained(60_000)
                device.send(encode(PCM[start : start + 640]))
        else:
            await device.stream_audio(PCM, 32_000)
        device.send(suggestion(said("amber bako", 0.5, 2.0)))
        await device.until(lambda: device.events("audio_received")[-1:] == [TOLD])
        coverage = device.session.coverage
        assert coverage.backlog.held_bytes == 0
        account = await device.finish()
        assert coverage.ledger.finalised_by_client == 11 * 16_000
    assert fake.connections == []
    assert account["received"] == account["finalised"] == 11.0
    assert (account["pending"], account["gated"], account["lost"]) == (0.0, 0.0, 0.0)
    assert set(account["sent"].values()) == {0.0}
    assert device.events("audio_lost") == []
    (line,) = [x for x in capfd.readouterr().err.splitlines() if " session_ended " in x]
    assert " finalised=11.0 " in line
    assert " finalised_by_client=11.0" in line
    # Who keeps records keeps this session's as any other's.
    (record,) = made
    assert record.write(record.lines, record.audio) is None
    record.files.close()
    kept = find_record(tmp_path, record.facts.id)
    assert [segment["text"] for segment in kept.segments] == ["amber bako"]
    assert kept.end == account


async def test_without_a_provider_it_works_all_the_same(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        # Nor does it matter which languages a provider would know.
        world.provider.languages = frozenset({"en"})
        async with app(world, language="eo") as device:
            device.send(suggestion(said("Nobody is asked.", 1.0, 2.0)))
            await device.finish()
    assert shown(device) == [("Nobody is asked.", 0, 1.0, 2.0)]
    assert device.statuses() == ["initiating", "ready"]


async def test_who_the_app_knows_is_known_and_earlier_segments_are_corrected(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(suggestion(said("One.", 0.0, 1.0, 4)))
        device.send(suggestion(said("Two.", 1.0, 2.0, 4, is_user=True)))
        device.send(suggestion(said("Three.", 2.0, 3.0, 7, person_id="anna")))
        device.send(suggestion(said("Four.", 3.0, 4.0, 9, person_id="user")))
        # What contradicts it changes nothing.
        device.send(suggestion(said("Five.", 4.0, 5.0, 7, is_user=True)))
        await device.finish()
    segments = check_as_the_app_of_2025_does(device.messages).values()
    assert [(s["text"], s["speaker_id"], s["is_user"], s["person_id"]) for s in segments] == [
        ("One.", 0, True, None),
        ("Two.", 0, True, None),
        ("Three.", 1, False, "anna"),
        ("Four.", 0, True, None),
        ("Five.", 1, False, "anna"),
    ]
    assert len(device.events("speaker_identified")) == 1


async def test_a_speaker_can_be_named_and_no_voice_is_stored(autojump_clock: MockClock) -> None:
    async with listening_server(profiles=stored()) as (world, _fake), app(world) as device:
        await device.stream_audio(PCM, 32_000)
        device.send(suggestion(said("One.", 0.0, 9.0)))
        device.send('{"type":"speaker_assigned","speaker_id":0,"person_id":"anna"}')
        await device.until(lambda: device.events("speaker_assigned"))
        await device.finish()
    (segment,) = check_as_the_app_of_2025_does(device.messages).values()
    assert segment["person_id"] == "anna"
    answer = device.event("speaker_assigned")
    assert answer["stored"] is False
    assert answer["reason"] == "no voices are kept in this session"


async def test_a_session_is_taken_up_with_its_speakers_and_segments(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake):
        async with app(world) as first:
            secret = await until_ready(first)
            first.send(suggestion(said("One.", 0.0, 1.0, 5)))
            await first.until(lambda: first.segments)
            await drop(first)
        async with open_path(world, PATH, resume=secret) as other:
            # It would have to be transcribed by somebody else now.
            await other.ended()
            assert other.closed is not None
            assert (other.closed.code, other.closed.reason) == (
                1008,
                "resume: custom_stt must stay the same",
            )
        async with app(world, resume=secret, after=max(first.numbers)) as second:
            second.send(suggestion(said("Two.", 1.0, 2.0, 8), said("Three.", 2.0, 3.0, 5)))
            await second.finish()
    assert fake.connections == []
    assert [(s["text"], s["speaker_id"]) for s in first.segments + second.segments] == [
        ("One.", 0),
        ("Two.", 1),
        ("Three.", 0),
    ]
    assert min(second.numbers) == max(first.numbers) + 1


@pytest.mark.parametrize("path", ["/listen", "/v2/listen", "/v3/listen"])
async def test_older_paths_know_nothing_of_it(autojump_clock: MockClock, path: str) -> None:
    async with (
        listening_server() as (world, fake),
        open_path(world, path, custom_stt="enabled") as device,
    ):
        device.send(suggestion(said("invented", 0.0, 1.0)))
        await device.stream_audio(PCM, 32_000)
        await device.finish()
    assert len(fake.connections) == 1
    assert words_of(device.segments) == TALK.transcript()


@pytest.mark.parametrize("value", ["disabled", ""])
async def test_who_does_not_transcribe_is_transcribed(
    autojump_clock: MockClock, value: str
) -> None:
    async with (
        listening_server() as (world, _fake),
        open_path(world, PATH, custom_stt=value) as device,
    ):
        device.send(suggestion(said("invented", 0.0, 1.0)))
        await device.stream_audio(PCM, 32_000)
        await device.finish()
    assert device.events("unknown_message") == device.events("suggestion_refused") == []
    texts = list(check_as_the_app_of_2025_does(device.messages).values())
    assert words_of(texts) == TALK.transcript()


async def test_neither_enabled_nor_disabled_is_a_bad_request(autojump_clock: MockClock) -> None:
    async with (
        listening_server() as (world, fake),
        open_path(world, PATH, custom_stt="perhaps") as device,
    ):
        await device.ended()
    assert device.closed is not None
    assert device.closed.code == 1008
    assert device.closed.reason == "custom_stt: must be enabled or disabled"
    assert fake.connections == []


async def test_the_web_app_may_do_so_too(autojump_clock: MockClock) -> None:
    async with (
        listening_server() as (world, fake),
        world.client(
            "/v4/web/listen", {"custom_stt": "enabled"}, is_loopback=True, first=[AUTH]
        ) as device,
    ):
        device.send(suggestion(said("One.", 0.0, 1.0)))
        await device.finish()
    assert [s["text"] for s in device.segments] == ["One."]
    assert fake.connections == []


GOOD = said("good", 1.0, 2.0)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("words", "text: must be text"),
        (said("x", 1.0, 2.0) | {"text": None}, "text: must be text"),
        (said("x" * (MAX_SUGGESTED_CHARACTERS + 1), 1.0, 2.0), "text: at most 10000 characters"),
        (said("x", -0.5, 2.0), "start: must be seconds since the session began"),
        (said("x", 1.0, 0.5), "end: must not be before the start"),
        (said("x", 1.0, math.nan), "end: must be seconds since the session began"),
        (said("x", 1.0, math.inf), "end: must be seconds since the session began"),
        (said("x", 1.0, 10**400), "end: must be seconds since the session began"),
        (said("x", 1e12, 1e12), "start: must be seconds since the session began"),
        (said("x", 1.0, 2.0) | {"start": "1.0"}, "start: must be seconds since the session began"),
        (said("x", 1.0, 2.0) | {"start": True}, "start: must be seconds since the session began"),
        ({"text": "x"}, "start: must be seconds since the session began"),
        (said("x", 1.0, 2.0, -1), "speaker_id: must be from 0 to 99"),
        (said("x", 1.0, 2.0, 100), "speaker_id: must be from 0 to 99"),
        (said("x", 1.0, 2.0) | {"speaker_id": 1.0}, "speaker_id: must be from 0 to 99"),
        (said("x", 1.0, 2.0) | {"speaker_id": False}, "speaker_id: must be from 0 to 99"),
        (
            said("x", 1.0, 2.0) | {"speaker_id": None, "speaker": "anna"},
            "speaker: must be a label such as SPEAKER_01",
        ),
        (
            said("x", 1.0, 2.0) | {"speaker_id": None, "speaker": 3},
            "speaker: must be a label such as SPEAKER_01",
        ),
        (said("x", 1.0, 2.0, is_user="yes"), "is_user: must be true or false"),
        (said("x", 1.0, 2.0, person_id="../etc"), "person_id: 1 to 128 characters"),
        (said("x", 1.0, 2.0, person_id=7), "person_id: 1 to 128 characters"),
    ],
)
async def test_a_segment_that_cannot_be_is_left_out_and_told(
    autojump_clock: MockClock, bad: Any, reason: str
) -> None:
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(suggestion(GOOD, bad, said("too", 2.0, 3.0)))
        await device.finish()
    assert shown(device) == [("good too", 0, 1.0, 3.0)]
    refused = device.event("suggestion_refused")
    assert refused["refused"] == 1
    assert refused["reason"].startswith(f"segments[1].{reason}")


@pytest.mark.parametrize(
    ("message", "refused", "reason"),
    [
        ('{"type":"suggested_transcript"}', 0, "segments: must be a list"),
        ('{"type":"suggested_transcript","segments":{}}', 0, "segments: must be a list"),
        (
            suggestion(*[GOOD] * (MAX_SUGGESTED_SEGMENTS + 1)),
            MAX_SUGGESTED_SEGMENTS + 1,
            "segments: at most 100 in a message",
        ),
    ],
)
async def test_a_message_that_cannot_be_is_told(
    autojump_clock: MockClock, message: str, refused: int, reason: str
) -> None:
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(message)
        device.send(suggestion(GOOD))
        await device.finish()
    assert shown(device) == [("good", 0, 1.0, 2.0)]
    event = device.event("suggestion_refused")
    assert (event["refused"], event["reason"]) == (refused, reason)


async def test_a_message_of_a_megabyte_is_too_long_and_others_do_not_notice(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, _fake), app(world) as neighbour:
        async with app(world) as device:
            device.send(suggestion(said("x" * 1_000_000, 0.0, 1.0)))
            await device.ended()
        assert device.closed is not None
        assert device.closed.code == 1009
        neighbour.send(suggestion(GOOD))
        await neighbour.finish()
    assert shown(neighbour) == [("good", 0, 1.0, 2.0)]


async def test_what_is_out_of_order_comes_at_its_own_time(autojump_clock: MockClock) -> None:
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(suggestion(said("third", 20.0, 21.0), said("second", 10.0, 11.0)))
        device.send(suggestion(said("first", 1.0, 2.0)))
        device.send(suggestion(said("", 30.0, 31.0), said(" ", 31.0, 32.0)))
        await device.finish()
    # Nothing is said to begin before it did, nor does an earlier one make a later one longer.
    assert shown(device) == [
        ("second", 0, 10.0, 11.0),
        ("third", 0, 20.0, 21.0),
        ("first", 0, 1.0, 2.0),
    ]


async def test_nothing_of_it_is_logged(
    autojump_clock: MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    async with listening_server() as (world, _fake), app(world) as device:
        device.send(suggestion(said("amaranth", 0.0, 1.0), said("amaranth", 1.0, 0.0)))
        device.send(suggestion(said("amaranth", 1.0, 0.0)))
        await device.finish()
    logged = capfd.readouterr().err
    assert "amaranth" not in logged
    # Once, however often it happens.
    assert logged.count(" suggestion_refused ") == 1
    assert len(device.events("suggestion_refused")) == 2


def test_without_a_speaker_it_is_the_first_one_and_a_label_is_enough() -> None:
    bare = {"text": " a \n b ", "start": 0, "end": 1}
    assert read_suggestion({"segments": [bare, bare | {"speaker": "SPEAKER_12"}]}) == Suggest(
        (SuggestedSegment("a b", 0.0, 1.0, 0), SuggestedSegment("a b", 0.0, 1.0, 12))
    )


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({"is_user": True}, USER),
        ({"is_user": False, "person_id": "user"}, USER),
        ({"person_id": "anna"}, Identity("anna")),
        ({"person_id": ""}, None),
        ({"is_user": None}, None),
    ],
)
def test_who_it_is_is_read(fields: dict[str, Any], identity: Identity | None) -> None:
    suggested = read_suggestion({"segments": [said("a", 0.0, 1.0, **fields)]})
    assert [segment.identity for segment in suggested.segments] == [identity]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = ["text", "start", "end", "speaker", "speaker_id", "is_user", "person_id", "other"]


@given(
    st.dictionaries(
        st.sampled_from(["segments", "type"]),
        JSON | st.lists(JSON | st.dictionaries(st.sampled_from(FIELDS), JSON | st.floats(0, 9))),
    )
)
def test_whatever_comes_is_read_without_a_fault_and_what_is_taken_is_in_range(
    message: dict[str, Any],
) -> None:
    suggested = read_suggestion(message)
    listed = message.get("segments")
    count = len(listed) if isinstance(listed, list) else 0
    assert len(suggested.segments) + suggested.refused <= count
    assert (suggested.reason is None) == (suggested.refused == 0 and isinstance(listed, list))
    starts = [segment.start for segment in suggested.segments]
    assert starts == sorted(starts)
    for segment in suggested.segments:
        assert 0 <= segment.start <= segment.end <= MAX_SUGGESTED_SECONDS
        assert 0 <= segment.speaker <= 99
        assert segment.text


async def test_who_transcribes_by_itself_takes_no_place_at_the_recogniser(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(find_carried=lambda: 1) as (world, _fake):
        async with app(world) as own, world.device() as device, app(world) as another:
            with pytest.raises(HandshakeFailed) as caught:
                async with world.device(uid="u2"):
                    pass
            assert caught.value.status == 503
            assert caught.value.reason.startswith("the embedded recogniser cannot carry")
            for each in (own, another):
                each.send(suggestion(said("Good morning.", 0.5, 1.25)))
                await each.finish()
                assert shown(each) == [("Good morning.", 0, 0.5, 1.25)]
            await device.finish()


async def test_a_provider_that_refuses_everybody_is_nothing_to_who_transcribes_by_itself(
    autojump_clock: MockClock,
) -> None:
    async with listening_server() as (world, fake):
        world.provider.breaker.record_refusal(401, trio.current_time())
        async with app(world) as own:
            own.send(suggestion(said("Good morning.", 0.5, 1.25)))
            await own.finish()
        assert shown(own) == [("Good morning.", 0, 0.5, 1.25)]
        assert (await world.get("/readyz"))[0] == 503
    assert fake.connections == []


async def test_a_full_server_sends_away_also_who_transcribes_by_itself(
    autojump_clock: MockClock,
) -> None:
    async with listening_server(max_sessions=1) as (world, _fake), world.device() as device:
        with pytest.raises(HandshakeFailed):
            async with app(world):
                pass
        await device.finish()
