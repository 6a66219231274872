"""The fake Deepgram: the provider's protocol, kept as strictly as its documentation states it."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from omi_rt.core.errors import HandshakeFailed
from omi_rt.core.live_api import Refused
from omi_rt.fake import FakeDeepgram, Options, Script, plain_words, random_script, synthesise
from omi_rt.fake.language import VOCABULARY
from omi_rt.fake.parameters import parse_target
from omi_rt.fake.speech import utterance
from omi_rt.net.handshake import open_websocket
from tests.fake_client import CLOSE_STREAM, FINALIZE, KEEP_ALIVE, connected, target

TALK = Script([*utterance("amber bako celu", 1, 0.5), *utterance("dorin elfa", 4, 2.5)], 5.0)


async def answer_to(fake: FakeDeepgram, request: str) -> tuple[str, dict[str, str], str]:
    """Send a request head; return status line, headers and body."""
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await stream.send_all(request.encode())
        data = b""
        while more := await stream.receive_some():
            data += more
        await stream.aclose()
    head, _, body = data.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def upgrade(path: str, authorization: str | None = "Token key") -> str:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: fake",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    if authorization is not None:
        lines.append(f"Authorization: {authorization}")
    return "\r\n".join([*lines, "", ""])


# The handshake.


async def test_an_accepted_upgrade_carries_the_request_id(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await stream.send_all(upgrade(target()).encode())
        head = (await stream.receive_some()).decode()
        await stream.aclose()
    assert head.startswith("HTTP/1.1 101 ")
    assert f"dg-request-id: {fake.connections[0].request_id}" in head
    assert fake.connections[0].status == 101


@pytest.mark.parametrize(
    "authorization", [None, "", "key", "Token", "Token  ", "Basic key", "Token wrong", "Bearer key"]
)
async def test_a_bad_credential_is_401_with_reason_and_request_id(
    autojump_clock: MockClock, authorization: str | None
) -> None:
    fake = FakeDeepgram(Options(keys=frozenset({"key"}), tokens=frozenset({"jwt"})))
    status, headers, body = await answer_to(fake, upgrade(target(), authorization))
    assert status.startswith("HTTP/1.1 401 ")
    refusal = json.loads(body)
    assert refusal["err_code"] == "INVALID_AUTH"
    assert refusal["err_msg"] == headers["dg-error"]
    assert refusal["request_id"] == headers["dg-request-id"] == fake.connections[0].request_id
    assert fake.connections[0].status == 401


@pytest.mark.parametrize("authorization", ["Token key", "token key", "Bearer jwt", "bearer jwt"])
async def test_keys_and_tokens_are_taken_in_their_own_schemes(
    autojump_clock: MockClock, authorization: str
) -> None:
    fake = FakeDeepgram(Options(keys=frozenset({"key"}), tokens=frozenset({"jwt"})))
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await stream.send_all(upgrade(target(), authorization).encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        await stream.aclose()


def test_no_credential_shows_in_the_options_or_the_records() -> None:
    fake = FakeDeepgram(Options(keys=frozenset({"secret"}), tokens=frozenset({"hidden"})))
    assert "secret" not in repr(fake)
    assert "hidden" not in repr(fake)


async def test_other_requests_get_plain_answers(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    status, _, _ = await answer_to(fake, upgrade("/v2/listen?encoding=linear16"))
    assert status.startswith("HTTP/1.1 404 ")
    status, _, _ = await answer_to(fake, f"GET {target()} HTTP/1.1\r\nHost: fake\r\n\r\n")
    assert status.startswith("HTTP/1.1 426 ")
    broken = upgrade(target()).replace("Version: 13", "Version: 7")
    status, _, _ = await answer_to(fake, broken)
    assert status.startswith(("HTTP/1.1 400 ", "HTTP/1.1 426 "))


async def test_garbage_in_place_of_a_request_is_dropped(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    status, _, _ = await answer_to(fake, "\x16\x03\x01 garbage\r\n\r\n")
    assert status == ""
    assert fake.connections[0].closed_at is not None


async def test_a_connection_over_the_limit_is_429_until_one_has_closed(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram(Options(concurrency=1))
    async with connected(fake) as client:
        with pytest.RaisesGroup(pytest.RaisesExc(HandshakeFailed, match="429")):
            async with connected(fake):
                pass
        await client.finish()
    async with connected(fake) as client:
        await client.finish()
    assert [record.status for record in fake.connections] == [101, 429, 101]


# Parameters.


@pytest.mark.parametrize(
    "query",
    [
        {"encoding": None},
        {"sample_rate": None},
        {"encoding": "opus"},
        {"encoding": "LINEAR16"},
        {"encoding": "pcm"},
        {"sample_rate": "8k"},
        {"sample_rate": 7999},
        {"sample_rate": -8000},
        {"sample_rate": ""},
        {"sample_rate": "9" * 5000},
        {"channels": 0},
        {"channels": 21},
        {"multichannel": "True"},
        {"diarize": "1"},
        {"punctuate": ""},
        {"interim_results": "FALSE"},
        {"model": "nova-9"},
        {"model": "nova-2-General"},
        {"model": "flux-general-en"},
        {"model": "base", "language": "multi"},
        {"language": "english"},
        {"language": "auto"},
        {"language": ""},
        {"endpointing": "true"},
        {"endpointing": "-1"},
        {"endpointing": "0.1"},
        {"utterance_end_ms": 1000},
        {"utterance_end_ms": 500, "interim_results": "true"},
        {"keyterm": "omi"},
        {"model": "nova-3", "keywords": "omi:1"},
        {"model": "nova-3", "keyterm": "['omi', 'friend']"},
        {"language_hint": "en"},
        {"diarize_model": "v2"},
        {"dictation": "true", "punctuate": "false"},
        {"detect_language": "true"},
        {"tag": "x" * 129},
        {"keywords": [f"word{number}" for number in range(101)]},
        {"sample_rate": ["8000", "8000"]},
        {"codec": "pcm8"},
        {"uid": "someone"},
    ],
)
def test_a_bad_parameter_is_400(query: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        parse_target(target(**query))
    assert refused.value.status == 400
    assert refused.value.code == "INVALID_QUERY_PARAMETER"


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"language": "multi"},
        {"language": "pt-BR"},
        {"language": "zh-Hant"},
        {"endpointing": "false"},
        {"model": None},
        {"model": "nova-3", "language": "multi", "keyterm": ["omi", "tell me more"]},
        {"model": "0123abcd-0123-0123-0123-0123456789ab"},
        {"keywords": ["omi:2", "friend"]},
        {"utterance_end_ms": 1000, "interim_results": "true", "vad_events": "true"},
        {"tag": ["a", "b"], "extra": "call:42", "redact": ["pci", "ssn"], "version": "latest"},
        {"channels": 2, "multichannel": "true"},
        {"diarize": None, "diarize_model": "latest"},
        {"sample_rate": 48000},
    ],
)
def test_documented_parameters_are_taken(query: dict[str, Any]) -> None:
    parse_target(target(**query))


def test_parameters_mean_what_they_say() -> None:
    parameters = parse_target(target(channels=2, multichannel="true", endpointing=300))
    assert (parameters.sample_rate, parameters.channels, parameters.tracks) == (8000, 2, 2)
    assert parameters.endpointing == 0.3
    assert parameters.diarize
    assert parameters.punctuate
    assert parse_target(target(channels=2)).tracks == 1
    assert parse_target(target(endpointing="false")).endpointing is None
    assert parse_target(target(endpointing=None)).endpointing == 0.01
    bare = parse_target(target(punctuate=None, smart_format=None, diarize=None))
    assert not bare.punctuate
    assert not bare.diarize
    assert parse_target(target(keywords=["a", "b"])).all_of("keywords") == ["a", "b"]


def test_other_parameters_can_be_let_through() -> None:
    with pytest.raises(Refused):
        parse_target(target(new_feature="on"))
    parse_target(target(new_feature="on"), extra={"new_feature"})


async def test_a_refused_parameter_is_named(autojump_clock: MockClock) -> None:
    status, headers, _ = await answer_to(FakeDeepgram(), upgrade(target(diarize="True")))
    assert status.startswith("HTTP/1.1 400 ")
    assert "diarize" in headers["dg-error"]


# Results.


async def test_the_words_come_back_as_they_were_said(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        await client.speak(synthesise(TALK, 8000))
        await client.finish()
    assert client.heard() == TALK.transcript()
    for word, said in zip(client.words(), TALK.words, strict=True):
        assert word["start"] == pytest.approx(said.start, abs=1e-4)
        assert word["end"] == pytest.approx(said.end, abs=1e-4)
        assert 0.9 < word["confidence"] <= 1.0
    transcripts = [result["channel"]["alternatives"][0]["transcript"] for result in client.results]
    assert transcripts == ["Amber bako celu.", "Dorin elfa.", ""]
    assert plain_words(" ".join(transcripts)) == TALK.transcript()
    assert [result["speech_final"] for result in client.results] == [True, True, False]
    for result in client.results:
        assert result["is_final"] is True
        assert result["from_finalize"] is False
        assert result["channel_index"] == [0, 1]
        assert result["metadata"]["request_id"] == fake.connections[0].request_id
    assert fake.violations == []


@pytest.mark.parametrize("message_seconds", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("rate", [8000, 16000])
async def test_messages_of_any_length_bring_the_same_words(
    autojump_clock: MockClock, rate: int, message_seconds: float
) -> None:
    script = random_script(random.Random(1), 30)
    async with connected(FakeDeepgram(), sample_rate=rate) as client:
        await client.speak(synthesise(script, rate), message_seconds=message_seconds)
        await client.finish()
    assert client.heard() == script.transcript()


async def test_finals_cover_all_of_the_audio_without_a_hole(autojump_clock: MockClock) -> None:
    script = random_script(random.Random(2), 60)
    async with connected(FakeDeepgram()) as client:
        await client.speak(synthesise(script, 8000))
        await client.finish()
    end = 0.0
    for result in client.results:
        assert result["start"] == pytest.approx(end, abs=1e-5)
        end = result["start"] + result["duration"]
    assert end == pytest.approx(60.0, abs=1e-5)


async def test_results_come_after_the_delay_and_not_much_later(autojump_clock: MockClock) -> None:
    script = Script(utterance("amber", 0, 1.0), 3.0)
    async with connected(FakeDeepgram(Options(delay=0.5))) as client:
        started = trio.current_time()
        await client.speak(synthesise(script, 8000), message_seconds=0.1)
        await client.finish()
    delay = client.times[0] - started - client.words()[-1]["end"]
    # 100 ms of endpointing and what it takes to be sure, then hearing in steps of 0.2 s.
    assert 0.5 + 0.12 <= delay <= 0.5 + 0.12 + 0.1 + 0.2 + 1e-6


async def test_words_have_only_the_fields_that_were_asked_for(autojump_clock: MockClock) -> None:
    async with connected(
        FakeDeepgram(), punctuate=None, smart_format=None, diarize=None, language="multi"
    ) as client:
        await client.speak(synthesise(TALK, 8000))
        await client.finish()
    for word in client.words():
        assert set(word) == {"word", "start", "end", "confidence", "language"}
    alternative = client.results[0]["channel"]["alternatives"][0]
    assert alternative["transcript"] == "amber bako celu"
    assert alternative["languages"] == ["en"]


@pytest.mark.parametrize("decimals", [2, 7])
async def test_times_are_rounded_as_set(autojump_clock: MockClock, decimals: int) -> None:
    script = random_script(random.Random(3), 10)
    async with connected(FakeDeepgram(Options(decimals=decimals))) as client:
        await client.speak(synthesise(script, 8000))
        await client.finish()
    for word in client.words():
        assert word["start"] == round(word["start"], decimals)
    assert client.heard() == script.transcript()


async def test_jitter_moves_words_by_no_more_than_set(autojump_clock: MockClock) -> None:
    script = random_script(random.Random(3), 20)
    async with connected(FakeDeepgram(Options(jitter=0.03))) as client:
        await client.speak(synthesise(script, 8000))
        await client.finish()
    errors = [
        abs(word["start"] - said.start)
        for word, said in zip(client.words(), script.words, strict=True)
    ]
    assert 0.01 < max(errors) <= 0.03 + 1e-5


async def test_speakers_keep_their_labels_on_a_connection_and_get_new_ones_on_the_next(
    autojump_clock: MockClock,
) -> None:
    script = random_script(random.Random(4), 20, voices=(0, 3))
    fake = FakeDeepgram()
    firsts = []
    for _ in range(6):
        async with connected(fake) as client:
            await client.speak(synthesise(script, 8000))
            await client.finish()
        labels: dict[int, set[int]] = {}
        for word, said in zip(client.words(), script.words, strict=True):
            labels.setdefault(said.voice, set()).add(word["speaker"])
        assert [len(found) for found in labels.values()] == [1, 1]
        assert labels[0] != labels[3]
        firsts.append(client.words()[0]["speaker"])
    assert len(set(firsts)) > 2
    assert any(first != 0 for first in firsts)


async def test_the_same_seed_gives_the_same_labels(autojump_clock: MockClock) -> None:
    labels = []
    for _ in range(2):
        async with connected(FakeDeepgram(Options(seed=7))) as client:
            await client.speak(synthesise(TALK, 8000))
            await client.finish()
        labels.append([word["speaker"] for word in client.words()])
    assert labels[0] == labels[1]


async def test_times_start_afresh_on_each_connection(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    pcm = synthesise(TALK, 8000)
    for begin in (0, 16_000):
        async with connected(fake) as client:
            await client.speak(pcm[2 * begin :])
            await client.finish()
    assert client.words()[0]["start"] == pytest.approx(TALK.words[3].start - 2.0, abs=1e-4)


async def test_channels_are_heard_each_on_its_own(autojump_clock: MockClock) -> None:
    script = random_script(random.Random(5), 30, channels=2)
    fake = FakeDeepgram()
    async with connected(fake, channels=2, multichannel="true") as client:
        await client.speak(synthesise(script, 8000))
        await client.finish()
    for channel in range(2):
        assert client.heard(channel) == script.transcript(channel)
    assert {tuple(result["channel_index"]) for result in client.results} == {(0, 2), (1, 2)}
    ends = [
        {r["start"] + r["duration"] for r in client.results if r["channel_index"][0] == channel}
        for channel in range(2)
    ]
    assert len(ends[0] - ends[1]) > 5
    assert client.metadata["channels"] == 2


async def test_channels_that_are_not_told_apart_are_mixed(autojump_clock: MockClock) -> None:
    words = [*utterance("amber bako", 1, 0.5), *utterance("celu", 4, 2.0, channel=1)]
    async with connected(FakeDeepgram(), channels=2) as client:
        await client.speak(synthesise(Script(words, 3.0, 2), 8000))
        await client.finish()
    assert client.heard() == ["amber", "bako", "celu"]
    assert {tuple(result["channel_index"]) for result in client.results} == {(0, 1)}


async def test_audio_lost_on_the_way_shows_as_a_wrong_transcript(
    autojump_clock: MockClock,
) -> None:
    script = Script(utterance(" ".join(VOCABULARY[:8]), 2, 0.5), 4.0)
    pcm = synthesise(script, 8000)
    cut = round((script.words[3].start + 0.05) * 16_000) & ~1
    async with connected(FakeDeepgram()) as client:
        await client.speak(pcm[:cut] + pcm[cut + 320 :])
        await client.finish()
    assert client.heard() != script.transcript()
    assert "?" in client.heard()


async def test_samples_split_over_messages_are_put_together(autojump_clock: MockClock) -> None:
    pcm = synthesise(TALK, 8000)
    async with connected(FakeDeepgram()) as client:
        for begin in range(0, len(pcm), 4001):
            client.say(pcm[begin : begin + 4001])
            await trio.sleep(0.25)
        await client.finish()
    assert client.heard() == TALK.transcript()


@pytest.mark.parametrize("empty_finals", [None, (3.0, 5.0)])
async def test_silence_brings_an_empty_final_now_and_then_or_none(
    autojump_clock: MockClock, empty_finals: tuple[float, float] | None
) -> None:
    async with connected(FakeDeepgram(Options(empty_finals=empty_finals))) as client:
        await client.speak(bytes(2 * 8000 * 30), message_seconds=1.0)
        await client.finish()
    assert client.words() == []
    lengths = [result["duration"] for result in client.results]
    if empty_finals is None:
        assert lengths == []
    else:
        assert 6 <= len(lengths) <= 10
        assert all(3.0 <= length <= 5.0 for length in lengths[:-1])
        assert sum(lengths) == pytest.approx(30.0, abs=1e-4)
    assert client.metadata["duration"] == 30.0


# Finalize, KeepAlive, the end.


async def test_finalize_brings_what_is_buffered_and_says_so(autojump_clock: MockClock) -> None:
    script = Script(utterance("amber bako celu", 1, 0.2), 2.0)
    pcm = synthesise(script, 8000)
    middle = 2 * round((script.words[2].start + 0.05) * 8000)
    async with connected(FakeDeepgram()) as client:
        client.say(pcm[:middle])
        client.say(FINALIZE)
        await trio.sleep(1.0)
        (flushed,) = client.results
        assert flushed["from_finalize"] is True
        assert client.heard() == ["amber", "bako"]
        client.say(FINALIZE)
        client.say(pcm[middle:])
        await client.finish()
    assert client.heard() == script.transcript()
    assert flushed["start"] + flushed["duration"] < script.words[2].start


async def test_finalize_of_one_channel_leaves_the_others(autojump_clock: MockClock) -> None:
    async with connected(FakeDeepgram(), channels=2, multichannel="true") as client:
        client.say(bytes(4 * 8000))
        client.say('{"type":"Finalize","channel":1}')
        await trio.sleep(1.0)
        assert [result["channel_index"] for result in client.results] == [[1, 2]]
        client.say(FINALIZE)
        await trio.sleep(1.0)
    assert [result["channel_index"] for result in client.results] == [[1, 2], [0, 2]]


async def test_finalize_with_nothing_buffered_is_not_answered(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(2 * 800))
        client.say(FINALIZE)
        client.say(FINALIZE)
        await trio.sleep(1.0)
        assert len(client.results) == 1
    assert fake.connections[0].texts["Finalize"] == 2


async def test_close_stream_brings_the_rest_then_metadata_then_1000(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    pcm = synthesise(TALK, 8000)
    begun = 2 * round((TALK.words[4].end + 0.01) * 8000)
    async with connected(fake) as client:
        await client.speak(pcm[:begun])
        await client.finish()
    assert client.heard() == TALK.transcript()
    assert client.closed is not None
    assert client.closed.code == 1000
    assert client.messages[-1] is client.metadata
    assert client.metadata["duration"] == pytest.approx(begun / 16_000, abs=1e-6)
    assert client.metadata["request_id"] == fake.connections[0].request_id
    assert client.metadata["sha256"] == hashlib.sha256(pcm[:begun]).hexdigest()
    record = fake.connections[0]
    assert record.metadata_sent
    assert record.sent_code == 1000
    assert not record.closed_before_metadata


async def test_a_word_that_the_stream_ends_within_is_unknown(autojump_clock: MockClock) -> None:
    pcm = synthesise(TALK, 8000)
    cut = 2 * round((TALK.words[2].start + 0.08) * 8000)
    async with connected(FakeDeepgram()) as client:
        client.say(pcm[:cut])
        await client.finish()
    assert client.heard() == ["amber", "bako", "?"]


async def test_metadata_without_audio_tells_of_nothing_decodable(autojump_clock: MockClock) -> None:
    async with connected(FakeDeepgram()) as client:
        await client.finish()
    assert (client.metadata["duration"], client.metadata["channels"]) == (0.0, 0)
    assert client.results == []


async def test_an_empty_frame_ends_the_stream_and_is_a_violation(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(16_000))
        client.say(b"")
        await client.until_closed()
    assert client.metadata["duration"] == 1.0
    assert client.closed is not None
    assert client.closed.code == 1000
    assert fake.violations == ["connection 0: an empty binary frame"]


async def test_audio_after_close_stream_is_a_violation(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(16_000))
        client.say(CLOSE_STREAM)
        await trio.sleep(0.1)
        client.say(bytes(16_000))
        await client.until_closed()
    assert client.metadata["duration"] == 1.0
    assert fake.violations == ["connection 0: audio after CloseStream"]


async def test_a_client_that_does_not_wait_for_metadata_is_noted(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(16_000))
        client.say(CLOSE_STREAM)
        client.websocket.close_nowait(1000)
        await trio.sleep(0.1)
    record = fake.connections[0]
    assert record.closed_before_metadata
    assert record.received_code == 1000
    assert not record.metadata_sent


async def test_ten_seconds_without_audio_or_text_end_with_net_0001(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(1600))
        started = trio.current_time()
        await client.until_closed()
        assert trio.current_time() - started == pytest.approx(10.0, abs=0.01)
    assert client.closed is not None
    assert client.closed.code == 1011
    assert "net0001" in client.closed.reason
    assert fake.violations == ["connection 0: no audio and no text for 10 s"]


async def test_keep_alive_holds_a_connection_and_brings_no_answer(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram(Options(empty_finals=None))
    async with connected(fake) as client:
        client.say(bytes(1600))
        for _ in range(10):
            await trio.sleep(9.0)
            client.say(KEEP_ALIVE)
        assert client.messages == []
        await client.finish()
    assert client.metadata["duration"] == 0.1
    assert fake.connections[0].texts["KeepAlive"] == 10
    assert fake.violations == []


@pytest.mark.parametrize("holds", [False, True])
async def test_whether_keep_alive_holds_a_connection_without_audio_is_an_option(
    autojump_clock: MockClock, holds: bool
) -> None:
    async with connected(FakeDeepgram(Options(keepalive_before_audio=holds))) as client:
        for _ in range(4):
            await trio.sleep(4.0)
            client.say(KEEP_ALIVE)
        assert (client.closed is None) == holds


async def test_websocket_pings_are_answered_and_do_not_hold_a_connection(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(1600))
        started = trio.current_time()
        for _ in range(3):
            await trio.sleep(3.0)
            client.websocket.ping_nowait()
            await trio.sleep(0.1)
            assert client.websocket.received_at == trio.current_time() - 0.1
        await client.until_closed()
        assert trio.current_time() - started == pytest.approx(10.0, abs=0.01)
    assert client.closed is not None
    assert client.closed.code == 1011


async def test_a_keep_alive_in_a_binary_frame_is_audio_and_a_violation(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(KEEP_ALIVE.encode() + b" ")
        await client.finish()
    assert client.metadata["duration"] == pytest.approx(10 / 8000, abs=1e-6)
    assert fake.violations == ["connection 0: a control message in a binary frame"]


@pytest.mark.parametrize("text", ["hello", "[]", '{"type":1}', '{"type":"keepalive"}', "{}"])
async def test_a_text_that_is_not_understood_is_a_schema_error_and_the_stream_goes_on(
    autojump_clock: MockClock, text: str
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(text)
        await client.speak(synthesise(TALK, 8000))
        await client.finish()
    error = client.messages[0]
    assert (error["type"], error["variant"], error["message"]) == ("Error", "SchemaError", text)
    assert client.heard() == TALK.transcript()
    assert fake.violations == ["connection 0: a text message that is not understood"]


async def test_broken_framing_is_a_violation(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        # Half of a masked frame, and another one on top of it, as a second writer would do.
        await client.stream.send_all(b"\x82\x90abcd0123" + b"\x81\x82abcdzz" * 4)
        await client.until_closed()
    assert fake.violations == ["connection 0: the WebSocket protocol was broken: 1002"]


async def test_a_client_that_vanishes_leaves_a_record_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery)()
        await open_websocket(stream, "ws://fake" + target(), headers={"Authorization": "Token k"})
        await trio.aclose_forcefully(stream)
    # The nursery is empty: the fake has noticed.
    record = fake.connections[0]
    assert record.received_code == 1006
    assert not record.is_open
    assert fake.violations == []


@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from((b"\x82\x80abcd", b"\x81\x80abcd", b"\x88\x80abcd", b"\x82\xff")),
        ),
        max_size=6,
    ),
    upgrades=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_bytes_from_a_client_are_survived(pieces: list[bytes], upgrades: bool) -> None:
    fake = FakeDeepgram()

    async def talk() -> None:
        async with trio.open_nursery() as nursery:
            stream = await fake.dialler(nursery)()
            try:
                if upgrades:
                    await stream.send_all(upgrade(target()).encode())
                    await stream.receive_some()
                for piece in pieces:
                    await stream.send_all(piece)
                await trio.sleep(1.0)
            except trio.BrokenResourceError:
                pass
            await stream.aclose()

    trio.run(talk, clock=MockClock(autojump_threshold=0))
    assert fake.connections[0].closed_at is not None


async def test_a_client_that_reads_nothing_is_noted(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram(Options(rate=100.0, burst=100.0))
    async with trio.open_nursery() as nursery:
        stream = await fake.dialler(nursery, capacity_bytes=2000)()
        websocket = await open_websocket(
            stream, "ws://fake" + target(), headers={"Authorization": "Token k"}
        )
        nursery.start_soon(websocket.run_writer, 1e6)
        for _ in range(100):
            websocket.send_nowait(bytes(16_000))
            await trio.sleep(1.0)
        await trio.sleep(60.0)
        await trio.aclose_forcefully(stream)
    assert fake.violations == ["connection 0: the client does not read: took no data for 60 s"]


# Pace.


async def test_a_client_that_paces_at_1_25_with_bursts_of_2_s_is_never_held_back(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    async with connected(fake) as client:
        client.say(bytes(2 * 8000 * 2))
        await client.speak(bytes(2 * 8000 * 100), message_seconds=0.25, speed=1.25)
        await client.finish()
    assert fake.connections[0].throttled_seconds == 0.0
    assert client.metadata["duration"] == 102.0


async def test_audio_is_taken_at_1_25_times_real_time_by_not_reading(
    autojump_clock: MockClock,
) -> None:
    fake = FakeDeepgram()
    script = random_script(random.Random(6), 100)
    async with connected(fake) as client:
        started = trio.current_time()
        await client.speak(synthesise(script, 8000), message_seconds=0.25, speed=20.0)
        took = trio.current_time() - started
        await client.finish()
    # What it takes at once, and what is under way in both buffers, 4 s each at the most.
    assert (100 - 3 - 8) / 1.25 < took <= 100 / 1.25
    assert fake.connections[0].throttled_seconds > 50
    assert client.heard() == script.transcript()


async def test_not_reading_on_purpose_is_no_idleness(autojump_clock: MockClock) -> None:
    fake = FakeDeepgram(Options(rate=0.2, burst=0.5))
    async with connected(fake) as client:
        for _ in range(4):
            client.say(bytes(2 * 8000))
        await trio.sleep(25.0)
        assert client.closed is None
        client.say(CLOSE_STREAM)
        await client.until_closed(60.0)
    assert client.metadata["duration"] == 4.0
    assert fake.violations == []


# TCP.


@pytest.mark.realtime
async def test_it_serves_over_tcp_on_a_port_of_the_systems_choice() -> None:
    fake = FakeDeepgram(Options(delay=0.0))
    script = Script(utterance("amber bako", 1, 0.2), 1.0)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(functools.partial(fake.serve_tcp, "127.0.0.1", 0))
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        url = f"ws://127.0.0.1:{port}{target()}"
        websocket = await open_websocket(stream, url, headers={"Authorization": "Token key"})
        nursery.start_soon(websocket.run_writer, 5.0)
        websocket.send_nowait(synthesise(script, 8000))
        websocket.send_nowait(CLOSE_STREAM)
        texts: list[Any] = []
        with trio.fail_after(5.0):
            while not texts or texts[-1]["type"] != "Metadata":
                texts += map(json.loads, await websocket.receive())
        await websocket.aclose()
        nursery.cancel_scope.cancel()
    words = [
        word["word"]
        for message in texts[:-1]
        for word in message["channel"]["alternatives"][0]["words"]
    ]
    assert words == script.transcript()
