"""pocketsphinx as a client meets it: real processes, real sockets, the real model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from omi_rt.codecs.opus import OpusDecoder, OpusEncoder
from omi_rt.core.deepgram import PROGRESS_TYPE
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text
from omi_rt.net.stream import open_tcp_stream
from tests.local_client import (
    CLOSE_STREAM,
    FINALIZE,
    Client,
    connected,
    listening,
    port_of,
    sample,
)
from tests.processes import children_of, wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.realtime

SECOND = 16_000 * 2
SILENCE = bytes(SECOND)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """The server's process; it ends at the end of its input."""
    with subprocess.Popen(
        [sys.executable, "-m", "omi_rt.local", "--model", "off", "--no-speakers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
            output, _ = process.communicate(timeout=10)
            # Besides its port it has said how many connections it can carry.
            assert process.returncode == 0
            assert {line.partition(" ")[0] for line in output.splitlines()} <= {"uses", "carries"}
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    assert server.stdout.readline().startswith("uses ")
    return f"ws://127.0.0.1:{int(server.stdout.readline())}"


async def recognised(url: str, audio: bytes, **query: Any) -> Client:
    """Stream ``audio`` as fast as it is taken, close, and return what came."""
    async with listening(url, **query) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_audio(audio)
            client.send(CLOSE_STREAM)

        nursery.start_soon(send)
        closed = await client.read_to_end()
        assert (closed.code, closed.reason) == (1000, "")
    return client


def contiguous(results: list[dict[str, Any]]) -> float:
    """Check that each final begins where the last one ended; return where the last ends."""
    end = 0.0
    for result in results:
        assert result["is_final"]
        assert result["start"] == pytest.approx(end, abs=1e-6)
        end = result["start"] + result["duration"]
        for word in result["channel"]["alternatives"][0]["words"]:
            assert result["start"] <= word["start"] < word["end"] <= end + 1e-6
    return end


# The sample


async def test_the_sample_is_recognised_after_opus(url: str) -> None:
    encoder, decoder = OpusEncoder(16_000, 1, bitrate=32_000), OpusDecoder(16_000, 1)
    frame = 320  # 10 ms
    pcm = sample().pcm
    pcm += bytes(-len(pcm) % frame)
    packets = [encoder.encode(pcm[i : i + frame]) for i in range(0, len(pcm), frame)]
    client = await recognised(url, b"".join(map(decoder.decode, packets)))
    assert word_accuracy(sample_text(), client.transcript) >= 0.9
    # An utterance for each sentence, and the rest of the recording.
    assert [result["speech_final"] for result in client.results] == [True] * 5 + [False]


async def test_the_sample_is_recognised_at_8_khz(url: str) -> None:
    audio = sample(8_000)
    client = await recognised(url, audio.pcm, sample_rate=8_000)
    assert word_accuracy(sample_text(), client.transcript) >= 0.8
    assert contiguous(client.results) == pytest.approx(audio.seconds, abs=1e-6)
    assert client.messages[-1]["type"] == "Metadata"
    assert client.messages[-1]["duration"] == pytest.approx(audio.seconds, abs=1e-6)


@pytest.fixture(scope="module")
def two_at_once(url: str) -> list[Client]:
    """Two clients that had the sample recognised beside each other."""
    clients: list[Client] = []

    async def recognise() -> None:
        clients.append(await recognised(url, sample().pcm))

    async def recognise_twice() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recognise)
            nursery.start_soon(recognise)

    trio.run(recognise_twice)
    return clients


def test_connections_are_served_at_once_and_know_nothing_of_each_other(
    two_at_once: list[Client],
) -> None:
    one, other = two_at_once
    assert word_accuracy(sample_text(), one.transcript) >= 0.9
    assert [result["channel"] for result in one.results] == [
        result["channel"] for result in other.results
    ]


async def test_the_channels_of_a_stereo_stream_have_finals_of_their_own(url: str) -> None:
    mono = np.frombuffer(sample().pcm, "<i2")[: 3 * 16_000]
    stereo = np.stack((np.zeros_like(mono), mono), axis=1).tobytes()
    client = await recognised(url, stereo, channels=2, multichannel="true")
    spoken = {tuple(r["channel_index"]): r["channel"]["alternatives"][0] for r in client.results}
    assert set(spoken) == {(0, 2), (1, 2)}
    silent, speaking = (
        [r for r in client.results if r["channel_index"] == [channel, 2]] for channel in (0, 1)
    )
    assert contiguous(silent) == contiguous(speaking) == 3.0
    assert not any(r["channel"]["alternatives"][0]["words"] for r in silent)
    assert (
        speaking[0]["channel"]["alternatives"][0]["transcript"] == "good morning how are you today"
    )


async def test_stereo_without_multichannel_is_one_mixed_stream(url: str) -> None:
    mono = np.frombuffer(sample().pcm, "<i2")[: 3 * 16_000]
    client = await recognised(url, np.stack((mono, mono), axis=1).tobytes(), channels=2)
    assert {tuple(result["channel_index"]) for result in client.results} == {(0, 1)}
    assert client.transcript.startswith("good morning how are you today")


def test_a_words_times_are_those_of_its_sound(two_at_once: list[Client]) -> None:
    pcm = sample().pcm
    heard = [r["channel"]["alternatives"][0]["words"] for r in two_at_once[0].results]
    heard = [(words[0]["start"], words[-1]["end"]) for words in heard if words]
    # A sentence is what lies between two stretches of 0.3 s that are 40 dB below full scale.
    loud = np.nonzero(np.abs(np.frombuffer(pcm, "<i2").astype(int)) > 328)[0]
    pauses = np.nonzero(np.diff(loud) > 4_800)[0]
    starts = loud[[0, *(pauses + 1)]] / 16_000
    ends = loud[[*pauses, -1]] / 16_000
    assert len(heard) == len(starts) == 5
    for words, sentence in zip(heard, zip(starts, ends, strict=True), strict=True):
        assert words == pytest.approx(sentence, abs=0.1)


# Finals


async def test_a_final_comes_at_a_pause_while_the_stream_goes_on(url: str) -> None:
    async with listening(url) as client:
        await client.send_audio(sample().pcm[: 3 * SECOND])
        result = await client.receive("Results")
    assert result["speech_final"]
    assert not result["from_finalize"]
    (alternative,) = result["channel"]["alternatives"]
    assert alternative["transcript"] == "good morning how are you today"
    assert {word["speaker"] for word in alternative["words"]} == {0}
    assert [word["punctuated_word"] for word in alternative["words"]] == alternative[
        "transcript"
    ].split()


async def test_in_silence_an_empty_final_comes_every_three_seconds(url: str) -> None:
    client = await recognised(url, 10 * SILENCE)
    assert [(r["start"], r["duration"]) for r in client.results] == [(0, 3), (3, 3), (6, 3), (9, 1)]
    for result in client.results:
        assert result["channel"]["alternatives"] == [
            {"transcript": "", "confidence": 0.0, "words": []}
        ]
        assert not result["speech_final"]


async def test_an_utterance_of_ten_seconds_is_cut(url: str) -> None:
    # What is spoken without a pause is over a second of it, again and again.
    spoken = sample().pcm[SECOND // 2 : 3 * SECOND // 2]
    client = await recognised(url, spoken * 11)
    first = client.results[0]
    assert 10.0 <= first["start"] + first["duration"] < 10.4
    assert not first["speech_final"]
    assert len(first["channel"]["alternatives"][0]["words"]) > 10
    assert contiguous(client.results) == pytest.approx(11.0)


async def test_finalize_is_answered_up_to_the_last_sample_and_the_clock_goes_on(url: str) -> None:
    pcm = sample().pcm
    async with listening(url) as client:
        # 1.1 s is in the middle of the first sentence.
        client.send(pcm[:35_210], FINALIZE)
        middle = await client.receive("Results")
        assert middle["from_finalize"]
        assert middle["is_final"]
        assert not middle["speech_final"]
        assert middle["start"] + middle["duration"] == pytest.approx(35_210 / SECOND, abs=1e-6)
        client.send('{"type":"KeepAlive"}')
        await client.send_audio(pcm[35_210 : 5 * SECOND])
        client.send(CLOSE_STREAM)
        await client.read_to_end()
    assert contiguous(client.results) == 5.0
    assert client.messages[-1]["duration"] == 5.0
    assert client.transcript.endswith("I am very well thank you")


async def test_a_torn_sample_waits_for_its_other_byte(url: str) -> None:
    pcm = sample().pcm[: 5 * SECOND // 2]
    async with listening(url) as client:
        client.send(pcm[:3_201], pcm[3_201:3_202], pcm[3_202:], CLOSE_STREAM)
        await client.read_to_end()
    assert client.transcript.startswith("good morning how are you today")
    assert client.messages[-1]["duration"] == 2.5


async def test_an_empty_message_ends_the_stream(url: str) -> None:
    async with listening(url) as client:
        client.send(SILENCE, b"", SILENCE)
        assert (await client.read_to_end()).code == 1000
    assert client.messages[-1]["type"] == "Metadata"
    assert client.messages[-1]["duration"] == 1.0


async def test_a_message_that_is_not_understood_is_answered_and_the_stream_goes_on(
    url: str,
) -> None:
    async with listening(url) as client:
        client.send("nonsense", '{"type":"Configure"}', SILENCE, CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    # A worker that waits for the processor says how it gets on.
    said = [message for message in client.messages if message["type"] != PROGRESS_TYPE]
    assert [message["type"] for message in said] == ["Error", "Error", "Results", "Metadata"]
    assert said[0]["variant"] == "SchemaError"


async def test_a_stream_without_audio_is_summed_up_too(url: str) -> None:
    async with listening(url) as client:
        client.send(CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000
    assert [message["type"] for message in client.messages] == ["Metadata"]
    assert client.messages[0]["duration"] == 0.0


# Admission and faults


async def http(url: str, head: str) -> str:
    """Send a request and return all that is answered within the first read."""
    stream = await open_tcp_stream("127.0.0.1", port_of(url))
    async with stream:
        await stream.send_all(f"{head}\r\nHost: x\r\n\r\n".encode())
        with trio.fail_after(10):
            return (await stream.receive_some()).decode()


UPGRADE = (
    "HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
)


async def test_the_answer_to_the_upgrade_tells_which_recogniser_it_is(url: str) -> None:
    answer = await http(url, f"GET /v1/listen?encoding=linear16&sample_rate=8000 {UPGRADE}")
    assert answer.startswith("HTTP/1.1 101 ")
    assert "\r\ndg-model-name: omi-rt-local\r\n" in answer
    assert "\r\ndg-request-id: " in answer


@pytest.mark.parametrize(
    ("request_line", "status", "reason"),
    [
        ("GET /v1/listen?encoding=opus HTTP/1.1", 400, "encoding"),
        ("GET /v1/listen?encoding=linear16&sample_rate=1 HTTP/1.1", 400, "sample_rate"),
        ("GET /v2/listen HTTP/1.1", 404, "/v1/listen"),
        ("GET /v1/listen?encoding=linear16&sample_rate=8000 HTTP/1.1", 426, "upgrade"),
    ],
)
async def test_what_is_refused_is_refused_as_deepgram_does(
    url: str, request_line: str, status: int, reason: str
) -> None:
    answer = await http(url, request_line)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    (error,) = [line for line in answer.splitlines() if line.startswith("dg-error: ")]
    assert reason in error
    assert '"err_msg":' in answer


async def test_ctrl_c_in_a_terminal_does_not_reach_it(
    url: str, server: subprocess.Popen[str]
) -> None:
    async with listening(url) as client:
        client.send(SILENCE, FINALIZE)
        await client.receive("Results")
        for process in (server.pid, *children_of(server.pid)):
            os.kill(process, signal.SIGINT)
        client.send(SILENCE, CLOSE_STREAM)
        assert (await client.read_to_end()).code == 1000


async def test_a_client_that_vanishes_leaves_no_worker_behind(
    url: str, server: subprocess.Popen[str]
) -> None:
    stream = await open_tcp_stream("127.0.0.1", port_of(url))
    spare = children_of(server.pid)
    async with stream, connected(stream, url) as client:
        client.send(SILENCE, FINALIZE)
        await client.receive("Results")
        stream.socket.shutdown(SHUT_RDWR)
        # One of them may still measure what speech costs.
        await wait_ended(spare, 30)
