"""``omi-rt stream`` to ``omi-rt serve`` to ``omi-rt fake-deepgram``: three processes, real sockets."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import trio
from attrs import frozen

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import FaultScript, Script, plain_words, random_script, synthesise
from omi_rt.fake.faults import Refuse
from omi_rt.fake.speech import utterance
from tests.processes_e2e import (
    KEY,
    NOWHERE,
    Finished,
    environment,
    fake_in_process,
    fake_program,
    run,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omi_rt.fake import SpokenWord

pytestmark = pytest.mark.realtime

TALK = random_script(Random(43), 3.2, longest_pause=0.4)
TWO_SIDES = random_script(Random(40), 3.2, channels=2, longest_pause=0.4)
FEW_WORDS = Script(utterance("amber bako", 1, 0.2), 1.0)
SPEED = "1.2"
"""What the fake takes from the start on, and a quarter over real time is what a server sends."""
SEGMENT_FIELDS = {
    "id",
    "speaker",
    "speaker_id",
    "start",
    "end",
    "text",
    "is_user",
    "person_id",
}


@frozen
class Case:
    """A recording, and how exactly its words must come back."""

    codec: str
    script: Script
    sample_rate: int
    tolerance: float
    """In seconds."""


CASES = {
    "opus": Case("opus", TALK, 16_000, 0.030),
    "opus_fs320": Case("opus_fs320", TALK, 16_000, 0.030),
    "pcm16": Case("pcm16", TALK, 16_000, 0.001),
    "pcm8": Case("pcm8", TALK, 8_000, 0.001),
    # The fake knows resampled words by their spectrum alone, and their borders within 25 ms.
    "pcm8 from 16 kHz": Case("pcm8", TALK, 16_000, 0.030),
    "stereo pcm16": Case("pcm16", TWO_SIDES, 16_000, 0.001),
}


def write_script(path: Path, script: Script, sample_rate: int = 16_000) -> str:
    """Record a script as a WAV file; return its path."""
    pcm = synthesise(script, sample_rate)
    path.write_bytes(write_wav(WavAudio(sample_rate, script.channels, pcm)))
    return str(path)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Every case streamed, all at once, to one server."""
    directory = tmp_path_factory.mktemp("recordings")
    finished: dict[str, Finished] = {}

    async def stream(name: str, url: str) -> None:
        case = CASES[name]
        path = write_script(directory / f"{name}.wav", case.script, case.sample_rate)
        options = ("--url", url, "--codec", case.codec, "--speed", SPEED, "--json")
        finished[name] = await run("stream", path, *options)

    async def stream_all() -> None:
        async with (
            fake_program("--key", KEY) as fake,
            serving(DEEPGRAM_URL=fake, DEEPGRAM_API_KEY=KEY) as server,
            trio.open_nursery() as nursery,
        ):
            for name in CASES:
                nursery.start_soon(stream, name, server.url)

    trio.run(stream_all)
    return finished


def segments_of(finished: Finished) -> list[dict[str, Any]]:
    """What was printed with --json."""
    return [json.loads(line) for line in finished.output.splitlines()]


def with_words(
    segments: list[dict[str, Any]], spoken: list[SpokenWord]
) -> Iterator[tuple[dict[str, Any], list[SpokenWord]]]:
    """Put each segment together with the words of the script that are its own."""
    position = 0
    for segment in segments:
        count = len(plain_words(segment["text"]))
        yield segment, spoken[position : position + count]
        position += count


@pytest.mark.parametrize("name", CASES)
def test_the_status_is_0_and_standard_output_holds_segments_and_nothing_else(
    streamed: dict[str, Finished], name: str
) -> None:
    finished = streamed[name]
    assert finished.status == 0
    notes = finished.errors.splitlines()
    assert notes[0] == "nobody will be recognised by voice: no speech profile is stored"
    words = sum(len(segment["text"].split()) for segment in segments_of(finished))
    assert notes[1:] == [f"sent {CASES[name].script.seconds:.1f} s, {words} words, lost 0.0 s"]
    expected = SEGMENT_FIELDS | ({"channel"} if CASES[name].script.channels > 1 else set())
    assert [set(segment) for segment in segments_of(finished)] == [expected] * len(
        finished.output.splitlines()
    )


@pytest.mark.parametrize("name", CASES)
def test_the_transcript_equals_the_script_word_for_word(
    streamed: dict[str, Finished], name: str
) -> None:
    script = CASES[name].script
    segments = segments_of(streamed[name])
    for channel in range(script.channels):
        texts = [s["text"] for s in segments if s.get("channel", 0) == channel]
        assert plain_words(" ".join(texts)) == script.transcript(channel)


@pytest.mark.parametrize("name", CASES)
def test_times_are_the_script_s_within_1_ms_for_pcm_and_30_ms_for_opus(
    streamed: dict[str, Finished], name: str
) -> None:
    case = CASES[name]
    segments = segments_of(streamed[name])
    for channel in range(case.script.channels):
        own = [s for s in segments if s.get("channel", 0) == channel]
        for segment, words in with_words(own, case.script.on_channel(channel)):
            assert segment["start"] == pytest.approx(words[0].start, abs=case.tolerance)
            assert segment["end"] == pytest.approx(words[-1].end, abs=case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_each_voice_is_a_speaker_of_its_own(streamed: dict[str, Finished], name: str) -> None:
    script = CASES[name].script
    segments = segments_of(streamed[name])
    for channel in range(script.channels):
        own = [s for s in segments if s.get("channel", 0) == channel]
        pairs = {
            (segment["speaker"], word.voice)
            for segment, words in with_words(own, script.on_channel(channel))
            for word in words
        }
        assert len(pairs) == len({voice for _, voice in pairs}) == len({name for name, _ in pairs})


async def test_nobody_listening_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    path = write_script(tmp_path / "talk.wav", TALK)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        finished = await run("stream", path, "--url", f"ws://{address}/listen", "--json")
    assert (finished.status, finished.output) == (1, "")
    assert finished.errors == (
        f"omi-rt stream: cannot connect to {address}: connection refused; "
        "is `omi-rt serve` running there?\n"
    )


async def test_a_server_without_tls_says_so_at_once() -> None:
    # The client's own limit is 10 s.
    async with serving(DEEPGRAM_URL=NOWHERE) as server:
        path = f"{Path(__file__).parent.parent}/omi_rt/local/sample.wav"
        url = server.url.replace("ws://", "wss://")
        finished = await run("stream", path, "--url", url, within=8.0)
    assert (finished.status, finished.output) == (1, "")
    assert finished.errors == (
        f"omi-rt stream: cannot use TLS with 127.0.0.1:{server.port}: "
        "the server does not speak TLS on this port; try a URL that begins with ws://\n"
    )


async def test_flac_from_a_pipe_is_heard_word_for_word_in_its_language_and_without_profiles() -> (
    None
):
    samples = np.frombuffer(synthesise(TALK, 16_000), "<i2")
    flac = io.BytesIO()
    soundfile.write(flac, samples, 16_000, format="FLAC")
    async with (
        fake_in_process() as (fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        options = ["--url", server.url, "--speed", SPEED, "--json", "--codec", "pcm16"]
        done = await trio.run_process(
            [
                sys.executable,
                "-m",
                "omi_rt",
                "stream",
                "-",
                "--language",
                "es",
                "--no-profile",
                *options,
            ],
            env=environment({}),
            stdin=flac.getvalue(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        (connection,) = fake.connections
    assert done.returncode == 0, done.stderr
    segments = [json.loads(line) for line in done.stdout.splitlines()]
    assert plain_words(" ".join(each["text"] for each in segments)) == TALK.transcript()
    assert "language=es&" in f"{connection.target}&"
    # Where profiles are asked for, the first line says that there is none.
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.startswith(b"sent 3.2 s, ")


async def test_a_header_that_can_not_be_sent_is_named_without_its_value() -> None:
    finished = await run("stream", "a.wav", "--header", f"Host: {KEY}")
    assert (finished.status, finished.output) == (2, "")
    assert "Host is the handshake's own" in finished.errors


async def test_a_recording_that_can_not_be_read_is_one_clear_line_and_status_1() -> None:
    message = "omi-rt stream: cannot read none.wav: no such file or directory\n"
    assert await run("stream", "none.wav") == Finished(1, "", message)


async def test_an_option_that_can_not_be_is_named_with_what_it_can_be_and_status_2() -> None:
    finished = await run("stream", "a.wav", "--codec", "mp3")
    assert (finished.status, finished.output) == (2, "")
    last = finished.errors.splitlines()[-1]
    assert "--codec" in last
    assert "'opus', 'opus_fs320', 'pcm16', 'pcm8'" in last


async def test_what_the_server_refuses_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    path = write_script(tmp_path / "talk.wav", TALK)
    finished: dict[str, Finished] = {}

    async def stream(name: str, *options: str) -> None:
        finished[name] = await run("stream", path, "--json", *options)

    async with (
        fake_in_process(FaultScript(afterwards=(Refuse(status=401),))) as (_fake, fake),
        serving(DEEPGRAM_URL=fake, DEEPGRAM_API_KEY=KEY) as server,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream, "uid", "--url", server.url, "--uid", "../me")
            nursery.start_soon(stream, "path", "--url", server.url + "s")
        # At last, for then the server takes no more sessions for a while.
        await stream("key", "--url", server.url)
        await stream("breaker", "--url", server.url)
    assert [result.status for result in finished.values()] == [1] * 4
    assert [result.output for result in finished.values()] == [""] * 4
    assert [finished[name].errors.count("\n") for name in ("uid", "path", "breaker")] == [1] * 3
    assert "the speech service has failed: " in finished["key"].errors
    assert "closed the connection with 1008 (uid: " in finished["uid"].errors
    assert "refused with HTTP 404" in finished["path"].errors
    assert "closed the connection with 1011 (stt_failed)" in finished["key"].errors
    reason = r"refused with HTTP 503: Deepgram .*; try again in \d+ s\n"
    assert re.search(reason, finished["breaker"].errors)


@pytest.mark.parametrize(
    ("redirection", "status", "reason"),
    [
        (">/dev/full", 1, "cannot write to standard output: no space left on device"),
        (">&-", 1, "cannot write to standard output: bad file descriptor"),
        ("2>&-", 0, ""),
        (">/dev/full 2>/dev/full", 1, ""),
        (">&- 2>&-", 1, ""),
    ],
)
async def test_output_that_can_not_be_written_is_one_line_and_a_status(
    tmp_path: Path, redirection: str, status: int, reason: str
) -> None:
    path = write_script(tmp_path / "talk.wav", FEW_WORDS)
    async with (
        fake_in_process() as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        command = (
            f'exec "{sys.executable}" -m omi_rt stream "{path}" --url {server.url} --speed 1.2'
        )
        done = await trio.run_process(
            ["bash", "-c", f"{command} {redirection}"],
            env=environment({}),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == status
    failures = [line for line in done.stderr.decode().splitlines() if line.startswith("omi-rt")]
    assert failures == ([f"omi-rt stream: {reason}"] if reason else [])
    assert "Traceback" not in done.stderr.decode()
