"""Faults on request: each does what its script says, and no more."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.fake import (
    FakeDeepgram,
    FaultScript,
    Options,
    Script,
    ScriptError,
    parse_script,
    random_schedule,
    random_script,
    read_script,
    synthesise,
)
from omi_rt.fake.faults import (
    HARMFUL,
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
    Say,
    Silence,
    Stall,
    Unreachable,
)
from omi_rt.fake.schedules import MAX_CONNECTIONS, RETRYABLE_STATUSES
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import open_websocket
from tests.fake_client import CLOSE_STREAM, FINALIZE, connected, target
from tests.patient_client import PatientClient

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

TALK = Script(
    [
        *utterance("amber bako celu", 1, 0.5),
        *utterance("dorin elfa", 4, 2.5),
        *utterance("fimo garo", 1, 4.0),
    ],
    6.0,
)
PCM = synthesise(TALK, 8000)


def faulty(*faults: Fault, **options: Any) -> FakeDeepgram:
    return FakeDeepgram(Options(**options), FaultScript.of(list(faults)))


# The handshake.


async def test_a_refusal_has_status_reason_and_retry_after(autojump_clock: MockClock) -> None:
    fake = faulty(Refuse(status=429, error="slow down", retry_after=1.5))
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await stream.send_all(
            f"GET {target()} HTTP/1.1\r\nHost: x\r\nAuthorization: Token k\r\n\r\n".encode()
        )
        data = b""
        while more := await stream.receive_some():
            data += more
        await stream.aclose()
    head, _, body = data.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 429 ")
    assert "dg-error: slow down" in head
    assert "dg-request-id: " in head
    assert "Retry-After: 2" in head
    assert json.loads(body)["err_code"] == "TOO_MANY_REQUESTS"


async def test_each_connection_meets_its_own_faults_and_then_none(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram(faults=FaultScript.of([Refuse(status=503)], [], [Refuse(status=500)]))
    statuses = []
    for _ in range(4):
        try:
            async with connected(fake) as client:
                await client.finish()
        except* HandshakeFailed as group:
            (error,) = group.exceptions
            assert isinstance(error, HandshakeFailed)
            statuses.append(error.status)
    assert statuses == [503, 500]
    assert [record.status for record in fake.connections] == [503, 101, 500, 101]


async def test_an_unreachable_provider_fails_the_dial(autojump_clock: MockClock) -> None:
    fake = faulty(Unreachable())
    async with trio.open_nursery() as nursery:
        dial = fake.dialler(nursery)
        with pytest.raises(OSError, match="reached"):
            await dial()
        await (await dial()).aclose()
    assert [record.status for record in fake.connections] == [None, None]


async def test_an_upgrade_without_an_answer_waits_until_the_client_leaves(
    autojump_clock: MockClock,
) -> None:
    fake = faulty(NoAnswer())
    with pytest.RaisesGroup(pytest.RaisesExc(HandshakeFailed, match="no answer within 10 s")):
        async with connected(fake):
            pass
    record = fake.connections[0]
    assert record.closed_at is not None
    assert record.closed_at - record.opened_at == pytest.approx(10.0, abs=0.01)


@pytest.mark.parametrize("at", ["request", "response"])
async def test_a_drop_in_the_handshake_ends_it_at_once(autojump_clock: MockClock, at: Any) -> None:
    fake = faulty(Drop(at=at))
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await stream.send_all(
            (
                f"GET {target()} HTTP/1.1\r\nHost: x\r\nAuthorization: Token k\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ).encode()
        )
        data = b""
        while more := await stream.receive_some():
            data += more
        await stream.aclose()
    if at == "request":
        assert data == b""
    else:
        assert data.startswith(b"HTTP/1.1 101 ")
        assert b"\r\n\r\n" not in data
    assert fake.connections[0].status is None


# Ends of an open connection.


@pytest.mark.parametrize("at", ["now", "frame"])
async def test_a_drop_comes_after_the_audio_it_waits_for(
    autojump_clock: MockClock, at: Any
) -> None:
    fake = faulty(Drop(at=at, after_audio=2.0))
    async with connected(fake) as client:
        await client.speak(PCM)
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == 1006
    assert fake.connections[0].audio_seconds == pytest.approx(2.0, abs=0.25)
    assert client.heard() == ["amber", "bako", "celu"]
    assert fake.violations == []


async def test_a_drop_in_a_result_tears_it(autojump_clock: MockClock) -> None:
    fake = faulty(Drop(at="result", after_results=1))
    async with connected(fake) as client:
        await client.speak(PCM)
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == 1006
    assert client.heard() == ["amber", "bako", "celu"]
    assert fake.connections[0].results_sent == 2


async def test_a_fault_can_wait_for_results_or_for_time(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram(faults=FaultScript.of([Drop(after_results=2)], [Drop(after_seconds=3.0)]))
    async with connected(fake) as client:
        await client.speak(PCM)
        await client.until_closed()
    assert len(client.results) == 2
    async with connected(fake) as client:
        started = trio.current_time()
        await client.until_closed()
        assert trio.current_time() - started == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        (1000, "", ""),
        (1001, "going", "going"),
        (1008, "", "DATA-0000"),
        (1011, "", "net0000"),
        (1011, "NET-0001 or so", "NET-0001 or so"),
        (1012, "", ""),
        (1013, "", ""),
        (4321, "odd", "odd"),
    ],
)
async def test_a_close_has_its_code_and_reason(
    autojump_clock: MockClock, code: int, reason: str, told: str
) -> None:
    fake = faulty(Close(code=code, reason=reason, after_audio=1.0))
    async with connected(fake) as client:
        await client.speak(PCM)
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == code
    assert told in client.closed.reason
    assert not [message for message in client.messages if message["type"] == "Metadata"]
    assert fake.connections[0].sent_code == code


async def test_a_close_with_1006_is_a_drop(autojump_clock: MockClock) -> None:
    async with connected(faulty(Close(code=1006))) as client:
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == 1006


async def test_a_stalled_reader_blocks_the_sender_and_goes_on_later(
    autojump_clock: MockClock,
) -> None:
    fake = faulty(Stall(seconds=30.0, after_audio=1.0))
    script = random_script(random.Random(1), 20)
    async with connected(fake) as client:
        started = trio.current_time()
        await client.speak(synthesise(script, 8000))
        # 4 s fit in the buffers; the rest had to wait for the stall to end.
        assert trio.current_time() - started > 31.0
        await client.finish(60.0)
    assert client.heard() == script.transcript()
    assert fake.violations == []


async def test_a_reader_that_stalls_for_ever_is_gone_after_two_minutes(
    autojump_clock: MockClock,
) -> None:
    async with connected(faulty(Stall())) as client:
        started = trio.current_time()
        client.say(PCM[:32_000])
        await client.until_closed(200.0)
        assert trio.current_time() - started == pytest.approx(120.0, abs=0.01)
    assert client.messages == []


# Results.


async def test_silence_holds_results_and_lets_them_go_in_order(autojump_clock: MockClock) -> None:
    async with connected(faulty(Silence(seconds=20.0))) as client:
        started = trio.current_time()
        await client.speak(PCM)
        assert client.messages == []
        await client.finish(60.0)
    assert client.heard() == TALK.transcript()
    assert client.times[0] - started == pytest.approx(20.0, abs=0.01)
    assert client.metadata is client.messages[-1]


async def test_silence_for_ever_holds_metadata_too(autojump_clock: MockClock) -> None:
    fake = faulty(Silence(after_audio=2.0))
    async with connected(fake) as client:
        await client.speak(PCM)
        client.say(FINALIZE)
        client.say(CLOSE_STREAM)
        await trio.sleep(60.0)
        assert client.closed is None
        assert client.heard() == ["amber", "bako", "celu"]
        assert len(client.messages) == 1


async def test_silence_of_one_channel_leaves_the_other(autojump_clock: MockClock) -> None:
    script = random_script(random.Random(2), 20, channels=2)
    fake = faulty(Silence(channel=1, seconds=60.0))
    async with connected(fake, channels=2, multichannel="true") as client:
        await client.speak(synthesise(script, 8000))
        assert client.heard(1) == []
        assert len(client.heard(0)) > 10
        await client.finish(60.0)
    assert client.heard(0) == script.transcript(0)
    assert client.heard(1) == script.transcript(1)


async def test_late_results_keep_their_order(autojump_clock: MockClock) -> None:
    async with connected(FakeDeepgram()) as client:
        begun = trio.current_time()
        await client.speak(PCM)
        await client.finish()
    on_time = [time - begun for time in client.times]
    async with connected(faulty(Late(seconds=2.0, results=1))) as client:
        begun = trio.current_time()
        await client.speak(PCM)
        await client.finish()
    late = [time - begun for time in client.times]
    assert late[0] == pytest.approx(on_time[0] + 2.0, abs=0.01)
    # The second had to wait for the first, the third had not.
    assert late[1] == pytest.approx(late[0], abs=0.01)
    assert late[2] == pytest.approx(on_time[2], abs=0.01)
    assert client.heard() == TALK.transcript()


@pytest.mark.parametrize(("results", "extra"), [(1, 1), (2, 2), (None, 4)])
async def test_doubled_results_come_twice(
    autojump_clock: MockClock, results: int | None, extra: int
) -> None:
    async with connected(faulty(Double(results=results))) as client:
        await client.speak(PCM)
        await client.finish()
    assert len(client.results) == 4 + extra
    assert client.results[0] == client.results[1]


async def test_a_text_is_said_as_it_stands(autojump_clock: MockClock) -> None:
    async with connected(faulty(Say(text="{not json", after_audio=1.0))) as client:
        await client.speak(PCM)
        await client.finish()
    assert "{not json" in client.raw


async def test_metadata_can_lie(autojump_clock: MockClock) -> None:
    async with connected(faulty(LyingMetadata(seconds=-2.5))) as client:
        await client.speak(PCM)
        await client.finish()
    assert client.metadata["duration"] == 3.5


@pytest.mark.parametrize("results", [False, True])
async def test_close_stream_can_go_unanswered(autojump_clock: MockClock, results: bool) -> None:
    async with connected(faulty(IgnoreCloseStream(results=results))) as client:
        client.say(PCM[:32_000])
        client.say(CLOSE_STREAM)
        await trio.sleep(60.0)
        assert client.closed is None
        assert "Metadata" not in {message["type"] for message in client.messages}
        assert len(client.results) == (2 if results else 1)


# Malformed messages.


@pytest.mark.parametrize("what", sorted(set(MALFORMED) - {"huge", "invalid_utf8"}))
async def test_malformed_messages_come_beside_the_right_ones(
    autojump_clock: MockClock, what: str
) -> None:
    async with connected(faulty(Malformed(what=what, results=2))) as client:
        await client.speak(PCM)
        await client.finish()
    plain = [message for message in client.messages if is_right(message)]
    heard = [
        word["word"]
        for message in plain
        for word in message["channel"]["alternatives"][0]["words"]
        if word["word"] != "ghost"
    ]
    assert len(client.messages) == 4 + 1 + 2
    if what not in {"binary", "interim", "overlap"}:
        assert heard == TALK.transcript()


def is_right(message: Any) -> bool:
    """Whether a message has the shape and the values that Deepgram's have."""
    match message:
        case {
            "type": "Results",
            "start": float(start),
            "duration": float(duration),
            "channel": {"alternatives": [{"transcript": str(text), "words": [*words]}]},
        }:
            return (
                start >= 0
                and duration >= 0
                and (bool(words) or not text)
                and all(
                    {"start", "end", "punctuated_word", "speaker"} <= set(word)
                    and isinstance(word["speaker"], int)
                    for word in words
                )
            )
    return False


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ("no_words", lambda result, word: "words" in result and word is None),
        ("no_speaker", lambda _, word: "speaker" not in word),
        ("text_speaker", lambda _, word: isinstance(word["speaker"], str)),
        ("no_punctuated_word", lambda _, word: "punctuated_word" not in word),
        ("no_times", lambda _, word: "start" not in word and "end" not in word),
        ("nan_times", lambda _, word: word["start"] != word["start"]),
        ("negative_times", lambda _, word: word["start"] < 0),
        ("text_times", lambda _, word: word["start"] == "soon"),
    ],
)
async def test_a_malformed_message_can_come_instead(
    autojump_clock: MockClock, what: str, check: Any
) -> None:
    async with connected(faulty(Malformed(what=what, instead=True))) as client:
        await client.speak(PCM)
        await client.finish()
    first = client.results[0]["channel"]["alternatives"][0]
    assert check(first, first["words"][0] if first["words"] else None)
    assert len(client.results) == 4
    assert is_right(client.results[1])


async def test_invalid_utf8_comes_as_a_text_frame_that_ends_the_connection(
    autojump_clock: MockClock,
) -> None:
    fake = faulty(Malformed(what="invalid_utf8"))
    async with connected(fake) as client:
        await client.speak(PCM[:40_000])
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == 1007
    # It was the fake that began.
    assert fake.violations == []


async def test_a_huge_message_is_one_frame_over_the_limit_of_the_client(
    autojump_clock: MockClock,
) -> None:
    fake = faulty(Malformed(what="huge"))
    async with connected(fake) as client:
        await client.speak(PCM[:40_000])
        await client.until_closed()
    assert client.closed is not None
    assert client.closed.code == 1009
    # It was the fake that began.
    assert fake.violations == []


# Scripts.


def test_a_script_names_faults_by_kind() -> None:
    script = parse_script(
        {
            "connections": [
                {"faults": [{"kind": "refuse", "status": 429, "retry_after": 2}]},
                {
                    "faults": [
                        {"kind": "late", "seconds": 1.5},
                        {"kind": "close", "code": 1011, "after_audio": 12.5},
                    ]
                },
                {},
            ],
            "afterwards": [{"kind": "no_answer"}],
        }
    )
    assert script.plan(0).of_handshake == Refuse(status=429, retry_after=2.0)
    assert script.plan(1).of_handshake is None
    assert script.plan(1).of_open_connection == [
        Late(seconds=1.5),
        Close(code=1011, after_audio=12.5),
    ]
    assert script.plan(2).faults == ()
    assert script.plan(3).of_handshake == script.plan(99).of_handshake == NoAnswer()


def test_every_kind_of_fault_can_be_scripted() -> None:
    faults = [
        {"kind": "unreachable"},
        {"kind": "refuse", "status": 500},
        {"kind": "no_answer", "seconds": 3},
        {"kind": "drop", "at": "response"},
        {"kind": "drop", "at": "frame", "after_seconds": 2},
        {"kind": "close", "code": 4000, "reason": "x", "after_results": 3},
        {"kind": "stall"},
        {"kind": "silence", "channel": 1},
        {"kind": "late", "seconds": 0.5, "results": 2},
        {"kind": "double"},
        {"kind": "malformed", "what": "no_speaker", "instead": True},
        {"kind": "say", "text": "hello"},
        {"kind": "lying_metadata", "seconds": -1},
        {"kind": "ignore_close_stream", "results": True},
    ]
    script = parse_script({"connections": [{"faults": [fault]} for fault in faults]})
    assert len({type(plan.faults[0]) for plan in script.connections}) == 13


def test_a_wrong_script_is_one_line_that_names_every_bad_key() -> None:
    with pytest.raises(ScriptError) as wrong:
        parse_script(
            {
                "conections": [],
                "connections": [
                    {
                        "faults": [
                            {"kind": "refuse", "status": 200},
                            {"kind": "close"},
                            {"kind": "stall", "seconds": "x", "foo": 1},
                            {"kind": "drop", "at": "lunch"},
                            {"kind": "drop", "after_audio": 1, "after_seconds": 1},
                            {"kind": "drop", "at": "request", "after_audio": 1},
                            {"kind": "explode"},
                            {"kind": "malformed", "what": "huge", "instead": True},
                            {"kind": "late", "seconds": -1},
                        ]
                    }
                ],
            }
        )
    message = str(wrong.value)
    assert "\n" not in message
    for part in (
        "conections is unknown",
        "connections[0].faults[0]: 200",
        "connections[0].faults[1].code is missing",
        "connections[0].faults[2].seconds: must be a number",
        "connections[0].faults[2].foo is unknown",
        "connections[0].faults[3].at",
        "connections[0].faults[4]: only one",
        "connections[0].faults[5]: a drop at request comes at once",
        "connections[0].faults[6]: kind must be one of unreachable, refuse",
        "connections[0].faults[7]: huge",
        "connections[0].faults[8]: 'seconds'",
    ):
        assert part in message


@pytest.mark.parametrize(
    "data", [[], 3, None, {"connections": 3}, {"connections": {}}, {"afterwards": "drop"}]
)
def test_what_is_no_script_at_all_is_said_so(data: Any) -> None:
    with pytest.raises(ScriptError):
        parse_script(data)


def test_scripts_are_read_from_json_and_toml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"connections": [{"faults": [{"kind": "drop", "after_audio": 2}]}]}'
    )
    (tmp_path / "a.toml").write_text(
        '[[connections]]\n[[connections.faults]]\nkind = "drop"\nafter_audio = 2\n'
    )
    assert read_script(tmp_path / "a.json") == read_script(tmp_path / "a.toml")
    assert read_script(tmp_path / "a.json").plan(0).faults == (Drop(after_audio=2.0),)


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.toml", "a ="), ("b.json", None)])
def test_a_file_that_can_not_be_read_is_one_clear_line(
    tmp_path: Path, name: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ScriptError, match=name):
        read_script(tmp_path / name)


# Random schedules.


def test_a_schedule_is_the_same_for_the_same_seed() -> None:
    assert random_schedule(random.Random(1), 40) == random_schedule(random.Random(1), 40)
    assert random_schedule(random.Random(1), 40) != random_schedule(random.Random(2), 40)


def test_schedules_know_all_kinds_of_faults_and_none_that_is_final_or_harmful() -> None:
    kinds = set()
    for seed in range(300):
        script = random_schedule(random.Random(seed), 45, channels=2)
        assert len(script.connections) <= MAX_CONNECTIONS
        assert script.afterwards == ()
        for plan in script.connections:
            for fault in plan.faults:
                kinds.add(type(fault))
                assert not (isinstance(fault, Refuse) and fault.status not in RETRYABLE_STATUSES)
                assert not (isinstance(fault, Close) and fault.code == 1008)
                assert not (
                    isinstance(fault, Malformed) and (fault.what in HARMFUL or fault.instead)
                )
    assert len(kinds) == 13


def test_no_budget_is_no_outage() -> None:
    for seed in range(50):
        for plan in random_schedule(random.Random(seed), 0.0).connections:
            assert plan.of_handshake is None
            assert not [
                fault for fault in plan.faults if isinstance(fault, Close | Drop | Stall | Silence)
            ]


@pytest.mark.parametrize("seed", range(25))
async def test_a_patient_client_gets_every_word_once_through_any_schedule(
    autojump_clock: MockClock, seed: int
) -> None:
    rng = random.Random(seed)
    script = random_script(rng, 60, channels=1 + seed % 2)
    budget = 40.0
    fake = FakeDeepgram(Options(seed=seed), random_schedule(rng, budget, channels=script.channels))
    client = PatientClient(fake, synthesise(script, 8000), script.channels)
    with trio.fail_after(400):
        await client.run()
    for channel in range(script.channels):
        assert client.heard[channel] == script.transcript(channel), fake.faults
    assert client.longest_backlog <= budget + 15.0
    assert fake.violations == []


async def test_over_a_stream_the_open_connection_is_a_websocket(autojump_clock: MockClock) -> None:
    fake = faulty(Silence(seconds=1.0))
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery, capacity_bytes=100)()
        websocket = await open_websocket(
            stream, "ws://fake" + target(), headers={"Authorization": "Token k"}
        )
        nursery.start_soon(websocket.run_writer, 5.0)
        await websocket.aclose()
    assert fake.connections[0].received_code == 1000
