"""Clients that nobody here wrote, each streaming coded words to a server with the fake behind it, and
the recorded sample to one with the embedded recogniser."""

from __future__ import annotations

import json
import subprocess
import wave
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from omi_rt.codecs.opus import OpusEncoder
from omi_rt.fake import FaultScript, Script, plain_words, synthesise
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
    Say,
    Silence,
    Stall,
    Unreachable,
)
from omi_rt.fake.speech import utterance
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text, sample_wav
from omi_rt.net.stream import TCPStream
from tests.foreign import (
    NODE_FOLDER,
    PYTHON,
    SCRIPTS,
    missing,
    missing_node,
    run_client,
    run_python,
)
from tests.harness import World, listening_server
from tests.processes_e2e import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.realtime

TALK = Script(
    [
        *utterance("amber bako celu", 1, 0.3),
        *utterance("dorin elfa fimo garo", 4, 2.0),
        *utterance("celu bako", 1, 3.6),
    ],
    5.0,
)
AT_LEAST = 0.8
"""Of the sample's words."""
SDK = missing("deepgram-sdk", (7, 0))

WHY_NOT: dict[str, str | None] = {
    "deepgram-sdk": SDK,
    "livekit": missing("livekit-plugins-deepgram", (1, 0)),
    "pipecat": missing("pipecat-ai", (1, 0)),
    "omi-sdk": missing("omi-sdk", (0, 2)),
    "websocat": missing("websocat", (1, 13)),
    "deepgram-js": missing_node(),
}
FAULTS: dict[str, list[Fault]] = {
    "unreachable": [Unreachable()],
    "refused": [Refuse(status=503)],
    "too many": [Refuse(status=429, retry_after=0.5)],
    "no answer": [NoAnswer()],
    **{f"drop at {at}": [Drop(at=at)] for at in ("request", "response")},
    "drop": [Drop(after_audio=1.5)],
    "drop in a frame": [Drop(at="frame", after_audio=1.5)],
    "drop in a result": [Drop(at="result", after_results=1)],
    **{
        f"close {code}": [Close(code=code, after_audio=1.5)]
        for code in (1000, 1001, 1006, 1011, 1012)
    },
    "stall": [Stall(seconds=2.0, after_audio=1.0)],
    "silence": [Silence(seconds=2.0, after_audio=1.0)],
    "silence for ever": [Silence(after_audio=1.0)],
    "late": [Late(seconds=1.5)],
    "double": [Double()],
    "say": [Say(text='{"type":"Warning","description":"x"}')],
    "lying metadata": [LyingMetadata(seconds=-2.0)],
    "ignored CloseStream": [IgnoreCloseStream(results=True)],
    **{
        f"malformed {what}": [Malformed(what=what, results=5)]
        for what in sorted(set(MALFORMED) - {"jumps_ahead"})
    },
}


@define
class Sounds:
    """Files for the clients."""

    coded: Path
    sample: Path
    coded_packets: Path
    sample_packets: Path


@define
class Outcome:
    """What one client got of both servers."""

    coded: Any = None
    sample: Any = None


@define
class Results:
    by_client: dict[str, Outcome] = field(factory=dict)
    by_fault: dict[str, Any] = field(factory=dict)


def packets(pcm: bytes) -> str:
    """Opus packets as a device sends them over Bluetooth: a counter of two bytes, an index, 10 ms."""
    encoder = OpusEncoder(16_000, 1)
    pieces = (pcm[start : start + 320].ljust(320, b"\0") for start in range(0, len(pcm), 320))
    return "\n".join(
        ((number & 0xFFFF).to_bytes(2, "little") + b"\0" + encoder.encode(piece)).hex()
        for number, piece in enumerate(pieces)
    )


def make_sounds(folder: Path) -> Sounds:
    with sample_wav() as path, wave.open(str(path)) as wav:
        sample = wav.readframes(wav.getnframes())
    sounds = Sounds(*(folder / name for name in ("coded", "sample", "coded.opus", "sample.opus")))
    coded = synthesise(TALK, 16_000)
    sounds.coded.write_bytes(coded)
    sounds.sample.write_bytes(sample)
    sounds.coded_packets.write_text(packets(coded))
    sounds.sample_packets.write_text(packets(sample))
    return sounds


@asynccontextmanager
async def listening_on_tcp(world: World) -> AsyncIterator[str]:
    """Let a server in memory take connections of other processes; the value is its address."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def handle(stream: trio.SocketStream) -> None:
        await world.server.handle(TCPStream(stream.socket), is_loopback=True)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, listeners)
        yield f"ws://127.0.0.1:{port}"
        await world.sessions_ended(60)
        nursery.cancel_scope.cancel()


async def run_websocat(sound: Path, url: str) -> list[Any]:
    """Pipe the sound through websocat at the speed of speech, and wait for the last words."""
    program = Path(PYTHON).parent / "websocat"
    query = "model=nova-3&encoding=linear16&sample_rate=16000&punctuate=true"
    pcm, parts, ended = await trio.Path(sound).read_bytes(), bytearray(), trio.Event()

    async def read(output: trio.abc.ReceiveStream) -> None:
        async for data in output:
            parts.extend(data)
        ended.set()

    command = [str(program), "-b", f"{url}/v1/listen?{query}", "-H=Authorization: Token sesame"]
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False
        )
        process: trio.Process = await nursery.start(run)
        assert process.stdin is not None
        assert process.stdout is not None
        nursery.start_soon(read, process.stdout)
        for start in range(0, len(pcm), 3200):
            await process.stdin.send_all(pcm[start : start + 3200])
            await trio.sleep(0.1)
        await trio.sleep(2.5)
        await process.stdin.aclose()
        with trio.fail_after(20):
            await ended.wait()
    decoder, text, messages = json.JSONDecoder(), parts.decode().strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].strip()
    said = [m["channel"]["alternatives"][0]["transcript"] for m in messages if "channel" in m]
    return [{"text": " ".join(said)}]


RUN: dict[str, Callable[[Path, Path, str], Awaitable[list[Any]]]] = {
    "deepgram-sdk": lambda pcm, _opus, url: run_python("deepgram_sdk.py", "1", str(pcm), url),
    "livekit": lambda pcm, _opus, url: run_python("livekit_plugin.py", str(pcm), url),
    "pipecat": lambda pcm, _opus, url: run_python("pipecat_service.py", str(pcm), url),
    "omi-sdk": lambda _pcm, opus, url: run_python("omi_sdk.py", str(opus), url),
    "websocat": lambda pcm, _opus, url: run_websocat(pcm, url),
    "deepgram-js": lambda pcm, _opus, url: run_client(
        "node", str(SCRIPTS / "deepgram_js.mjs"), NODE_FOLDER, str(pcm), url
    ),
}


async def attempt(name: str, pcm: Path, opus: Path, url: str) -> dict[str, Any]:
    """Run a client; one that fails fails its own test and no other's."""
    try:
        (outcome,) = await RUN[name](pcm, opus, url)
    except (AssertionError, ExceptionGroup, trio.TooSlowError, ValueError) as error:
        return {"text": "", "error": repr(error)}
    return dict(outcome)


async def use_clients(sounds: Sounds, results: Results) -> None:
    """Let each client that is there stream both sounds."""
    # The recogniser of a machine with two processors carries few sessions at once.
    few = trio.CapacityLimiter(2)
    async with (
        listening_server() as (world, _fake),
        listening_on_tcp(world) as fake_url,
        serving() as embedded,
        trio.open_nursery() as nursery,
    ):
        embedded_url = embedded.url.removesuffix("/listen")

        async def code(name: str, outcome: Outcome) -> None:
            outcome.coded = await attempt(name, sounds.coded, sounds.coded_packets, fake_url)

        async def speak(name: str, outcome: Outcome) -> None:
            async with few:
                outcome.sample = await attempt(
                    name, sounds.sample, sounds.sample_packets, embedded_url
                )

        for name, reason in WHY_NOT.items():
            if reason is None:
                outcome = results.by_client[name] = Outcome()
                nursery.start_soon(code, name, outcome)
                nursery.start_soon(speak, name, outcome)


async def meet_faults(sounds: Sounds, results: Results) -> None:
    """Let the official SDK stream to a server for each fault, all at once."""
    urls: dict[str, str] = {}
    done = trio.Event()
    ready: trio.MemorySendChannel[None]
    ready, all_ready = trio.open_memory_channel(len(FAULTS))

    async def serve(name: str, faults: list[Fault]) -> None:
        script = FaultScript.of(faults)
        async with (
            listening_server(faults=script, connect_timeout=2.0) as (world, _fake),
            listening_on_tcp(world) as url,
        ):
            urls[name] = url
            await ready.send(None)
            await done.wait()

    async with trio.open_nursery() as nursery:
        for name, faults in FAULTS.items():
            nursery.start_soon(serve, name, faults)
        for _ in FAULTS:
            await all_ready.receive()
        told = await run_python("deepgram_sdk.py", "1", str(sounds.coded), *urls.values())
        results.by_fault |= dict(zip(urls, told, strict=True))
        done.set()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Everything at once: it takes as long as the slowest."""
    found, sounds = Results(), make_sounds(tmp_path_factory.mktemp("sounds"))

    async def use_all() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use_clients, sounds, found)
            if SDK is None:
                nursery.start_soon(meet_faults, sounds, found)

    trio.run(partial(use_all))
    return found


def said(outcome: dict[str, Any]) -> list[str]:
    return plain_words(outcome["text"] if "text" in outcome else " ".join(outcome["words"]))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))
        for name, reason in WHY_NOT.items()
    ],
)
def test_a_client_hears_the_coded_words_one_by_one_and_most_of_the_sample(
    results: Results, name: str
) -> None:
    outcome = results.by_client[name]
    assert said(outcome.coded) == TALK.transcript()
    assert word_accuracy(sample_text(), " ".join(said(outcome.sample))) >= AT_LEAST


@pytest.mark.skipif(SDK is not None, reason=SDK or "")
def test_the_official_sdk_parses_every_message_into_its_types(results: Results) -> None:
    outcome = results.by_client["deepgram-sdk"].coded
    assert outcome["types"] == ["ListenV1Metadata", "ListenV1Results"]
    assert outcome["speakers"] == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert outcome["starts"] == pytest.approx([word.start for word in TALK.words], abs=0.01)
    assert (outcome["from_finalize"], outcome["last"]) == (1, "Metadata")
    assert outcome["interims"] > 0
    assert outcome["duration"] == TALK.seconds


@pytest.mark.skipif(missing_node() is not None, reason=missing_node() or "")
def test_the_javascript_sdk_gets_speakers_and_a_normal_close(results: Results) -> None:
    outcome = results.by_client["deepgram-js"].coded
    assert outcome["types"] == ["Metadata", "Results"]
    assert outcome["speakers"] == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert (outcome["code"], outcome["errors"]) == (1000, [])


@pytest.mark.skipif(SDK is not None, reason=SDK or "")
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_official_sdk_notices_no_fault_of_the_provider(results: Results, fault: str) -> None:
    outcome = results.by_fault[fault]
    assert outcome["words"] == TALK.transcript()
    assert outcome["starts"] == pytest.approx([word.start for word in TALK.words], abs=0.01)
    assert outcome["types"] == ["ListenV1Metadata", "ListenV1Results"]
    assert len(outcome["request_ids"]) == 1
    assert (outcome["errors"], outcome["last"], outcome["closes"]) == ([], "Metadata", 1)
